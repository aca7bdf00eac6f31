"""Exact simplifications that quantization wants done first: fewer nodes, the same function.

Constant subgraphs are computed once; zero padding, batch normalization and per-channel scales and shifts move into the
convolution before or after them; a spatial mean becomes a global average pool, which has an integer kernel.
Nodes that own weights keep their names and first outputs, so that layers keep theirs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit, execute
from studio.engine.graph import (
    Model,
    Shapes,
    constant,
    copy,
    holder,
    is_constant_node,
    raise_opset,
    subgraphs,
)

Array: TypeAlias = npt.NDArray[Any]

# Operators whose output is not a function of their inputs alone, or that carry types we cannot evaluate.
_NEVER_FOLDED = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}
_LARGEST_FOLDED = 65_536
_SMALL = 1024  # numbers that may be stored twice


def simplify(model: Model, opset: int = 13, shapes: Shapes | None = None) -> Model:
    """A copy on at least `opset` that computes the same with fewer nodes (main graph; float rounding apart).

    Args:
        model: left untouched.
        opset: of the result, at least.
        shapes: of the model's values; tell which means are spatial ones.
    """
    result = raise_opset(model, opset) if model.opset < opset else copy(model)
    _drop_identities(result)
    _fold_constants(result, _read_as_they_are(result))
    for node in list(result.graph):
        match node.op_type:
            case "ReduceMean":
                _mean_as_pool(result, node, shapes)
            case "HardSigmoid" | "HardSwish":
                _expand_hard(result, node)
            case "Pad":
                _pad_into_conv(node)
            case "BatchNormalization":
                _norm_into_conv(result, node)
            case "Mul" | "Div" | "Add" | "Sub":
                _affine_into_conv(result, node)
            case _:
                pass
    for node in list(result.graph):  # the shifts that expanding has made
        if node.op_type == "Add":
            _affine_into_conv(result, node)
    edit.remove_dead(result)
    if shapes is not None:
        _learn_shapes(result, shapes)
    return result


def _learn_shapes(model: Model, shapes: Shapes) -> None:
    """Values that expanding has made are shaped as what they are made of."""
    for node in model.graph:
        made = node.outputs[0]
        if node.op_type in {"Add", "Clip", "Mul"} and made.name and shapes.of(made) is None:
            known = [dims for v in node.inputs if v is not None and (dims := shapes.of(v)) is not None]
            if known:
                shapes.dims_by_name[made.name] = max(known, key=len)


def tidy(model: Model, keep: Collection[str] = ()) -> Model:
    """A copy without identities, with constants computed and batch normalisation in the convolutions before it.

    Args:
        model: left untouched.
        keep: names of constants that stay under these names, so that what is computed from them stays in the graph;
            a convolution's weights keep theirs also when a normalisation moves in.
    """
    result = copy(model)
    _drop_identities(result)
    _fold_constants(result, frozenset(keep))
    edit.remove_dead(result)  # so that a weight that was only asked for its shape has one user
    for node in list(result.graph):
        if node.op_type == "BatchNormalization":
            _norm_into_conv(result, node)
    edit.remove_dead(result)
    return result


def array(value: ir.Value | None) -> Array | None:
    """The numbers of a constant value; None when it is computed or left out."""
    tensor = constant(value)
    return None if tensor is None else tensor.numpy()


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that uses `value` once; None where there are more, or where it leaves the graph."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses))[0]


def _drop_identities(model: Model) -> None:
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if source is None or node.outputs[0].is_graph_output():
            continue
        like = node.inputs[1] if node.op_type == "CastLike" else None
        held = constant(source)
        dtype = source.dtype if held is None else held.dtype
        same = like is not None and dtype is not None and dtype == like.dtype
        if node.op_type != "Identity" and not same:
            continue
        edit.replace_uses(node.outputs[0], source)
        model.graph.remove(node, safe=True)


def _read_as_they_are(model: Model) -> frozenset[str]:
    """Large constants that stay in the file in any case: what is computed from them would be stored beside them."""
    return frozenset(
        value.name or ""
        for value in (
            *model.graph.initializers.values(),
            *(n.outputs[0] for n in model.graph if is_constant_node(n)),
        )
        if (tensor := constant(value)) is not None
        and tensor.size > _SMALL
        and any(any(constant(v) is None for v in user.inputs if v is not None) for user, _ in value.uses())
    )


def _fold_constants(model: Model, keep: Collection[str] = ()) -> None:
    """Evaluate, in one run of the runtime, everything that depends on constants alone, but not on those in `keep`."""
    graph = model.graph
    known: set[ir.Value] = set()
    folded: list[ir.Node] = []
    for node in graph:
        if is_constant_node(node) or node.op_type in _NEVER_FOLDED or any(True for _ in subgraphs(node)):
            continue
        if node.domain not in {"", "ai.onnx"} or node.op_type in {"DequantizeLinear", "QuantizeLinear"}:
            continue
        given = [v for v in node.inputs if v is not None]
        # Of a constant whose type or shape alone is asked for nothing is lost.
        values = {"CastLike": given[:1], "Shape": [], "Size": []}.get(node.op_type, given)
        if any(v.name in keep for v in values):
            continue
        if given and all(v in known or constant(v) is not None for v in given):
            known.update(node.outputs)
            folded.append(node)
    edge = [
        v
        for node in folded
        for v in node.outputs
        if v.is_graph_output() is False and any(user not in folded for user, _ in v.uses())
    ]
    if not edge:
        return
    for value, result in zip(edge, _evaluate(model, folded, edge), strict=True):
        if result.size <= _LARGEST_FOLDED:
            edit.replace_uses(value, edit.add_constant(model, graph, f"{value.name}_folded", result))


def _evaluate(model: Model, nodes: list[ir.Node], wanted: list[ir.Value]) -> list[Array]:
    """What nodes that depend on constants alone make, run as a model of their own."""
    values: dict[ir.Value | None, ir.Value | None] = {None: None}
    stored: list[ir.Value] = []
    copies: list[ir.Node] = []
    for node in nodes:
        for value in node.inputs:
            if value not in values and value is not None:
                own = ir.Value(name=value.name, const_value=constant(value))
                values[value] = own
                stored.append(own)
        outputs = [ir.Value(name=v.name, type=v.type) for v in node.outputs]
        values.update(zip(node.outputs, outputs, strict=True))
        given = [values[v] for v in node.inputs]
        copies.append(ir.Node("", node.op_type, given, node.attributes.values(), outputs=outputs))
    graph = ir.Graph(
        [], [values[v] for v in wanted], nodes=copies, initializers=stored,  # type: ignore[misc]
        opset_imports=model.graph.opset_imports, name="constants",
    )  # fmt: skip
    part = Model(ir.Model(graph, ir_version=model.ir.ir_version or 8))
    return [np.asarray(a) for a in execute.run(execute.session(part, threads=1, optimize="off"), {})]


def ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    """An attribute that is a list of integers."""
    attribute = node.attributes.get(name)
    return default if attribute is None else [int(i) for i in attribute.as_ints()]


def _mean_as_pool(model: Model, node: ir.Node, shapes: Shapes | None) -> None:
    """A mean over all spatial axes is a global average pool."""
    source = node.inputs[0]
    shape = None if source is None or shapes is None else shapes.of(source)
    axes = array(node.inputs[1]) if len(node.inputs) > 1 else None
    spatial = sorted(ints(node, "axes", []) if axes is None else [int(a) for a in axes.ravel()])
    if source is None or shape is None or len(shape) < 3:
        return
    if spatial not in (list(range(2, len(shape))), list(range(2 - len(shape), 0))):
        return
    new = [edit.make_node(model, "GlobalAveragePool", [source], name=f"{node.name or 'mean'}_pool")]
    keep = node.attributes.get("keepdims")
    if keep is not None and keep.as_int() == 0:
        new.append(edit.make_node(model, "Flatten", [new[0].outputs[0]], {"axis": 1}, name="flatten"))
    edit.replace_node(node, new, [new[-1].outputs[0]])


def _expand_hard(model: Model, node: ir.Node) -> None:
    """HardSigmoid(x) = α · clip(x + β/α, 0, 1/α); HardSwish(x) = x · HardSigmoid(x; 1/6, 1/2).

    The integer kernels of Add and Mul then compute both: clipping is what a grid's ends do anyway.
    """
    source = node.inputs[0]
    if source is None:
        return
    alpha, beta = 1 / 6, 0.5
    if node.op_type == "HardSigmoid":
        alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 0.2
        beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 0.5
    if alpha <= 0:
        return

    def number(x: float) -> ir.Value:
        return edit.add_constant(model, edit.owner(node), "hard", np.asarray(x, np.float32))

    base = node.name or node.op_type
    shifted = edit.make_node(model, "Add", [source, number(beta / alpha)], name=f"{base}_shift")
    gate = edit.make_node(
        model, "Clip", [shifted.outputs[0], number(0), number(1 / alpha)], name=f"{base}_clip"
    )
    new = [shifted, gate]
    if node.op_type == "HardSwish":
        new.append(edit.make_node(model, "Mul", [source, gate.outputs[0]], name=f"{base}_gate"))
    new.append(edit.make_node(model, "Mul", [new[-1].outputs[0], number(alpha)], name=f"{base}_scale"))
    edit.replace_node(node, new, [new[-1].outputs[0]])


def _pad_into_conv(node: ir.Node) -> None:
    """Zero padding of spatial axes becomes the convolution's own."""
    source, conv = node.inputs[0], sole_consumer(node.outputs[0])
    mode = node.attributes.get("mode")
    if source is None or conv is None or conv.op_type != "Conv" or conv.inputs[0] is not node.outputs[0]:
        return
    if (mode is not None and mode.as_string() != "constant") or len(node.inputs) < 2 or len(node.inputs) > 3:
        return
    fill = array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(())
    pads = array(node.inputs[1])
    auto = conv.attributes.get("auto_pad")
    if pads is None or fill is None or fill.any() or (auto is not None and auto.as_string() != "NOTSET"):
        return
    rank = len(pads) // 2
    begin, end = pads[:rank], pads[rank:]
    if (pads < 0).any() or begin[:2].any() or end[:2].any():
        return
    own = ints(conv, "pads", [0] * (2 * (rank - 2)))
    conv.attributes["pads"] = ir.AttrInt64s(
        "pads", [int(a + b) for a, b in zip(own, [*begin[2:], *end[2:]], strict=True)]
    )
    conv.replace_input_with(0, source)


def _producer_conv(value: ir.Value | None) -> ir.Node | None:
    """The convolution with constant weights of its own whose output only `value`'s reader uses."""
    node = None if value is None else value.producer()
    if (
        node is None
        or value is None
        or node.op_type not in {"Conv", "ConvTranspose"}
        or sole_consumer(value) is None
    ):
        return None
    if array(node.inputs[1]) is None or (
        len(node.inputs) > 2 and node.inputs[2] is not None and array(node.inputs[2]) is None
    ):
        return None
    held = holder(node.inputs[1])
    return node if held is not None and len(held.uses()) == 1 else None


def _norm_into_conv(model: Model, node: ir.Node) -> None:
    """Y = (x − mean) / √(var + ε) · scale + shift, per channel (ONNX BatchNormalization, inference form)."""
    conv = _producer_conv(node.inputs[0])
    values = [array(v) for v in node.inputs[1:5]]
    if conv is None or any(v is None for v in values) or any(v.uses() for v in node.outputs[1:]):
        return
    if node.outputs[0].is_graph_output():
        return
    scale, shift, mean, var = (np.asarray(v, np.float64) for v in values)
    attribute = node.attributes.get("epsilon")
    factor = scale / np.sqrt(var + (1e-5 if attribute is None else attribute.as_float()))
    _rescale(model, conv, factor, shift - mean * factor)
    _bypass(node, 0)


def _affine_into_conv(model: Model, node: ir.Node) -> None:
    """A constant factor or summand per channel behind a convolution becomes part of it."""
    if node.outputs[0].is_graph_output():
        return
    for position in (0, 1):
        other = array(node.inputs[1 - position])
        conv = _producer_conv(node.inputs[position])
        if conv is None or other is None or (position == 1 and node.op_type in {"Div", "Sub"}):
            continue
        channels = _channels(conv)
        vector = _per_channel(other, channels, _rank(conv))
        if vector is None:
            continue
        one, zero = np.ones(channels), np.zeros(channels)
        match node.op_type:
            case "Mul":
                _rescale(model, conv, vector, zero)
            case "Div":
                if not vector.all():
                    return
                _rescale(model, conv, one / vector, zero)
            case "Add":
                _rescale(model, conv, one, vector)
            case _:
                _rescale(model, conv, one, -vector)
        _bypass(node, position)
        return


def _rank(conv: ir.Node) -> int:
    weight = constant(conv.inputs[1])
    assert weight is not None
    return len(weight.shape)


def _channels(conv: ir.Node) -> int:
    weight = constant(conv.inputs[1])
    assert weight is not None
    group = conv.attributes.get("group")
    if conv.op_type == "Conv":
        return int(weight.shape.numpy()[0])
    return int(weight.shape.numpy()[1]) * (1 if group is None else group.as_int())


def _per_channel(values: Array, channels: int, rank: int) -> Array | None:
    """A constant that broadcasts over everything but the channel axis, as one number a channel."""
    if values.size == 1 and values.ndim <= rank:
        return np.full(channels, float(values.ravel()[0]))
    wanted = (channels, *([1] * (rank - 2)))
    shape = values.shape[1:] if values.ndim == rank and values.shape[0] == 1 else values.shape
    return values.astype(np.float64).ravel() if shape == wanted else None


def _rescale(model: Model, conv: ir.Node, factor: Array, shift: Array) -> None:
    """Let `conv` compute factor · y + shift, per output channel, instead of y."""
    weight = np.asarray(array(conv.inputs[1]))
    bias = array(conv.inputs[2]) if len(conv.inputs) > 2 else None
    group = conv.attributes.get("group")
    groups = 1 if group is None else group.as_int()
    if conv.op_type == "Conv":
        scaled = weight * factor.reshape(-1, *([1] * (weight.ndim - 1)))
    else:  # (in, out / groups, ...): input channels of one group share its factors
        per_group = np.repeat(factor.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        scaled = weight * per_group.reshape(weight.shape[0], -1, *([1] * (weight.ndim - 2)))
    edit.set_constant(conv.inputs[1], scaled.astype(weight.dtype))  # type: ignore[arg-type]
    new = (0.0 if bias is None else bias.astype(np.float64)) * factor + shift
    set_bias(model, conv, new.astype(weight.dtype))


def set_bias(model: Model, layer: ir.Node, bias: Array) -> None:
    """Give a Conv, ConvTranspose or Gemm this bias (in place of the one it has)."""
    graph = edit.owner(layer)
    value = edit.add_constant(model, graph, f"{layer.name or layer.op_type}_bias", bias)
    if len(layer.inputs) > 2:
        layer.replace_input_with(2, value)
    else:
        layer.resize_inputs(3)
        layer.replace_input_with(2, value)


def _bypass(node: ir.Node, position: int) -> None:
    """Take a node out; its input at `position` takes the place of its output."""
    source = node.inputs[position]
    assert source is not None
    edit.replace_uses(node.outputs[0], source)
    edit.owner(node).remove(node, safe=True)
