"""Where the nodes of a large graph go: layers by longest path, order within them by igraph, in bands.

The work is a generator that yields after every band of some hundred nodes, so that a window can
do it between two events; 10,000 nodes take about a tenth of a second altogether.

Source: Sugiyama, Tagawa, Toda 1981, "Methods for visual understanding of hierarchical system
structures" (igraph's `layout_sugiyama`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Place: TypeAlias = tuple[float, float]
Edge: TypeAlias = tuple[int, int]

STEP, LANE = 150.0, 56.0  # distance of layers, and of neighbours within a layer
_BAND = 600  # nodes laid out at a time
_ROW_GAP = 2.5  # lanes between two rows of a folded graph


@dataclass(frozen=True)
class Laid:
    """Centres of all nodes, along the graph's direction and across it; rows of a folded graph."""

    places: tuple[Place, ...]
    rows: int = 1


def ranks(count: int, edges: Sequence[Edge]) -> list[int]:
    """The layer of every node: one more than the highest of those before it; cycles are cut.

    What depends on no input of the graph stands right before the first that uses it.
    """
    followers: list[list[int]] = [[] for _ in range(count)]
    waiting = [0] * count
    for tail, head in edges:
        if tail != head:
            followers[tail].append(head)
            waiting[head] += 1
    found = [0] * count
    needs = list(waiting)
    ready = [node for node in range(count) if not waiting[node]]
    loose = [not needed for needed in needs]  # depends on constants only, along one line
    for node in ready:  # grows while it is walked
        for head in followers[node]:
            found[head] = max(found[head], found[node] + 1)
            loose[head] = loose[head] or (loose[node] and needs[head] == 1 and len(followers[node]) == 1)
            waiting[head] -= 1
            if not waiting[head]:
                ready.append(head)
    for node in reversed(ready):
        if loose[node] and followers[node]:
            found[node] = max(found[node], min(found[head] for head in followers[node]) - 1)
    return found


def layered(count: int, edges: Sequence[Edge], aspect: float) -> Generator[None, None, Laid]:
    """Lay a graph out.

    Args:
        count: nodes; edges are pairs of indices below it.
        edges: from tail to head.
        aspect: width over height of the room; a graph much longer than that is folded into rows.

    Yields:
        None after every band, so that the caller may do something else.

    Returns:
        The places, (along, across) in units of pixels at zoom 1.
    """
    if not count:
        return Laid(())
    layers = ranks(count, edges)
    yield
    across = yield from _across(layers, edges)
    return _folded(layers, across, aspect)


def _across(layers: list[int], edges: Sequence[Edge]) -> Generator[None, None, list[float]]:
    """The place of every node within its layer, in lanes."""
    across = [0.0] * len(layers)
    band_of = _bands(layers)
    yield
    inside: list[list[Edge]] = [[] for _ in range(max(band_of) + 1)]
    before: list[list[Edge]] = [[] for _ in inside]  # edges that come in from an earlier band
    for tail, head in edges:
        band = band_of[head]
        (inside if band_of[tail] == band else before)[band].append((tail, head))
    nodes: list[list[int]] = [[] for _ in inside]
    for node, band in enumerate(band_of):
        nodes[band].append(node)
    yield
    for band, members in enumerate(nodes):
        lanes = _sugiyama(members, inside[band], layers)
        shifts = [across[t] - lanes[h] for t, h in before[band] if band_of[t] < band]
        shift = sorted(shifts)[len(shifts) // 2] if shifts else 0.0
        for node in members:
            across[node] = lanes[node] + shift
        yield
    return across


def _bands(layers: list[int]) -> list[int]:
    """The band of every node: whole layers together until a band is full."""
    sizes = [0] * (max(layers) + 1)
    for layer in layers:
        sizes[layer] += 1
    band, held = 0, 0
    bands = []
    for size in sizes:
        if held and held + size > _BAND:
            band, held = band + 1, 0
        held += size
        bands.append(band)
    return [bands[layer] for layer in layers]


def _sugiyama(members: list[int], edges: list[Edge], layers: list[int]) -> dict[int, float]:
    import igraph

    local = {node: i for i, node in enumerate(members)}
    first = min(layers[node] for node in members)
    graph = igraph.Graph(n=len(members), edges=[(local[a], local[b]) for a, b in edges], directed=True)
    laid = graph.layout_sugiyama(
        layers=[layers[node] - first for node in members], hgap=1, vgap=1, maxiter=20
    )
    lanes = {node: float(laid[i][0]) for node, i in local.items()}
    middle = (min(lanes.values()) + max(lanes.values())) / 2
    return {node: lane - middle for node, lane in lanes.items()}


def _folded(layers: list[int], across: list[float], aspect: float) -> Laid:
    """Cut a long graph into rows under each other, as a text is cut into lines."""
    length = max(layers) + 1
    high = [-math.inf] * length
    low = [math.inf] * length
    for layer, lane in zip(layers, across, strict=True):
        high[layer], low[layer] = max(high[layer], lane), min(low[layer], lane)
    per_row = _layers_per_row(length, max(high) - min(low) + 1, aspect)
    rows = math.ceil(length / per_row)
    offsets, bottom = [], 0.0
    for row in range(rows):
        span = range(row * per_row, min(length, (row + 1) * per_row))
        top, deep = min(low[i] for i in span), max(high[i] for i in span)
        offsets.append(bottom - top)
        bottom += deep - top + 1 + _ROW_GAP
    places = tuple(
        (layer % per_row * STEP, (lane + offsets[layer // per_row]) * LANE)
        for layer, lane in zip(layers, across, strict=True)
    )
    return Laid(places, rows)


def _layers_per_row(length: int, lanes: float, aspect: float) -> int:
    """How many layers fill a row, so that the whole has about the room's aspect; all, when it is close."""
    if length * STEP <= 4 * aspect * lanes * LANE or length < 40:
        return length
    rows = math.sqrt(length * STEP / (aspect * (lanes + _ROW_GAP) * LANE))
    return max(20, math.ceil(length / max(1, round(rows))))
