"""Operators that treat every element alone: their operands' axes are one."""

from __future__ import annotations

import onnx_ir as ir

from studio.engine.groups.atoms import Axis
from studio.engine.groups.trace import Labels, Reading, Trace, rule, unknown, where

_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Dropout",
)  # fmt: skip
_BROADCAST = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip


@rule(*_UNARY)
@rule("QuickGelu", "FastGelu", "Gelu", "BiasGelu", domain="com.microsoft")
def unary(t: Trace, node: ir.Node) -> None:
    """Outputs are labelled as the first input. Bounds (Clip) are scalars; a bias (BiasGelu) lies on the last axis."""
    x = t.get(node, 0)
    if x is None:
        unknown(t, node)
        return
    if node.op_type in {"BiasGelu", "FastGelu"}:
        bias = t.get(node, 1)
        if bias:
            t.same(x[-1], bias[0], node)
    for value in node.outputs:
        t.put(value, x)


@rule(*_BROADCAST)
def broadcast(t: Trace, node: ir.Node) -> None:
    """Axes align from the right; an axis of size 1 meets any other."""
    t.put(node.outputs[0], aligned(t, node, [i for i, v in enumerate(node.inputs) if v is not None]))


def aligned(t: Trace, node: ir.Node, positions: list[int]) -> Labels:
    """The labels of inputs broadcast against each other."""
    operands = []
    for position in positions:
        labels, dims = t.get(node, position), t.dims(node.inputs[position])
        if labels is not None and dims is None:
            dims = tuple(1 if a is None else len(a) for a in labels)
        operands.append((labels or (), dims or ()))
    if old_broadcast(node):
        labels, dims = operands[1]
        tail = len(operands[0][1]) - len(dims) - old_axis(node, len(operands[0][1]), len(dims))
        operands[1] = ((*labels, *(None,) * tail), (*dims, *(1,) * tail))
    rank = max((len(dims) for _, dims in operands), default=0)
    found: list[Axis | None] = []
    for j in range(rank):
        here = [
            (labels[k], dims[k])
            for labels, dims in operands
            if (k := j - rank + len(dims)) >= 0 and dims[k] != 1
        ]
        axis = here[0][0] if here else None
        for other, _size in here[1:]:
            axis = t.same(axis, other, node)
        found.append(axis)
    return tuple(found)


def old_broadcast(node: ir.Node) -> bool:
    """Whether a node aligns its second operand from the left by `axis` (opset 6 and before)."""
    attr = node.attributes.get("broadcast")
    return attr is not None and attr.as_int() == 1 and "axis" in node.attributes and len(node.inputs) == 2


def old_axis(node: ir.Node, rank: int, other: int) -> int:
    """The axis where the second operand starts."""
    axis = node.attributes["axis"].as_int()
    return axis if axis >= 0 else rank - other


@rule("QuantizeLinear", "DequantizeLinear")
@rule("QuantizeLinear", "DequantizeLinear", domain="com.microsoft")
def quantize(t: Trace, node: ir.Node) -> None:
    """Element by element; scales and zero points lie along one axis, or block by block (then nothing moves)."""
    x, scale = t.get(node, 0), t.get(node, 1)
    if x is None:
        unknown(t, node)
        return
    if scale is not None and len(scale) == 1 and scale[0] is not None:
        attr = node.attributes.get("axis")
        axis = 1 if attr is None else attr.as_int()
        for position in (1, 2):
            other = t.get(node, position)
            if other is not None:
                t.same(x[axis], other[0], node)
    elif scale is not None and len(scale) > 1:
        t.fix_all(x, f"is quantized in blocks at {where(node)}")
        t.fix_all(scale, f"is quantized in blocks at {where(node)}")
        t.fix_all(t.get(node, 2), f"is quantized in blocks at {where(node)}")
    t.put(node.outputs[0], x)


@rule("DynamicQuantizeLinear")
def dynamic_quantize(t: Trace, node: ir.Node) -> None:
    """The values keep their labels; the range is taken over those that are left, so a mask belongs in front."""
    labels = t.get(node, 0) or ()
    t.readings.extend(Reading(node, 0, k, axis) for k, axis in enumerate(labels) if axis is not None)
    t.put(node.outputs[0], labels)
