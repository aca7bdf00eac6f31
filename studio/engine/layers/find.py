"""Finding the layers of a model: every node that owns weights, as one layer with all that belongs to it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from studio.engine.cost import activation_bytes, constant_cost, macs, model_cost
from studio.engine.graph import (
    Model,
    Shapes,
    constant,
    dynamic_dimensions,
    graphs,
    holder,
    infer_shapes,
    named_shape,
    node_key,
    real_inputs,
    type_name,
)
from studio.engine.layers.around import Around, around
from studio.engine.layers.forms import Activations, Form, form_of, input_of
from studio.engine.layers.precision import precision
from studio.engine.layers.weights import Source, source
from studio.records.model import Cost, Layer, TensorInfo

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
_CODES = {
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.FLOAT8E4M3FN,
}  # fmt: skip
# Where the automatic sizes do not fit a model, these multiples of them may.
_OTHER_SIZES = (2, 4, 8, 16, 64, 0.5, 0.25)
_MAX_TRIED_VALUES = 1_000_000


@dataclass(frozen=True)
class LayerNode:
    """A layer together with the graph objects that it is made of.

    Attributes:
        record: what the front sees.
        node: the main node.
        weight: the value that holds the main weight: an initializer or a Constant's output. It may
            lie in a graph around the node's.
        bias: likewise; None without one.
        out_axis / in_axis: of the weight as stored; None where it has none (packed forms, reshaped weights).
        quantized: the weights are stored as integers.
        path: of its graph, '' for the main one.
        position: which input of the node takes the main weight.
        weights: all weight matrices (an LSTM has two), the main one first.
        constants: everything stored that belongs to the layer, bias, scales and zero points included.
        between: nodes between the stored weight and the main node, the nearest to the node first.
        perm: axis of the stored weight for every axis that the node sees; None = as stored.
        zero_point: of quantized weights; None without one.
        foldable: weights are computed from constants, and could be stored as computed (`folding`).
    """

    record: Layer
    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None = None
    out_axis: int | None = None
    in_axis: int | None = None
    quantized: bool = False
    path: str = ""
    position: int = 1
    weights: tuple[ir.Value, ...] = ()
    constants: tuple[ir.Value, ...] = ()
    between: tuple[ir.Node, ...] = ()
    perm: tuple[int, ...] | None = None
    zero_point: ir.Value | None = None
    foldable: bool = False


@dataclass(frozen=True)
class Listing:
    """A model with its layers and costs at chosen input sizes.

    Attributes:
        layers: in graph order, those of subgraphs after their holder's graph.
        nodes: by layer name.
        cost: of the whole model, weights outside layers included.
        input_sizes: the size chosen for every dynamic dimension, by name.
        inputs / outputs: those that a caller feeds and gets; old models name their weights among the inputs, too.
    """

    model: Model
    shapes: Shapes
    layers: tuple[Layer, ...]
    nodes: Mapping[str, LayerNode]
    cost: Cost
    input_sizes: Mapping[str, int] = field(default_factory=dict)
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()


def list_layers(model: Model, input_sizes: Mapping[str, int] | None = None) -> Listing:
    """Find the layers of a model and what they cost.

    Args:
        model: left as it is.
        input_sizes: of dynamic dimensions by name; those not named get a likely size.
    """
    sizes, shapes = _sizes_and_shapes(model, input_sizes or {})
    found = list(_find(model))
    cost = model_cost(model, shapes)
    charged: set[int] = set()
    owners: dict[int, list[str]] = {}
    for parts in found:
        for weight in parts.weights:
            owners.setdefault(id(weight), []).append(parts.name)
    layers = [_layer(parts, shapes, cost, charged, owners) for parts in found]
    return Listing(
        model=model,
        shapes=shapes,
        layers=tuple(layer.record for layer in layers),
        nodes={layer.record.name: layer for layer in layers},
        cost=cost,
        input_sizes=sizes,
        inputs=tuple(tensor_info(v) for v in real_inputs(model)),
        outputs=tuple(tensor_info(v) for v in model.graph.outputs),
    )


def tensor_info(value: ir.Value) -> TensorInfo:
    """A graph input or output as the front sees it; every dynamic dimension has a name."""
    return TensorInfo(name=value.name or "", dtype=type_name(value.dtype), shape=named_shape(value))


def _sizes_and_shapes(model: Model, given: Mapping[str, int]) -> tuple[dict[str, int], Shapes]:
    """The chosen sizes and the shapes there; where nobody chose, sizes are tried until the model fits them."""
    likely = dynamic_dimensions(model)
    sizes = {**likely, **{name: size for name, size in given.items() if name in likely}}
    shapes = infer_shapes(model, sizes)
    free = [name for name in likely if name not in given and likely[name] > 1]
    unknown = _unknown(model, shapes)
    for factor in _OTHER_SIZES if free and unknown else ():
        tried = {**sizes, **{name: max(1, int(likely[name] * factor)) for name in free}}
        if _input_values(model, tried) > _MAX_TRIED_VALUES:
            continue
        shapes_there = infer_shapes(model, tried)
        if (left := _unknown(model, shapes_there)) < unknown:
            sizes, shapes, unknown = tried, shapes_there, left
        if not unknown:
            break
    return sizes, shapes


def _input_values(model: Model, sizes: Mapping[str, int]) -> int:
    """How many numbers all inputs hold at the given sizes."""
    shapes = [named_shape(v) or () for v in real_inputs(model)]
    return sum(math.prod(sizes.get(d, 1) if isinstance(d, str) else d for d in shape) for shape in shapes)


def _unknown(model: Model, shapes: Shapes) -> int:
    """How many values of operators that own weights have no known shape, or hold nothing."""
    count = 0
    for _path, graph in graphs(model):
        for node in graph:
            if form_of(node) is not None:
                dims = shapes.of(node.outputs[0])
                count += dims is None or not all(isinstance(d, int) and d > 0 for d in dims)
    return count


# ------------------------------------------------------------------ one node


@dataclass(frozen=True)
class _Parts:
    """A node that owns weights, and everything that belongs to it."""

    name: str
    path: str
    node: ir.Node
    form: Form
    position: int
    main: Source
    others: tuple[Source, ...]
    bias: Source | None
    around: Around

    @property
    def weights(self) -> tuple[ir.Value, ...]:
        """All weight matrices, the main one first."""
        return (self.main.value, *(s.value for s in self.others))

    @property
    def constants(self) -> tuple[ir.Value, ...]:
        """Everything stored that belongs to the layer, each once."""
        sources = (self.main, *self.others, *((self.bias,) if self.bias is not None else ()))
        given = [v for p in self.form.parts if (v := holder(input_of(self.node, p))) is not None]
        values = [v for s in sources for v in (s.value, *s.parts)] + given + self.around.scales
        held = [h for v in values if (h := holder(v)) is not None]
        return tuple({id(v): v for v in held}.values())

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The main node and those that store its weights and quantize its activations."""
        sources = (self.main, *self.others, *((self.bias,) if self.bias is not None else ()))
        return (self.node, *(n for s in sources for n in s.between), *self.around.nodes)


def _find(model: Model) -> Iterator[_Parts]:
    """The layers of all graphs, each with a name of its own."""
    taken: set[str] = set()
    for path, graph in graphs(model):
        named = Counter(n.name for n in graph if n.name)
        for node in graph:
            form = form_of(node)
            position, main = (0, None) if form is None else _main_weight(node, form)
            if form is None or main is None or not _is_weight(form, main):
                continue
            own = node.name if node.name and named[node.name] == 1 else node_key(node)
            name = base = "/".join(filter(None, (path, own)))
            number = 1
            while name in taken:
                number += 1
                name = f"{base}#{number}"
            taken.add(name)
            others = tuple(s for p in form.weights[1:] if (s := source(input_of(node, p))) is not None)
            bias = None if form.bias is None else source(input_of(node, form.bias))
            yield _Parts(name, path, node, form, position, main, others, bias, around(node, form))


def _layer(
    parts: _Parts, shapes: Shapes, total: Cost, charged: set[int], owners: Mapping[int, list[str]]
) -> LayerNode:
    """The layer that the parts make.

    Args:
        parts: what belongs to it.
        shapes: at the chosen input sizes.
        total: of the model.
        charged: constants that another layer pays for already; this one's are added.
        owners: names of the layers that use each weight matrix.
    """
    node, form, main, constants = parts.node, parts.form, parts.main, parts.constants
    tensor = constant(main.value)
    assert tensor is not None
    stored = tuple(int(d) for d in tensor.shape.numpy())
    dtype = type_name(tensor.dtype)
    out_axis, in_axis = _axes(node, form, parts.position, main, len(stored))
    cost = constant_cost(v for v in constants if id(v) not in charged)
    cost += Cost(macs=macs(node, shapes), activation_bytes=activation_bytes(node, shapes))
    charged.update(id(v) for v in constants)
    foldable = _foldable(parts, shapes)
    activations: Activations = form.activations if form.activations != "float" else parts.around.activations
    record = Layer(
        name=parts.name,
        key=node_key(node),
        op=form.op,
        operators=tuple(dict.fromkeys(n.op_type for n in parts.nodes)),
        nodes=tuple(dict.fromkeys(node_key(n) for n in parts.nodes)),
        weight=main.value.name or "",
        weight_shape=_computed_shape(parts, shapes) or _float_shape(node, form, stored),
        dtype=dtype,
        precision=precision(dtype, _bits(node, form, main, stored), activations, fake=main.fake_quantized),
        cost=cost,
        share=cost.bytes / max(1, total.bytes),
        shared_with=tuple(dict.fromkeys(n for w in parts.weights for n in owners[id(w)] if n != parts.name)),
        untreatable="" if foldable else _untreatable(main, tensor),
        attributes=tuple((name, _words(attr)) for name, attr in node.attributes.items()),
        input_shape=shapes.of(input_of(node, 0 if parts.position else 1)),
        output_shape=shapes.of(node.outputs[0]),
    )
    return LayerNode(
        record=record,
        node=node,
        weight=main.value,
        bias=None if parts.bias is None else parts.bias.value,
        out_axis=out_axis,
        in_axis=in_axis,
        quantized=tensor.dtype not in _FLOATS and not dtype.startswith("float"),
        path=parts.path,
        position=parts.position,
        weights=parts.weights,
        constants=constants,
        between=main.between,
        perm=main.perm,
        zero_point=_zero_point(node, main, parts.around.after),
        foldable=foldable,
    )


def _bits(node: ir.Node, form: Form, main: Source, stored: tuple[int, ...]) -> int:
    """Of packed weights; 0 for others. Weights that are shifted apart lie in planes, one for each bit."""
    attr = node.attributes.get(form.bits) if form.bits else None
    if attr is not None:
        return int(attr.as_int())
    return stored[0] if any(use.node.op_type == "BitShift" for use in main.value.uses()) else 0


def _main_weight(node: ir.Node, form: Form) -> tuple[int, Source | None]:
    """Which input takes the main weight, and where that lies."""
    position = form.weights[0]
    main = source(input_of(node, position))
    if not form.either:
        return position, main
    left = source(input_of(node, 0))
    if main is not None:
        return (1, None) if left is not None else (1, main)  # two constants: a constant, no layer
    return 0, left


def _is_weight(form: Form, main: Source) -> bool:
    """Tables of sizes and indices are gathered from, too; only tables of numbers are embeddings."""
    tensor = constant(main.value)
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return False
    if form.op == "Gather" and not form.bits:
        return len(tensor.shape) >= 2 and (tensor.dtype in _FLOATS | _CODES or main.dequantized)
    return len(tensor.shape) >= 1 and tensor.dtype not in {ir.DataType.INT64, ir.DataType.BOOL}


def _axes(node: ir.Node, form: Form, position: int, main: Source, rank: int) -> tuple[int | None, int | None]:
    """(out, in) axes of the stored weight."""
    if main.computed:
        return None, None
    seen = len(main.perm) if main.perm is not None else rank
    out, into = form.axes(node, seen)
    if form.either and position == 0:  # weight × activations: rows are outputs
        flipped = node.attributes.get("transA")
        out, into = (seen - 2, seen - 1) if seen >= 2 else (None, 0)
        if flipped is not None and flipped.value:
            out, into = into, out
    if main.perm is not None:
        out = None if out is None else main.perm[out]
        into = None if into is None else main.perm[into]
    return out, into


def _foldable(parts: _Parts, shapes: Shapes) -> bool:
    """Whether some weights are computed from float constants, and would take no more room as computed."""
    sources = {p: source(input_of(parts.node, p)) for p in (parts.position, *parts.form.weights[1:])}
    computed = {p: s for p, s in sources.items() if s is not None and s.computed}
    if not computed or any(s is not None and s.dequantized for s in sources.values()):
        return False
    for position, made in computed.items():
        dims = shapes.of(input_of(parts.node, position))
        if dims is None or not all(isinstance(d, int) for d in dims):
            return False
        if math.prod(d for d in dims if isinstance(d, int)) > made.numbers:
            return False
    return True


def _computed_shape(parts: _Parts, shapes: Shapes) -> tuple[int, ...]:
    """Of weights that are computed from constants; () for others, and where it is not known."""
    dims = shapes.of(input_of(parts.node, parts.position)) if parts.main.computed else None
    sizes = tuple(d for d in dims or () if isinstance(d, int))
    return sizes if dims is not None and len(sizes) == len(dims) else ()


def _float_shape(node: ir.Node, form: Form, stored: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the weight's float form: packed forms know it from attributes."""
    if form.bits and "K" in node.attributes and "N" in node.attributes:
        return node.attributes["K"].as_int(), node.attributes["N"].as_int()
    return stored


def _zero_point(node: ir.Node, main: Source, after: tuple[ir.Node, ...]) -> ir.Value | None:
    for between in (*main.between, *after):
        if between.op_type == "DequantizeLinear":
            return input_of(between, 2)
    points = {"QLinearConv": 5, "ConvInteger": 3, "QLinearMatMul": 5, "MatMulInteger": 3, "QGemm": 5}
    points |= {"DynamicQuantizeMatMul": 3, "MatMulIntegerToFloat": 5}
    return input_of(node, points[node.op_type]) if node.op_type in points else None


def _untreatable(main: Source, tensor: ir.TensorProtocol) -> str:
    if main.computed:
        return f"its weights are computed in the graph ({main.computed})"
    if tensor.size == 0:
        return "its weights are empty"
    return ""


def _words(attr: ir.Attr) -> str:
    """An attribute for the inspector."""
    if attr.is_ref():
        return f"@{attr.ref_attr_name}"
    match attr.type:
        case ir.AttributeType.GRAPH | ir.AttributeType.GRAPHS:
            return "graph"
        case ir.AttributeType.TENSOR | ir.AttributeType.TENSORS:
            return "tensor"
        case ir.AttributeType.INTS | ir.AttributeType.FLOATS:
            return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in attr.value)
        case _:
            return str(attr.value)
