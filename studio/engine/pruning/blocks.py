"""Residual blocks: an addition y = x + f(x) of two values of one shape, f being all that lies between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Model, constant, copy, node_key
from studio.engine.layers import Listing


@dataclass(frozen=True)
class Block:
    """A residual block.

    Attributes:
        key: of the addition that ends it.
        skip: which operand of it passes by.
        layers: that vanish with it.
    """

    key: str
    skip: int
    layers: frozenset[str]


def blocks(listing: Listing) -> list[Block]:
    """The residual blocks of the main graph that hold layers, in graph order."""
    order = {node: place for place, node in enumerate(listing.model.graph)}
    by_key = {layer.key: layer.name for layer in listing.layers if not listing.nodes[layer.name].path}
    found = []
    for node in order:
        skip = _skip_of(node, listing, order)
        if skip is None:
            continue
        bare = without(listing.model, [Block(node_key(node), skip, frozenset())])
        kept = {node_key(n) for n in bare.graph}
        layers = frozenset(name for key, name in by_key.items() if key not in kept)
        if layers:
            found.append(Block(node_key(node), skip, layers))
    return found


def _skip_of(node: ir.Node, listing: Listing, order: dict[ir.Node, int]) -> int | None:
    """Which operand of an addition the other is computed from; None where it ends no block."""
    if node.op_type not in ("Add", "Sum") or len(node.inputs) != 2 or node.outputs[0].is_graph_output():
        return None
    shape = listing.shapes.of(node.outputs[0])
    for position in (0, 1):
        skip, branch = node.inputs[position], node.inputs[1 - position]
        if skip is None or branch is None or constant(skip) is not None or constant(branch) is not None:
            continue
        if shape is not None and listing.shapes.of(skip) == shape and _comes_from(branch, skip, order):
            return position
    return None


def _comes_from(value: ir.Value, source: ir.Value, order: dict[ir.Node, int]) -> bool:
    """Whether `value` is computed from `source`."""
    producer = source.producer()
    floor = -1 if producer is None else order.get(producer, -1)
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        if current is source:
            return True
        node = current.producer()
        if node is None or order.get(node, -1) <= floor:
            continue
        for before in node.inputs:
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
    return False


def without(model: Model, gone: Sequence[Block]) -> Model:
    """A copy in which the value that passes by takes the place of each block's end."""
    result = copy(model)
    ends = {node_key(n): n for n in result.graph}
    for block in gone:
        node = ends[block.key]
        skip = node.inputs[block.skip]
        assert skip is not None
        edit.replace_uses(node.outputs[0], skip)
    edit.remove_dead(result)
    return result
