"""Sizes that a graph computes from shapes, written down as constants: fewer nodes, the same answers at every input size.

Exporters spell the target of a Reshape as Shape → Gather → Unsqueeze → Concat, a dozen nodes a layer that take longer
than small layers do. Whatever of that is the same for all inputs becomes a constant. A Reshape needs no more than that
where each size is a constant, that of the same axis of what it reshapes (0), or, for one of them, all that is left (−1).

Proven with a symbol for every dynamic size: two sizes are the same only where they are the same symbol.

Source: ONNX operators, Reshape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Dims, Model, constant, copy, raise_opset, symbolic_shapes, type_of
from studio.engine.groups.folding import Array, Folder, integer
from studio.engine.layers import Listing, list_layers

_COMPUTED = {"Shape", "Size"}  # where sizes come from
_FOLLOWED = 14
_LARGEST = 64  # numbers that are stored where they were computed
_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}


class _Size:
    """A size that inputs decide. Only itself is surely equal to it, and nothing can be computed with it."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Size) and other.symbol == self.symbol:
            return True
        if isinstance(other, int) and other < 0:
            return False
        raise TypeError("not known")

    __hash__ = None  # type: ignore[assignment]


class _SymbolicFolder(Folder):
    """Small integer values as far as they follow from symbolic shapes: arrays of integers and sizes."""

    def _shape(self, node: ir.Node) -> Array | None:
        dims = None if constant(node.inputs[0]) is not None else self._shapes.of(node.inputs[0])
        if node.op_type == "Size" or dims is None or "?" in dims:
            return super()._shape(node)
        sizes = np.empty(len(dims), object)
        sizes[:] = [_Size(d) if isinstance(d, str) else d for d in dims]
        return sizes[integer(node, "start", 0) : integer(node, "end", len(dims))]

    def _evaluate(self, value: ir.Value) -> Array | None:
        node = value.producer()
        if node is not None and node.op_type == "Cast" and integer(node, "to", 1) in _INTEGERS:
            source = self(node.inputs[0])
            return source if source is not None and source.dtype == object else super()._evaluate(value)
        found = super()._evaluate(value)
        whole = (
            found is not None
            and found.dtype == object
            and all(isinstance(d, int | np.integer) for d in found.flat)
        )
        return found.astype(np.int64) if found is not None and whole else found


def tidy(listing: Listing) -> Listing:
    """The listing of a copy without nodes that compute what is always the same; the model's layers keep their names.

    Args:
        listing: returned as it is where there is nothing to tidy.
    """
    if not any(node.op_type in _COMPUTED for node in listing.model.graph):
        return listing
    model = copy(listing.model)
    if not fold_sizes(model):
        return listing
    found = list_layers(model, dict(listing.input_sizes))
    return found if list(found.nodes) == list(listing.nodes) else listing


def fold_sizes(model: Model) -> int:
    """Write down the sizes of the main graph that are known beforehand.

    Args:
        model: changed in place.

    Returns:
        How many inputs of nodes have become constants.
    """
    # onnx follows sizes through the nodes of newer operator sets only.
    shapes = symbolic_shapes(model if model.opset >= _FOLLOWED else raise_opset(model, _FOLLOWED))
    fold = _SymbolicFolder(shapes)
    found: list[tuple[ir.Node, int, Array]] = []
    computed: set[ir.Value] = set()
    for node in model.graph:
        if node.op_type in _COMPUTED or computed.intersection(v for v in node.inputs if v is not None):
            computed.update(node.outputs)
            if all(_whole(fold(v)) for v in node.outputs):
                continue  # goes where nothing else reads it
        for position, value in enumerate(node.inputs):
            read = (node.op_type, position) != ("Gather", 0)  # a table that is looked up in would be a layer
            sizes = fold(value) if read and value in computed else None
            if sizes is None or sizes.size > _LARGEST:
                continue
            if node.op_type == "Reshape" and position == 1:
                sizes = _target(node, sizes, shapes.of(node.inputs[0]))
            dtype = shapes.dtype(value)
            if sizes is not None and _whole(sizes) and dtype is not None:
                found.append((node, position, sizes.astype(type_of(dtype).numpy())))
    return _write(model, found)


def _whole(sizes: Array | None) -> bool:
    """Whether all is known, whatever the inputs' sizes."""
    return sizes is not None and sizes.dtype != object


def _target(node: ir.Node, sizes: Array, dims: Dims | None) -> Array | None:
    """The constant target of a Reshape that does what these sizes do; None where none surely does."""
    if integer(node, "allowzero", 0) and any(isinstance(s, int | np.integer) and s == 0 for s in sizes.flat):
        return None
    target: list[int] = []
    for axis, size in enumerate(sizes.tolist()):
        if not isinstance(size, _Size):
            target.append(int(size))
        elif dims is not None and axis < len(dims) and dims[axis] == size.symbol:
            target.append(0)
        else:
            target.append(-1)
    return None if target.count(-1) > 1 else np.array(target, np.int64)


def _write(model: Model, found: list[tuple[ir.Node, int, Array]]) -> int:
    """Let nodes read constants; equal ones share one. What only nodes that go would have read is not stored."""
    stored: dict[Any, ir.Value] = {}
    written = 0
    for node, position, sizes in reversed(
        found
    ):  # readers first: what they no longer read is dead before its turn
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        key = (str(sizes.dtype), sizes.shape, sizes.tobytes())
        if key not in stored:
            stored[key] = edit.add_constant(model, model.graph, "sizes", sizes)
        before = node.inputs[position]
        node.replace_input_with(position, stored[key])
        if node.op_type == "Reshape":
            node.attributes.pop("allowzero", None)
        _drop(before)
        written += 1
    edit.remove_dead(model)
    return written


def _drop(value: ir.Value | None) -> None:
    """Remove the nodes that made a value which nobody reads any more."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        node = None if current is None else current.producer()
        if node is None or node.graph is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        waiting.extend(node.inputs)
        edit.owner(node).remove(node, safe=True)
