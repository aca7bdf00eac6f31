"""Standard operators in the place of onnxruntime's own, so that the standard shape inference can see through them.

Only shapes and types matter here: a stand-in computes something else, on inputs of the right shape.
Source: onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from studio.engine.graph.model import Model, nodes


@dataclass(frozen=True)
class StandIn:
    """A standard operator with the positions of the inputs and the names of the attributes it takes over."""

    op: str
    inputs: tuple[int, ...] = (0,)
    attributes: tuple[str, ...] = ()
    every: int = 0  # from inputs[0] on, every so many inputs are taken (Concat)


_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
_GEMM = ("transA", "transB")
_SAME = StandIn("Identity")

_STAND_INS: dict[str, StandIn] = {
    "BiasGelu": _SAME,
    "DynamicQuantizeLSTM": StandIn("LSTM", (0,), ("hidden_size", "direction")),
    "DynamicQuantizeMatMul": StandIn("MatMul", (0, 1)),
    "FastGelu": _SAME,
    "FusedConv": StandIn("Conv", (0, 1), _CONV),
    "FusedGemm": StandIn("Gemm", (0, 1), _GEMM),
    "Gelu": _SAME,
    "GroupQueryAttention": _SAME,
    "MatMulIntegerToFloat": StandIn("MatMul", (0, 1)),
    "MultiHeadAttention": _SAME,
    "NhwcConv": StandIn("Conv", (0, 1), _CONV),
    "QGemm": StandIn("Gemm", (0, 3), _GEMM),
    "QLinearAdd": StandIn("Add", (0, 3)),
    "QLinearAveragePool": StandIn("AveragePool", (0,), _POOL),
    "QLinearConcat": StandIn("Concat", (2,), ("axis",), every=3),
    "QLinearGlobalAveragePool": StandIn("GlobalAveragePool"),
    "QLinearLeakyRelu": _SAME,
    "QLinearMul": StandIn("Mul", (0, 3)),
    "QLinearSigmoid": _SAME,
    "QLinearSoftmax": _SAME,
    "QuickGelu": _SAME,
    "RotaryEmbedding": _SAME,
    "SkipLayerNormalization": _SAME,
    "SkipSimplifiedLayerNormalization": _SAME,
}
# Operators that differ from the standard ones only in the types they take.
_STANDARD_NAMES = {"DequantizeLinear", "QuantizeLinear", "Pad"}


def use_stand_ins(model: Model) -> None:
    """Replace onnxruntime's operators by standard ones of equal shapes, in place; unknown ones stay."""
    for node in list(nodes(model)):
        if node.domain != "com.microsoft":
            continue
        if node.op_type in _STANDARD_NAMES:
            node.domain = ""
        elif node.op_type == "MatMulNBits":
            _matmul_n_bits(node)
        elif (stand_in := _STAND_INS.get(node.op_type)) is not None:
            _replace(node, stand_in)


def _replace(node: ir.Node, by: StandIn) -> None:
    positions = range(by.inputs[0], len(node.inputs), by.every) if by.every else by.inputs
    _become(node, by.op, [node.inputs[p] if p < len(node.inputs) else None for p in positions], by.attributes)


def _become(node: ir.Node, op: str, inputs: list[ir.Value | None], attributes: tuple[str, ...] = ()) -> None:
    node.resize_inputs(len(inputs))
    for position, value in enumerate(inputs):
        node.replace_input_with(position, value)
    for name in list(node.attributes):
        if name not in attributes:
            del node.attributes[name]
    node.domain, node.op_type = "", op


def _matmul_n_bits(node: ir.Node) -> None:
    """A (…, K) times a K × N matrix that exists in name only."""
    if node.graph is None or "K" not in node.attributes or "N" not in node.attributes:
        return
    dims = [node.attributes["K"].as_int(), node.attributes["N"].as_int()]
    name = f"{node.outputs[0].name}\0weight"
    tensor = ir.TensorProtoTensor(onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=dims))
    weight = ir.Value(
        name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(dims), const_value=tensor
    )
    if isinstance(node.graph, ir.Graph):
        node.graph.register_initializer(weight)
        _become(node, "MatMul", [node.inputs[0], weight])
