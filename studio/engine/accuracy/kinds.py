"""What output 0 means: a distribution, a probability, or plain numbers.

Only a distribution has a KL divergence and a best class; saying so of an embedding or a box would be made up.
In this order:

1. rows of values in 0..1 that sum to 1 are *probabilities*;
2. labels that are class numbers for the rows make them *logits*;
3. values in 0..1 from a Sigmoid, or from control flow that hides its last operator, are each a *binary* probability;
4. rows (N, C) or (N, T, C) that come straight from a linear layer or a LogSoftmax are *logits*;
5. everything else is *plain*.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine.graph import Model

Array: TypeAlias = npt.NDArray[Any]
Kind: TypeAlias = Literal["probabilities", "logits", "binary", "plain"]

_SUM_TOLERANCE = 1e-2
_PASSING = {
    "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Transpose", "QuantizeLinear",
    "DequantizeLinear", "Slice", "Gather",
}  # fmt: skip
_BOUNDED = {"Sigmoid", "HardSigmoid", "Clip", "If", "Loop", "Scan"}
_LINEAR = {"Gemm", "MatMul", "MatMulNBits", "MatMulInteger", "Conv", "FusedMatMul", "LogSoftmax"}


def final_operator(model: Model) -> str:
    """The operator that makes output 0, seen through reshapes, casts, quantization and an added bias."""
    value: ir.Value | None = model.graph.outputs[0] if model.graph.outputs else None
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in _PASSING:
            value = node.inputs[0]
        elif node.op_type == "Add" and (product := _product(node)) is not None:
            return product
        else:
            return str(node.op_type)
    return ""


def _product(node: ir.Node) -> str | None:
    """The matrix product that an Add puts a bias onto; None for another sum."""
    for value in node.inputs:
        maker = value.producer() if value is not None else None
        if maker is not None and maker.op_type in _LINEAR:
            return str(maker.op_type)
    return None


class Ranked(Protocol):
    """An array or a tensor."""

    @property
    def ndim(self) -> int:
        """How many axes it has."""


def class_axis(output: Ranked) -> int:
    """The axis that holds classes: 1 of a picture (N, C, H, W), else the last."""
    return 1 if output.ndim >= 4 else output.ndim - 1


def labels_are_classes(output: Array, labels: Array | None) -> bool:
    """Whether every label numbers a class of its row: (N,) for (N, C), (N, T) for (N, T, C), (N, H, W) for pictures."""
    if labels is None or labels.dtype.kind not in "iu" or output.ndim < 2:
        return False
    axis = class_axis(output)
    rows = output.shape[:axis] + output.shape[axis + 1 :]
    return (
        output.shape[axis] > 1
        and labels.size == int(np.prod(rows))
        and int(labels.max()) < output.shape[axis]
    )


def kind_of(output: Array, labels: Array | None, final: str) -> Kind:
    """What the values of output 0 are; see the module's text.

    Args:
        output: of the reference model, one batch.
        labels: of that batch.
        final: `final_operator` of the reference model.
    """
    if output.dtype.kind != "f" or output.ndim == 0 or output.size == 0:
        return "plain"
    axis = class_axis(output)
    bounded = bool((output >= 0).all() and (output <= 1).all())
    if bounded and output.shape[axis] > 1 and output.ndim > 1:
        sums = output.sum(axis=axis, dtype=np.float64)
        if np.abs(sums - 1).max() < _SUM_TOLERANCE:
            return "probabilities"
    if labels_are_classes(output, labels):
        return "logits"
    if bounded and final in _BOUNDED:
        return "binary"
    if output.ndim in {2, 3} and output.shape[axis] > 1 and final in _LINEAR:
        return "logits"
    return "plain"


def rows_of(output: Array) -> Array:
    """The values as rows over classes (rows, C)."""
    return np.moveaxis(output, class_axis(output), -1).reshape(-1, output.shape[class_axis(output)])
