"""Which constants are weights. Trainable by exclusion: every float constant is, unless there is a reason.

An allow-list misses class tokens, recurrent weights and scales that exporters place anywhere.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from studio.engine.trainable.program import Held
from studio.engine.trainable.values import FLOATS

# Inputs whose value steers an operator instead of flowing through it, by operator.
_SETTINGS: dict[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "Clip": frozenset({1, 2}),
    "CumSum": frozenset({1}),
    "Dropout": frozenset({1, 2}),
    "NonMaxSuppression": frozenset(range(5)),
    "Pad": frozenset({2}),
    "Pow": frozenset({1}),
    "Range": frozenset({0, 1, 2}),
    "Resize": frozenset({1, 2}),
    "RoiAlign": frozenset({1}),
    "Upsample": frozenset({1}),
}
_COMPARE = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Where", "Mod"})
_QUANTIZERS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "MatMulNBits", "GatherBlockQuantized", "DynamicQuantizeMatMul"}
)
_PASSING = frozenset({"Identity", "Cast"})


def frozen_reason(held: Held) -> str:
    """Why a constant must not be trained; '' when it is a weight.

    A number used in a formula, a mask, a table of angles, stored statistics, quantization
    parameters and whatever only steers an operator are no weights.
    """
    tensor = held.tensor
    if tensor.dtype not in FLOATS:
        return f"{tensor.dtype.name.lower()} numbers"
    if tensor.size == 0:
        return "empty"
    uses = _uses(held.value)
    if not uses and not held.value.is_graph_output():
        return "not used"
    if any(n.op_type == "BatchNormalization" and _steers(n, i) for n, i in uses):
        return "running statistics of a batch normalisation"
    if uses and all(_steers(node, position) for node, position in uses):
        return f"a setting of {uses[0][0].op_type}"
    if uses and all(n.op_type in _QUANTIZERS and i > 0 for n, i in uses):
        return "scale or zero point of a quantizer"
    if tensor.size == 1 and all(n.op_type in _ARITHMETIC for n, _ in uses):
        return "one number in a formula"
    if tensor.size <= 2**24:
        return _table(np.asarray(tensor.numpy(), dtype=np.float32))
    return ""


def _uses(value: ir.Value) -> list[tuple[ir.Node, int]]:
    found = []
    for node, position in value.uses():
        if node.op_type in _PASSING and node.outputs:
            found += _uses(node.outputs[0])
        else:
            found.append((node, position))
    return found


def _steers(node: ir.Node, position: int) -> bool:
    return node.op_type in _COMPARE or position in _SETTINGS.get(node.op_type, ())


def _table(array: np.ndarray) -> str:
    """Whether the numbers themselves say that they are no weights."""
    if not np.isfinite(array).all() or (array.size > 1 and array.min() <= -1e4):
        return "a mask"
    if array.size > 1 and array.ndim >= 2 and np.isin(array, (0.0, 1.0)).all() and array.min() != array.max():
        return "a mask"
    flat = array.reshape(-1, array.shape[-1]) if array.ndim >= 2 else array[:, None] if array.ndim else array
    if array.ndim >= 2 and len(flat) > 2 and np.abs(flat).max() <= 1:
        first = flat[0]
        if (np.isin(first, (0.0, 1.0)).all()) and not np.isin(flat[1], (0.0, 1.0)).all():
            return "a table of sines and cosines"
    return ""
