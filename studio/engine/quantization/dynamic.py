"""Dynamic int8 in standard ONNX: activations become uint8 with ranges taken anew at every run.

Equation: y = s_x s_w Σ (q_x − z_x) q_w, as DynamicQuantizeLinear → MatMulInteger or ConvInteger → Cast → Mul. onnxruntime
fuses the matrix form to DynamicQuantizeMatMul.

Source: ONNX DynamicQuantizeLinear, MatMulInteger, ConvInteger.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Model, constant
from studio.engine.quantization import grids
from studio.engine.quantization.qdq import LayerWeights

_AXES_OPSET = 18  # the first in which ReduceMax takes axes as an input
_LEAST = 1e-20  # rows of zeros are divided by it


def write_product(
    model: Model, node: ir.Node, weights: LayerWeights, *, transposed: bool, by_row: bool = False
) -> None:
    """Put the integer form in the place of a MatMul or plain Gemm; output name stays, the product keeps the node's name.

    Args:
        model: changed in place.
        node: the layer.
        weights: integers as the layer stores them.
        transposed: they are (out, in) and must be turned.
        by_row: every row is divided by its largest magnitude first, and its product multiplied by it: the one range of
            the integers then suits all rows.
    """
    peak = _normalise_rows(model, node) if by_row else None
    q = weights.q.T if transposed else weights.q
    stored = grids.stored(np.ascontiguousarray(q), 8, signed=True)
    _write(model, node, "MatMulInteger", stored, weights.scale, _bias(node, ()), peak)


def write_convolution(model: Model, node: ir.Node, weights: LayerWeights) -> None:
    """Put the integer form in the place of a Conv."""
    spatial = (1,) * (weights.q.ndim - 2)
    scale = weights.scale if weights.axis is None else weights.scale.reshape(1, -1, *spatial)
    stored = grids.stored(weights.q, 8, signed=True)
    _write(model, node, "ConvInteger", stored, scale, _bias(node, spatial))


def _bias(node: ir.Node, spatial: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    tensor = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if tensor is None:
        return None
    numbers = np.asarray(tensor.numpy(), np.float32).reshape(-1)
    return numbers.reshape(1, -1, *spatial) if spatial else numbers


def _write(
    model: Model,
    node: ir.Node,
    op: str,
    stored: np.ndarray[tuple[int, ...], np.dtype[np.int8]],
    scale: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    bias: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None,
    peak: ir.Value | None = None,
) -> None:
    graph = edit.owner(node)
    base = node.inputs[1].name or "weight"  # type: ignore[union-attr]
    kind = ir.DataType.FLOAT
    ranged = _ranged(model, graph, node)
    codes = edit.add_constant(model, graph, f"{base}_quantized", stored)
    # onnxruntime fuses the product with its scale only where a zero point is there, even if it is zero.
    zeros = () if op == "ConvInteger" else (scale.size,) if scale.ndim else ()
    zero = edit.add_constant(model, graph, f"{base}_zero", np.zeros(zeros, np.int8))
    attributes = {} if op == "MatMulInteger" else {name: a.value for name, a in node.attributes.items()}
    product = edit.make_node(
        model, op, [ranged[0], codes, ranged[2], zero], attributes, name=f"{node.name or op}_integer"
    )
    product.outputs[0].type = ir.TensorType(ir.DataType.INT32)
    wide = edit.make_node(
        model, "Cast", [product.outputs[0]], {"to": int(kind)}, name=f"{base}_wide", dtype=kind
    )
    scales = edit.add_constant(model, graph, f"{base}_scale", scale)
    both = edit.make_node(model, "Mul", [ranged[1], scales], name=f"{base}_scales", dtype=kind)
    new = [
        product,
        wide,
        both,
        edit.make_node(model, "Mul", [wide.outputs[0], both.outputs[0]], name=f"{base}_real", dtype=kind),
    ]
    if peak is not None:
        new.append(edit.make_node(model, "Mul", [new[-1].outputs[0], peak], name=f"{base}_rows", dtype=kind))
    if bias is not None:
        shift = edit.add_constant(model, graph, f"{base}_bias", bias)
        new.append(
            edit.make_node(model, "Add", [new[-1].outputs[0], shift], name=f"{base}_biased", dtype=kind)
        )
    name = node.name
    edit.replace_node(node, new, [new[-1].outputs[0]])
    if name:
        product.name = name


def _normalise_rows(model: Model, node: ir.Node) -> ir.Value:
    """Divide the layer's input by the largest magnitude of every row; these magnitudes, (…, 1)."""
    graph, source = edit.owner(node), node.inputs[0]
    assert source is not None
    new: list[ir.Node] = []

    def add(op: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        made = edit.make_node(
            model, op, inputs, attributes, name=f"{source.name}_row", dtype=ir.DataType.FLOAT
        )
        new.append(made)
        return made.outputs[0]

    magnitudes = add("Abs", [source])
    if model.opset >= _AXES_OPSET:
        axes = edit.add_constant(model, graph, f"{source.name}_axis", np.asarray([-1], np.int64))
        largest = add("ReduceMax", [magnitudes, axes], keepdims=1)
    else:
        largest = add("ReduceMax", [magnitudes], axes=[-1], keepdims=1)
    least = edit.add_constant(model, graph, f"{source.name}_least", np.full(1, _LEAST, np.float32))
    peak = add("Max", [largest, least])
    even = add("Div", [source, peak])
    even.shape = source.shape
    graph.insert_before(node, new)
    node.replace_input_with(0, even)
    return peak


def _ranged(model: Model, graph: ir.Graph, node: ir.Node) -> Sequence[ir.Value]:
    """(integers, scale, zero point) of the layer's input; one DynamicQuantizeLinear serves all its readers."""
    source = node.inputs[0]
    assert source is not None
    for user, _ in source.uses():
        if user.op_type == "DynamicQuantizeLinear" and user.graph is graph:
            return user.outputs
    new = edit.make_node(model, "DynamicQuantizeLinear", [source], name=f"{source.name}_ranged", outputs=3)
    for value, kind in zip(
        new.outputs, (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8), strict=True
    ):
        value.type = ir.TensorType(kind)
    graph.insert_before(node, new)
    return new.outputs
