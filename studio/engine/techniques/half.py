"""What half precision does to a graph: which nodes may be half, their constants narrowed, casts where they meet the rest.

A node is either *half* or *full*. A value has the type of its producer; where a consumer wants the
other type one Cast stands between, shared by all such consumers. Constants whose every user is half
are stored as half. Nodes without weights become half when all their float inputs are.

Source: ONNX operator schemas for which inputs may be float16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir

from studio.engine import edit
from studio.engine.cost import tensor_bytes
from studio.engine.graph import (
    Dims,
    Model,
    Shapes,
    constant,
    copy,
    graphs,
    holder,
    node_key,
    subgraphs,
    type_name,
)
from studio.engine.layers import Listing
from studio.records.steps import Fp16

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = 2.0**-24
# Operators whose type is an attribute, or whose scales decide the type: they stay as they are.
_FULL = frozenset({"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Identity", "Constant"})


# ------------------------------------------------------------------ which nodes may be half


def _schema(node: ir.Node) -> onnx.defs.OpSchema | None:
    if node.domain not in {"", "ai.onnx"}:
        return None
    version = node.version or (node.graph.opset_imports.get("") if node.graph is not None else None) or 1
    return _known_schema(node.op_type, version)


@cache
def _known_schema(op: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, version, "")
    except onnx.defs.SchemaError:
        return None


def _formal(
    parameters: Iterable[onnx.defs.OpSchema.FormalParameter], count: int
) -> list[onnx.defs.OpSchema.FormalParameter]:
    """One formal parameter for each of `count` actual ones; the last one repeats when it is variadic."""
    known = list(parameters)
    return [known[min(index, len(known) - 1)] for index in range(count)] if known else []


def _half_inputs(node: ir.Node) -> list[int]:
    """Positions of the inputs that may be float16."""
    schema = _schema(node)
    if schema is None:
        return []
    formal = _formal(schema.inputs, len(node.inputs))
    return [i for i, p in enumerate(formal) if "tensor(float16)" in p.types and "tensor(float)" in p.types]


def may_be_half(node: ir.Node) -> bool:
    """Whether a node computes in floats, and may as well in half ones."""
    if node.op_type in _FULL or next(subgraphs(node), None) is not None or not _half_inputs(node):
        return False
    schema = _schema(node)
    return schema is not None and all(
        "tensor(float16)" in p.types or "tensor(float)" not in p.types
        for p in _formal(schema.outputs, len(node.outputs))
    )


def kept(settings: Fp16, name: str, op: str) -> bool:
    """Whether a layer's name or operator is among those that the settings keep in fp32."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(op, pattern) for pattern in settings.keep)


def brings_the_runtime_down(node: ir.Node) -> bool:
    """A Transpose of rows and batch, or the MatMul by a constant that reads it.

    With a Cast between the two, which half precision always brings, onnxruntime 1.32 ends with a segmentation fault when
    it fuses them. Found by trying all permutations of two to four axes; all others, and computed factors, are sound.
    """
    if node.op_type == "MatMul":
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        return source is not None and _swaps_rows(source) and constant(node.inputs[1]) is not None
    return _swaps_rows(node) and any(
        user.op_type == "MatMul" and constant(user.inputs[1]) is not None
        for user, _ in node.outputs[0].uses()
    )


def _swaps_rows(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    return node.op_type == "Transpose" and perm is not None and list(perm.as_ints()) == [1, 0, 2]


# ------------------------------------------------------------------ the conversion


@dataclass(frozen=True)
class _Known:
    """Shapes and types by name, growing with the casts."""

    dims: dict[str, Dims]
    types: dict[str, str]

    def note(self, name: str, dtype: ir.DataType, like: str) -> None:
        """The value `name` has this type, and the shape of the value `like`."""
        self.types[name] = type_name(dtype)
        if like in self.dims:
            self.dims[name] = self.dims[like]


@dataclass
class Conversion:
    """A converted copy, its shapes, and the bytes that each layer saved."""

    model: Model
    shapes: Shapes
    saved: dict[str, int] = field(default_factory=dict)
    limited: int = 0


def convert(
    listing: Listing, chosen: list[str], excluded: set[str], settings: Fp16, hot: frozenset[str]
) -> Conversion:
    """Make the chosen layers half in a copy of the model. Weights are converted when they are read.

    The model is converted as a whole when every layer is either chosen or `excluded` by a refusal.
    """
    model = copy(listing.model)
    keys = {listing.nodes[name].record.key: name for name in chosen}
    refused = {layer.key for layer in listing.layers} - set(keys)
    whole = bool(chosen) and {layer.name for layer in listing.layers} <= set(chosen) | excluded
    half = _half_nodes(model, listing.shapes, set(keys), refused, settings, hot, whole=whole)
    known = _Known(dict(listing.shapes.dims_by_name), dict(listing.shapes.types_by_name))
    result = Conversion(model, Shapes(dims_by_name=known.dims, types_by_name=known.types))
    _store_constants(model, half, keys, result, known)
    _place_casts(model, half, listing.shapes, known, keep_io=settings.keep_io or not whole)
    return result


def _half_nodes(
    model: Model,
    shapes: Shapes,
    chosen: set[str],
    refused: set[str],
    settings: Fp16,
    hot: frozenset[str],
    *,
    whole: bool,
) -> set[ir.Node]:
    """Chosen layers, and the weightless nodes that go with them.

    In a model that is converted as a whole every node that may be half is; otherwise only those whose
    computed float inputs all come from half nodes, so that no cast is added for them.
    """
    half: set[ir.Node] = set()
    for _path, graph in graphs(model):
        for node in graph:
            key = node_key(node)
            if key in chosen:
                half.add(node)
            elif (
                key in refused
                or not may_be_half(node)
                or kept(settings, node.name or "", node.op_type)
                or brings_the_runtime_down(node)
            ):
                continue
            elif _fits(node) and not (hot & {v.name for v in (*node.inputs, *node.outputs) if v is not None}):
                floats = [
                    v for i in _half_inputs(node) if (v := node.inputs[i]) and shapes.dtype(v) == "float32"
                ]
                computed = [v.producer() in half for v in floats if holder(v) is None]
                if (whole and floats) or (computed and all(computed)):
                    half.add(node)
    return half


def _fits(node: ir.Node) -> bool:
    """Whether a weightless node's constants survive the half range.

    Bounds and attention masks do when they are limited to ±65504; a large variance or factor does not.
    """
    for value in node.inputs:
        tensor = constant(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or not tensor.size or not _exceeds(tensor):
            continue
        bound = node.op_type in {"Clip", "Max", "Min"}
        mask = (
            node.op_type in {"Add", "Where", "Mul", "Pad", "Expand"}
            and float(tensor.numpy().max()) <= LARGEST
        )
        if not bound and not mask:
            return False
    return True


def _users(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Users of a constant, those behind Identity nodes included."""
    for node, position in value.uses():
        if node.op_type == "Identity":
            yield from _users(node.outputs[0])
        else:
            yield node, position


def _store_constants(
    model: Model, half: set[ir.Node], layers: dict[str, str], result: Conversion, known: _Known
) -> None:
    """Store a float constant as half where every user is half and may take it so."""
    for _path, graph in graphs(model):
        held = [*graph.initializers.values(), *(n.outputs[0] for n in graph if n.op_type == "Constant")]
        for value in held:
            tensor = constant(value)
            users = list(_users(value))
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or value.is_graph_output() or not users:
                continue
            if any(node not in half or position not in _half_inputs(node) for node, position in users):
                continue
            owner = next((layers[node_key(n)] for n, _p in users if node_key(n) in layers), "")
            if not owner and tensor.size and _exceeds(tensor):
                result.limited += 1
            narrow = _narrow(tensor)
            if owner:
                result.saved[owner] = result.saved.get(owner, 0) + tensor_bytes(tensor) - tensor_bytes(narrow)
            edit.set_constant(value, narrow)
            for passed in _passed_on(value):
                passed.type = ir.TensorType(ir.DataType.FLOAT16)
                known.note(passed.name or "", ir.DataType.FLOAT16, passed.name or "")


def _passed_on(value: ir.Value) -> Iterator[ir.Value]:
    """Outputs of the Identity nodes that hand a constant on (exporters share equal weights so)."""
    for node, _position in value.uses():
        if node.op_type == "Identity":
            yield node.outputs[0]
            yield from _passed_on(node.outputs[0])


def _exceeds(tensor: ir.TensorProtocol) -> bool:
    return not float(np.abs(tensor.numpy()).max()) <= LARGEST


def _narrow(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor as float16, made when it is read.

    Finite values beyond the range (attention masks) become ±65504, tiny ones (epsilons) the smallest number.
    """

    def read() -> ir.TensorProtocol:
        wide = tensor.numpy()
        finite = np.isfinite(wide)
        values = np.where(finite, np.clip(wide, -LARGEST, LARGEST), wide)
        tiny = (values != 0) & (np.abs(values) < SMALLEST)
        values = np.where(tiny, np.copysign(SMALLEST, values), values)
        return ir.Tensor(values.astype(np.float16), name=tensor.name)

    return ir.LazyTensor(
        read, dtype=ir.DataType.FLOAT16, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name
    )


def _place_casts(model: Model, half: set[ir.Node], shapes: Shapes, known: _Known, *, keep_io: bool) -> None:
    """Retype the outputs of half nodes and cast wherever a user wants the other type."""
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in half:
        for value in node.outputs:
            if value.name and shapes.dtype(value) in {"float32", None} and _floats_out(node, value):
                value.type = ir.TensorType(ir.DataType.FLOAT16)
                known.note(value.name, ir.DataType.FLOAT16, value.name)
    if not keep_io:
        _narrow_inputs(model, shapes, known)
    for path, graph in list(graphs(model)):
        for node in list(graph):
            if node.op_type == "Identity" and constant(node.inputs[0]) is not None:
                continue  # hands a constant on in whatever type it is stored
            wanted = set(_half_inputs(node)) if node in half else set()
            for position, source in enumerate(node.inputs):
                if source is None:
                    continue
                target = _mismatch(source, shapes, half=position in wanted)
                if target is not None:
                    node.replace_input_with(position, _cast(model, source, target, casts, known))
        for index, value in enumerate(graph.outputs):
            if value.dtype == ir.DataType.FLOAT16 and value.producer() in half and (keep_io or path):
                _cast_output(model, graph, index, value, known)


def _floats_out(node: ir.Node, value: ir.Value) -> bool:
    """Whether an output follows the node's float type (a mask or an index does not)."""
    schema = _schema(node)
    assert schema is not None
    formal = _formal(schema.outputs, len(node.outputs))[value.index() or 0]
    return "tensor(float16)" in formal.types and "tensor(float)" in formal.types


def _narrow_inputs(model: Model, shapes: Shapes, known: _Known) -> None:
    for value in model.graph.inputs:
        if shapes.dtype(value) == "float32" and not value.is_initializer():
            value.type = ir.TensorType(ir.DataType.FLOAT16)
            known.note(value.name or "", ir.DataType.FLOAT16, value.name or "")


def _mismatch(value: ir.Value, shapes: Shapes, *, half: bool) -> ir.DataType | None:
    """The type that a cast must give, or None where value and user agree."""
    held = constant(value)
    is_half = (held.dtype if held is not None else value.dtype) == ir.DataType.FLOAT16
    is_full = (held is not None and held.dtype == ir.DataType.FLOAT) or (
        held is None and not is_half and shapes.dtype(value) == "float32"
    )
    if half and is_full:
        return ir.DataType.FLOAT16
    if not half and is_half and shapes.dtype(value) in {"float32", None}:
        return ir.DataType.FLOAT
    return None


def _cast(
    model: Model,
    value: ir.Value,
    target: ir.DataType,
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value],
    known: _Known,
) -> ir.Value:
    """The one cast of `value` to `target`, made behind its producer when first wanted."""
    if (value, target) not in casts:
        suffix = "half" if target == ir.DataType.FLOAT16 else "full"
        node = edit.make_node(
            model, "Cast", [value], {"to": int(target)}, name=f"{value.name}_{suffix}", dtype=target
        )
        result = node.outputs[0]
        result.shape = value.shape
        known.note(result.name or "", target, value.name or "")
        producer = value.producer()
        if producer is not None:
            edit.owner(producer).insert_after(producer, node)
        else:
            graph = value.graph
            assert graph is not None
            first = next(iter(graph))
            graph.insert_before(first, node)
        casts[value, target] = result
    return casts[value, target]


def _cast_output(model: Model, graph: ir.Graph, index: int, value: ir.Value, known: _Known) -> None:
    """Give a graph's output back its float type, under its old name."""
    producer = value.producer()
    assert producer is not None
    producer.name = producer.name or node_key(producer)
    name = value.name or ""
    node = edit.make_node(
        model, "Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{name}_full", dtype=ir.DataType.FLOAT
    )
    node.outputs[0].shape = value.shape
    value.name, node.outputs[0].name = node.outputs[0].name, name
    known.note(value.name or "", ir.DataType.FLOAT16, name)
    known.note(name, ir.DataType.FLOAT, name)
    graph.outputs[index] = node.outputs[0]
    graph.insert_after(producer, node)
