"""Weight-only quantization of whole models: which form for which layer, shared weights once, subgraphs too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Model, constant, copy, graphs, holder, node_key, raise_opset
from studio.engine.layers import Listing
from studio.engine.quantization import blocks, packing, storage
from studio.engine.quantization.blocks import Blocks
from studio.engine.quantization.hard import contract_hard_swish
from studio.engine.quantization.moments import weight_key
from studio.records.steps import QuantizeWeights

Array: TypeAlias = npt.NDArray[Any]
Form: TypeAlias = Literal["matmul", "gather", "dequantized", "unpacked"]

SMALLEST = 64
_INT4_OPSET = 21  # the first with 4-bit types
_PLANES_OPSET = 13  # the first in which ReduceSum takes axes as an input; BitShift is older
_WEIGHTS = {"LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "Gather": (0,)}


@dataclass(frozen=True)
class Target:
    """A layer to be treated: its name, its node's key and the path of its graph."""

    name: str
    key: str
    path: str


def layer_constants(listing: Listing) -> set[str]:
    """Names of everything stored that belongs to a layer."""
    return {
        value.name or "" for layer in listing.nodes.values() for value in (*layer.weights, *layer.constants)
    }


def positions(node: ir.Node) -> tuple[int, ...]:
    """Inputs of a layer that are stored weight matrices."""
    if node.op_type in {"MatMul", "Gemm"} and not _stored_alone(node.inputs[1]):
        return (0,)
    return _WEIGHTS.get(node.op_type, (1,))


def _stored_alone(value: ir.Value | None) -> bool:
    """Whether a value is stored, or computed from nothing but stored ones (a tied table that is turned)."""
    waiting, seen = [value], set()
    while waiting:
        current = waiting.pop()
        if current is None or current in seen or constant(current) is not None:
            continue
        seen.add(current)
        producer = current.producer()
        if producer is None:
            return False
        waiting.extend(producer.inputs)
    return True


def form(node: ir.Node, settings: QuantizeWeights) -> Form:
    """How a layer's weights are stored."""
    position = positions(node)[0]
    matrix = storage.matrix_view(node, position)
    if settings.bits == 3 or settings.form == "unpacked":
        return "unpacked"
    if matrix is not None:
        return "dequantized" if settings.form == "qdq" else "matmul"
    tensor = constant(node.inputs[position])
    if node.op_type == "Gather" and tensor is not None and len(tensor.shape) == 2:
        axis = node.attributes.get("axis")
        plain = axis is None or axis.as_int() == 0
        width = int(tensor.shape.numpy()[1])
        if plain and width % settings.block == 0 and width * settings.bits % 8 == 0:
            return "gather"
    return "unpacked"


def describe(node: ir.Node, settings: QuantizeWeights) -> str:
    """What is done to a layer, in words."""
    kind = form(node, settings)
    match kind:
        case "matmul":
            between = ", float zero points" if float_zeros(kind, settings) else ""
            return f"{settings.bits}-bit weights in blocks of {settings.block}{between} (MatMulNBits)"
        case "gather":
            return f"{settings.bits}-bit rows in blocks of {settings.block} (GatherBlockQuantized)"
        case "dequantized":
            return f"{settings.bits}-bit weights in blocks of {settings.block} (Q/DQ)"
        case _:
            runs = "one scale a channel" if settings.bits == 8 else f"blocks of up to {settings.block}"
            return f"{settings.bits}-bit weights, {runs}, unpacked when the model is loaded"


class Writer:
    """Writes one layer after the other into a copy of a model.

    Args:
        model: left untouched.
        settings: bits, block size, form.
        targets: all layers that will be written.
        moments: by `weight_key`, (groups, k, k); None writes blank weights (for plans).
        keep: names of the constants of all layers: what is left may be packed without loss.
        ready: weights that have been fitted already, by the name of their constant.

    Attributes:
        packed: bytes saved by packing constants that belong to no layer.
    """

    def __init__(
        self,
        model: Model,
        settings: QuantizeWeights,
        targets: Sequence[Target],
        moments: Mapping[str, Array] | None,
        keep: Collection[str],
        ready: Mapping[str, Blocks] | None = None,
    ) -> None:
        self._settings, self._moments, self._ready = settings, moments, ready or {}
        self.model = copy(model)
        wanted = {(t.path, t.key) for t in targets}
        forms = {form(n, settings) for n in self._nodes(wanted).values()}
        if "dequantized" in forms or ("unpacked" in forms and settings.bits == 4):
            self.model = raise_opset(model, _INT4_OPSET)
        elif "unpacked" in forms and settings.bits < 4 and model.opset < _PLANES_OPSET:
            self.model = raise_opset(model, _PLANES_OPSET)
        self.packed = packing.pack(self.model, keep)
        self._layers = self._nodes(wanted)
        self._done: dict[tuple[int, int], Blocks] = {}
        self._made: set[ir.Value] = set()

    def _nodes(self, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], ir.Node]:
        return {
            (path, node_key(node)): node
            for path, graph in graphs(self.model)
            for node in graph
            if (path, node_key(node)) in wanted
        }

    def write(self, target: Target) -> tuple[Array, Array] | None:
        """Write one layer; its float weights and what the integers stand for (None for blank ones)."""
        node = self._layers[target.path, target.key]
        settings = self._settings
        kind = form(node, settings)
        result: tuple[Array, Array] | None = None
        for position in positions(node):
            matrix = storage.matrix_view(node, position)
            for value in self._stored(node.inputs[position]):
                tensor = constant(value)
                assert tensor is not None
                shape = tuple(int(d) for d in tensor.shape.numpy())
                known = weight_key(target.path, node, position)
                fitted, real = self._fit(known, node, value, shape, kind, matrix)
                if self._moments is not None and result is None:
                    result = (as_matrix(tensor.numpy(), shape, node, matrix), real)
                if kind == "matmul":
                    storage.write_matmul(self.model, node, fitted)
                elif kind == "gather":
                    storage.write_gather(self.model, node, fitted)
                elif kind == "dequantized":
                    flipped = bool(matrix and matrix[2])
                    storage.write_dequantized(self.model, node, position, fitted, transposed=flipped)
                else:
                    home = value.graph or edit.owner(node)
                    assert isinstance(home, ir.Graph)
                    flipped = bool(matrix and matrix[2])
                    self._made.add(
                        storage.write_unpacked(self.model, home, value, fitted, shape, transposed=flipped)
                    )
        return result

    def _stored(self, value: ir.Value | None) -> list[ir.Value]:
        """The float constants that weights are, or are computed from; without those that are written already."""
        found: dict[ir.Value, None] = {}
        waiting = [value]
        seen = set(self._made)
        while waiting:
            current = waiting.pop()
            if current is None or current in seen:
                continue
            seen.add(current)
            held = holder(current)
            if held is not None and held not in self._made:
                tensor = constant(held)
                assert tensor is not None
                if tensor.dtype == ir.DataType.FLOAT and tensor.size >= SMALLEST and len(tensor.shape) > 1:
                    found[held] = None
                continue
            producer = current.producer()
            if producer is not None:
                waiting.extend(producer.inputs)
        return list(found)

    def _fit(
        self,
        moments: str,
        node: ir.Node,
        value: ir.Value,
        shape: tuple[int, ...],
        kind: Form,
        matrix: tuple[int, int, bool] | None,
    ) -> tuple[Blocks, Array]:
        settings = self._settings
        n, k, size, symmetric = layout(node, shape, kind, matrix, settings)
        if self._moments is None:
            between = float_zeros(kind, settings)
            return blocks.blank(
                n, k, size, settings.bits, symmetric=symmetric, float_zeros=between
            ), np.zeros(0)
        key = id(value), size  # a table that a product shares may have another layout there
        ready = self._ready.get(value.name or "")
        if key not in self._done and ready is not None and ready.q.shape == (n, -(-k // size), size):
            self._done[key] = ready
        if key not in self._done:
            tensor = constant(value)
            assert tensor is not None
            wide = as_matrix(tensor.numpy(), shape, node, matrix)
            known = self._moments.get(moments)
            self._done[key] = fit(wide, size, kind, settings, known, symmetric=symmetric)
        fitted = self._done[key]
        return fitted, fitted.real()

    def finish(self) -> Model:
        """The model, without what nobody uses any more, and with float activations in as few nodes as can be."""
        edit.remove_dead(self.model)
        return contract_hard_swish(self.model)


def float_zeros(kind: Form, settings: QuantizeWeights) -> bool:
    """Whether zero points are floats in a form: tables and standard ONNX take integers only, and 8 bits need no better."""
    asked = settings.zeros == "float" and not settings.symmetric and settings.bits < 8
    return asked and kind in {"matmul", "unpacked"}


def fit(
    w: Array,
    size: int,
    kind: Form,
    settings: QuantizeWeights,
    moments: Array | None,
    *,
    symmetric: bool,
) -> Blocks:
    """Codes and grids as the settings want them; see `blocks.fit`."""
    return blocks.fit(
        w,
        size,
        settings.bits,
        symmetric=symmetric,
        moments=moments,
        solver=settings.solver,
        float_zeros=float_zeros(kind, settings),
    )


def layout(
    node: ir.Node,
    shape: tuple[int, ...],
    kind: Form,
    matrix: tuple[int, int, bool] | None,
    settings: QuantizeWeights,
) -> tuple[int, int, int, bool]:
    """(rows, values a row, block size, symmetric) of a weight in its form."""
    n, k = matrix[:2] if matrix is not None else storage.row_view(shape, node.op_type)
    size: int = settings.block
    if kind != "unpacked":
        return n, k, size, settings.symmetric
    size = k if settings.bits == 8 else storage.even_blocks(k, size)
    return n, k, size, settings.symmetric or settings.bits == 8


def as_matrix(
    weights: Array, shape: tuple[int, ...], node: ir.Node, matrix: tuple[int, int, bool] | None
) -> Array:
    """(rows, values a row) of a weight, an output a row."""
    if matrix is not None:
        return np.ascontiguousarray(weights.T) if matrix[2] else weights
    return weights.reshape(storage.row_view(shape, node.op_type))
