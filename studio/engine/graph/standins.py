"""Standard operators in the place of onnxruntime's own, so that the standard shape inference can see through them.

Only shapes and types matter here: a stand-in computes something else, on inputs of the right shape.
Source: onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx


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


def use_stand_ins(graph: onnx.GraphProto) -> None:
    """Replace onnxruntime's operators by standard ones of equal shapes, in place; unknown ones stay."""
    weights: list[onnx.TensorProto] = []
    for node in graph.node:
        for attr in node.attribute:
            for inner in (*((attr.g,) if attr.type == onnx.AttributeProto.GRAPH else ()), *attr.graphs):
                use_stand_ins(inner)
        if node.domain != "com.microsoft":
            continue
        if node.op_type in _STANDARD_NAMES:
            node.domain = ""
        elif node.op_type == "MatMulNBits":
            weights.append(_matmul_n_bits(node))
        elif (stand_in := _STAND_INS.get(node.op_type)) is not None:
            first, inputs = stand_in.inputs[0], list(node.input)
            positions = range(first, len(inputs), stand_in.every) if stand_in.every else stand_in.inputs
            _become(node, stand_in.op, [inputs[p] for p in positions if p < len(inputs)], stand_in.attributes)
    graph.initializer.extend(weights)


def _become(node: onnx.NodeProto, op: str, inputs: list[str], attributes: tuple[str, ...] = ()) -> None:
    kept = [a for a in node.attribute if a.name in attributes]
    del node.attribute[:], node.input[:]
    node.attribute.extend(kept)
    node.input.extend(inputs)
    node.domain, node.op_type = "", op


def _matmul_n_bits(node: onnx.NodeProto) -> onnx.TensorProto:
    """A (…, K) times a K × N matrix that exists in name only."""
    sizes = {a.name: a.i for a in node.attribute}
    name = f"{node.output[0]}\0weight"
    _become(node, "MatMul", [node.input[0], name])
    dims = [sizes.get("K", 1), sizes.get("N", 1)]
    return onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=dims)
