"""Second moments E[x xᵀ] of what layers read, streamed: the metric in which rounding errors count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.base.progress import Progress
from studio.engine import execute
from studio.engine.graph import Model, constant, graphs, node_key
from studio.engine.quantization.calibrate import Feed
from studio.engine.quantization.simplify import array, ints

Array: TypeAlias = npt.NDArray[Any]

CELLS = frozenset({"LSTM", "GRU", "RNN"})
_RECURRENT, _FIRST_STATE = 2, 5  # inputs of a cell

# A layer with more inputs than this has too large a matrix to be worth it.
LARGEST = 4096
# Positions that are looked at, per feed: neighbours say the same again.
_POSITIONS = 1024


def layer_moments(
    model: Model,
    nodes: Sequence[ir.Node],
    feeds: Iterable[Feed],
    progress: Progress | None = None,
    *,
    total: int = 0,
    threads: int = 0,
) -> dict[str, Array]:
    """Σ x xᵀ over what each layer multiplies with one row of its weights.

    Args:
        model: the layers lie in its main graph or in bodies of If, Loop and Scan.
        nodes: Conv, MatMul, Gemm, LSTM, GRU and RNN with constant weights; others are left out.
        feeds: what the model runs on.
        progress: ticked before each run.
        total: how many feeds there are; 0 = not known.
        threads: of the runtime.

    Returns:
        By `weight_key`: (groups, k, k) for a Conv, with k = input channels of a group × taps; (directions, k, k) for the
        recurrent weights of a cell; (1, k, k) for the others. Layers whose inputs no branch that ran has made are missing.
    """
    sums: dict[str, Array] = {}
    chosen = set(nodes)
    homes = {v: path for path, graph in graphs(model) for v in _made_in(path, graph)}
    reads = [
        (
            node,
            weight_key(path, node, position),
            position,
            [place(homes.get(v, ""), v.name or "") for v in values],
        )
        for path, graph in graphs(model)
        for node in graph
        if node in chosen
        for position, values in _read(node).items()
    ]
    names = list(dict.fromkeys(name for *_, read in reads for name in read))
    if not names:
        return sums
    for found in execute.stream(model, names, feeds, progress, threads, total=total):
        shared: dict[str, Array] = {}
        for node, key, position, read in reads:
            values = [found[name] for name in read if name in found]
            if not values:
                continue
            if position == _RECURRENT:
                product = _product(_states(values))
            elif node.op_type == "Conv":
                product = _product(rows_of(node, values[0]))
            else:
                if read[0] not in shared:
                    shared[read[0]] = _product(rows_of(node, values[0]))
                product = shared[read[0]]
            if product.size:
                sums[key] = product if key not in sums else sums[key] + product
    return sums


def weight_key(path: str, node: ir.Node, position: int = 1) -> str:
    """What the moments of a layer's weight are called: as its `place`; the recurrent weights of a cell by themselves."""
    name = place(path, node_key(node))
    return f"{name} recurrent" if node.op_type in CELLS and position == _RECURRENT else name


def _read(node: ir.Node) -> dict[int, list[ir.Value]]:
    """By the input that holds weights, the values that these multiply."""
    source = node.inputs[0] if node.inputs else None
    if source is None or node.op_type not in {"Conv", "MatMul", "Gemm", *CELLS}:
        return {}
    if node.op_type not in CELLS or "layout" in node.attributes:
        return {1: [source]}
    first = node.inputs[_FIRST_STATE] if len(node.inputs) > _FIRST_STATE else None
    states = [v for v in node.outputs[:1] if v.name]
    if first is not None and constant(first) is None:
        states.append(first)
    return {1: [source], _RECURRENT: states} if states else {1: [source]}


def _states(values: Sequence[Array]) -> Array:
    """(directions, rows, hidden): what a cell remembers, of all steps (T, D, B, H) and of the beginning (D, B, H)."""
    rows = []
    for value in values:
        hidden = value.shape[-1]
        steps = value if value.ndim == 4 else value[None]
        if steps.ndim != 4 or hidden > LARGEST:
            return np.zeros(0)
        rows.append(steps.transpose(1, 0, 2, 3).reshape(steps.shape[1], -1, hidden))
    return np.concatenate(rows, axis=1).astype(np.float32, copy=False)


def place(path: str, key: str) -> str:
    """A name of its own for a node or value: the one it has in its graph, behind the path of that."""
    return f"{path}/{key}" if path else key


def _made_in(path: str, graph: ir.Graph) -> list[ir.Value]:
    """What a graph computes, and what a body is given."""
    return [*(v for n in graph for v in n.outputs), *(graph.inputs if path else ())]


def _product(rows: Array) -> Array:
    return np.asarray(np.matmul(rows.transpose(0, 2, 1), rows)) if rows.size else np.zeros(0)


def rows_of(node: ir.Node, value: Array) -> Array:
    """(groups, rows, k): what a layer multiplies with one row of its weights; empty where k is too large.

    Args:
        node: Conv, MatMul, Gemm or a cell.
        value: what it reads, with the features on the last axis; images (n, c, *spatial) for a Conv, of which
            evenly spread output positions are taken.
    """
    if node.op_type == "Conv":
        return _conv_rows(node, value)
    rows = value.reshape(-1, value.shape[-1]).astype(np.float32, copy=False)
    return np.zeros(0) if rows.shape[1] > LARGEST else rows[None]


def _conv_rows(node: ir.Node, x: Array) -> Array:
    weight = array(node.inputs[1])
    if weight is None:
        return np.zeros(0)
    kernel, rank = weight.shape[2:], weight.ndim - 2
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    width = weight.shape[1] * int(np.prod(kernel))
    auto = node.attributes.get("auto_pad")
    if width > LARGEST or (auto is not None and auto.as_string() not in {"NOTSET", "VALID"}):
        return np.zeros(0)
    pads, strides = ints(node, "pads", [0] * 2 * rank), ints(node, "strides", [1] * rank)
    dilations = ints(node, "dilations", [1] * rank)
    x = x.reshape(-1, *x.shape[-1 - rank :])  # the rounds of a loop lie along an axis in front
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    extent = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
    spatial = tuple(range(2, 2 + rank))
    if any(size < e for size, e in zip(padded.shape[2:], extent, strict=True)):
        return np.zeros(0)  # of a branch that is not for inputs like these
    windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=spatial)
    windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in strides))]
    count = int(np.prod(windows.shape[2 : 2 + rank]))
    share = count * len(x) / _POSITIONS
    step = int(np.ceil(share ** (1 / rank))) if share > 1 else 1
    every = [slice(None)] * 2
    taken = windows[
        (*every, *(slice(None, None, step) for _ in spatial), *(slice(None, None, d) for d in dilations))
    ]
    n, c = taken.shape[:2]
    flat = taken.reshape(n, groups, c // groups, -1, int(np.prod(kernel)))
    return np.asarray(flat.transpose(1, 0, 3, 2, 4).reshape(groups, -1, width).astype(np.float32, copy=False))
