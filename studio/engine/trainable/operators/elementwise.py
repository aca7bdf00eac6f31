"""Operators that work value by value, with numpy's broadcasting."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from studio.engine.trainable.operators.registry import Call, Operator, operator
from studio.engine.trainable.values import CARRIED, RANGES, onnx_type

D = ir.DataType

_UNARY: dict[str, Operator] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
_COMPARE: dict[str, Operator] = {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}
_ARITHMETIC: dict[str, Operator] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}


def _register_tables() -> None:
    for name, unary in _UNARY.items():
        operator(name)(lambda _call, x, unary=unary: unary(x))
    for name, compare in _COMPARE.items():
        operator(name)(lambda call, a, b, compare=compare: compare(a, _legacy(call, a, b)))
    for name, binary in _ARITHMETIC.items():
        operator(name)(lambda call, a, b, binary=binary: _wrap(call, binary(a, _legacy(call, a, b))))


def _legacy(call: Call, a: Any, b: Any) -> Any:
    """Before operator set 7 the second operand was aligned by an attribute."""
    if call.version >= 7 or "axis" not in call.attributes:
        return b
    trailing = a.ndim - call.attributes["axis"] - b.ndim
    return b.reshape(*b.shape, *([1] * max(0, trailing)))


def _wrap(call: Call, x: Tensor) -> Tensor:
    """Unsigned integers that are carried in wider ones overflow as they should."""
    kind = call.input_types[0]
    return x & RANGES[kind][1] if kind in (D.UINT16, D.UINT32) else x


_register_tables()


@operator("BitwiseNot")
def bitwise_not(call: Call, x: Tensor) -> Tensor:
    """Flips every bit."""
    return _wrap(call, torch.bitwise_not(x))


@operator("BitShift")
def bit_shift(call: Call, x: Tensor, by: Tensor) -> Tensor:
    """Shifts unsigned integers."""
    wide, by = x.to(torch.int64), by.to(torch.int64)
    kind = call.input_types[0]
    if call.get("direction") == "LEFT":
        shifted = wide << by
    elif kind == D.UINT64:  # the sign bit is a value bit
        shifted = torch.where(by > 0, (wide >> by) & ~(torch.full_like(wide, -1) << (64 - by)), wide)
    else:
        shifted = wide >> by
    if kind in (D.UINT16, D.UINT32):
        shifted = shifted & RANGES[kind][1]
    return shifted.to(x.dtype)


@operator("Div")
def divide(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    b = _legacy(call, a, b)
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


@operator("Mod")
def modulo(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """The sign of the divisor, or of the dividend with `fmod`."""
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@operator("Pow")
def power(_call: Call, a: Tensor, b: Tensor) -> Tensor:
    """The result has the type of the base."""
    if b.numel() == 1 and a.is_floating_point() and not b.requires_grad:
        exponent = b.item()
        return torch.pow(a, exponent).reshape(torch.broadcast_shapes(a.shape, b.shape))
    return torch.pow(a, b).to(a.dtype)


@operator("Max", "Min", "Sum", "Mean")
def fold_many(call: Call, *inputs: Tensor) -> Tensor:
    """Any number of operands."""
    step: Operator = {"Max": torch.maximum, "Min": torch.minimum}.get(call.op, torch.add)
    result = inputs[0]
    for other in inputs[1:]:
        result = step(result, other)
    return result / len(inputs) if call.op == "Mean" else result


@operator("Clip")
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clamps; on a bound the gradient is 0, as that of ReLU and ReLU6, which is where clips come from."""
    bottom = call.get("min") if low is None else low.item()
    top = call.get("max") if high is None else high.item()
    if not x.is_floating_point():
        return x if bottom is None and top is None else torch.clamp(x, bottom, top)
    if bottom is not None and top is not None and bottom > top:
        return torch.full_like(x, top)
    if top is None or top == math.inf:
        if bottom is None:
            return x
        return torch.relu(x) if bottom == 0 else F.threshold(x, bottom, bottom)
    return F.hardtanh(x, -math.inf if bottom is None else bottom, top)


@operator("Cast", "CastLike")
def cast(call: Call, x: Any, like: Any = None) -> Any:
    """To another type; floats saturate into float8, half floats may be promoted."""
    if like is None:
        target = D(call.attributes["to"])
    else:
        target = call.input_types[1] or onnx_type(like.dtype)
    return to_type(x, call.float_type(target), saturate=bool(call.get("saturate", 1)))


def to_type(x: Any, target: ir.DataType, saturate: bool = True) -> Any:
    """A tensor in the torch type that carries `target`, with integers wrapped as C does."""
    carried = CARRIED[target]
    if target in (D.FLOAT4E2M1, D.FLOAT8E8M0):
        import numpy as np

        narrow = x.detach().to(torch.float32).numpy().astype(target.numpy())
        return torch.from_numpy(narrow.astype(np.float32))
    if target.name.startswith("FLOAT8"):
        wide = x.to(torch.float32)
        limit = torch.finfo(carried).max
        if saturate:
            wide = torch.where(wide.isnan(), wide, wide.clamp(-limit, limit))
        else:  # torch saturates by itself: what rounds beyond the largest value becomes NaN or infinity
            beyond = math.inf if target == D.FLOAT8E5M2 else math.nan
            step = limit / (
                28 if target.name.startswith("FLOAT8E4M3FN") and limit == 448 else 30 if limit == 240 else 14
            )
            wide = torch.where(wide.abs() >= limit + step, wide.sign() * beyond, wide)
        return wide.to(carried)
    if target in RANGES and x.dtype != torch.bool and target not in (D.INT8, D.INT16, D.INT32, D.UINT8):
        low, high = RANGES[target]
        whole = x.to(torch.int64) if target in (D.UINT16, D.UINT32) or not x.is_floating_point() else None
        whole = x.to(torch.float32).trunc().to(torch.int64) if whole is None else whole
        return ((whole - low) % (high - low + 1) + low).to(carried)
    if target in (D.INT8, D.INT16, D.UINT8) and x.is_floating_point():
        return x.to(torch.float32).to(torch.int64).to(carried)
    return x.to(carried)


@operator("BitCast")
def bit_cast(call: Call, x: Tensor) -> Tensor:
    """The same bits read as another type of the same width."""
    import numpy as np

    from studio.engine.trainable.values import numpy_of, tensor_of

    source = numpy_of(x, call.input_types[0])
    target = D(call.attributes["to"])
    result = np.ascontiguousarray(source).view(target.numpy()).reshape(tuple(x.shape))
    value = tensor_of(result)
    assert isinstance(value, Tensor)
    return value


@operator("Identity")
def identity(_call: Call, x: Any) -> Any:
    """The value itself."""
    return x


@operator("Dropout")
def dropout(call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Any:
    """The value itself, as in inference; a training flag in the model drops values."""
    if training is not None and bool(training) and (ratio is None or ratio.item() > 0):
        share = 0.5 if ratio is None else ratio.item()
        keep = torch.rand_like(x) >= share
        out = torch.where(keep, x / (1 - share), torch.zeros_like(x))
    else:
        keep, out = torch.ones_like(x, dtype=torch.bool), x
    return (out, keep) if call.outputs > 1 else out


@operator(
    "Elu",
    "Celu",
    "Selu",
    "LeakyRelu",
    "ThresholdedRelu",
    "Shrink",
    "HardSigmoid",
    "Softplus",
    "Gelu",
    "Swish",
)
def activation(call: Call, x: Tensor) -> Tensor:
    """Activations with attributes."""
    alpha = call.get("alpha")
    match call.op:
        case "Elu":
            return F.elu(x, 1.0 if alpha is None else alpha)
        case "Celu":
            return F.celu(x, 1.0 if alpha is None else alpha)
        case "Selu":
            scale = call.get("gamma", 1.0507009873554805)
            return scale * F.elu(x, 1.6732632423543772 if alpha is None else alpha)
        case "LeakyRelu":
            return F.leaky_relu(x, 0.01 if alpha is None else alpha)
        case "ThresholdedRelu":
            return F.threshold(x, 1.0 if alpha is None else alpha, 0.0)
        case "Shrink":
            bias, lambd = call.get("bias", 0.0), call.get("lambd", 0.5)
            wide = x if x.is_floating_point() else x.to(torch.float64)
            shrunk = torch.where(wide < -lambd, wide + bias, torch.where(wide > lambd, wide - bias, 0.0))
            return shrunk.to(x.dtype)
        case "HardSigmoid":
            return torch.clamp((0.2 if alpha is None else alpha) * x + call.get("beta", 0.5), 0, 1)
        case "Softplus":
            return F.softplus(x)
        case "Gelu":
            return F.gelu(x, approximate=call.get("approximate", "none"))
        case _:
            return x * torch.sigmoid(x if alpha is None else alpha * x)


@operator("PRelu")
def prelu(_call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """The slope broadcasts."""
    return torch.where(x < 0, x * slope, x)


@operator("Where")
def where(_call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Chooses by condition."""
    return torch.where(condition, a, b)


@operator("IsInf")
def is_inf(call: Call, x: Tensor) -> Tensor:
    """Of one sign or both."""
    result = torch.zeros_like(x, dtype=torch.bool)
    wide = x.to(torch.float32) if x.dtype.itemsize == 1 else x
    if call.get("detect_positive", 1):
        result |= wide == math.inf
    if call.get("detect_negative", 1):
        result |= wide == -math.inf
    return result
