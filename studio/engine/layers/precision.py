"""Precision in words, and what the numbers of a stored weight say: zeros, NaN and Inf."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine.graph import constant, holder
from studio.engine.layers.forms import Activations

_CHUNK = 1 << 20
_FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_WORDS = {"float32": "fp32", "float64": "fp64", "float16": "fp16", "bfloat16": "bf16"}


def precision(dtype: str, bits: int, activations: Activations, *, fake: bool) -> str:
    """Precision in words: 'fp32', 'int8', 'int8 dynamic' (activations too), 'int4 weights'.

    Args:
        dtype: of the stored weight.
        bits: of packed weights; 0 = what the type says.
        activations: how the layer takes its activations.
        fake: floats that are quantized and dequantized on the way.
    """
    word = _WORDS.get(dtype) or ("fp8" if dtype.startswith("float8") else dtype)
    word = f"int{bits}" if bits else word.removeprefix("u")
    if fake:
        return f"{word}, rounded to int8"
    if not word.startswith("int"):
        return word
    return {"static": word, "dynamic": f"{word} dynamic", "float": f"{word} weights"}[activations]


@dataclass(frozen=True)
class Numbers:
    """What counting all numbers of a tensor gives."""

    zeros: int
    values: int
    finite: bool


def count_numbers(value: ir.Value, zero_point: ir.Value | None, axis: int | None) -> Numbers | None:
    """Zeros (values equal to the zero point) and whether all is finite; None for packed and block forms.

    The tensor is read in pieces, so that a mapped one takes no memory of its own.
    """
    tensor, held = constant(value), holder(value)
    if tensor is None or held is None or tensor.dtype == ir.DataType.STRING:
        return None
    array = tensor.numpy()
    zero = _zero_point(zero_point)
    if zero is None:
        return None
    if zero.size > 1:
        if axis is None or zero.ndim != 1 or zero.size != array.shape[axis]:
            return None
        zero = zero.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        return Numbers(int(np.count_nonzero(array == zero)), array.size, finite=True)
    point = zero.reshape(-1)[0] if zero.size else 0
    zeros, finite = 0, True
    for piece in _pieces(array):
        zeros += int(np.count_nonzero(piece == point))
        finite = finite and (piece.dtype.kind in "iub" or bool(np.isfinite(piece).all()))
    return Numbers(zeros, array.size, finite)


def is_finite(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor holds neither NaN nor infinities; read in pieces."""
    if tensor.dtype not in _FLOATS:
        return True
    return all(bool(np.isfinite(piece).all()) for piece in _pieces(tensor.numpy()))


def _zero_point(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The zero point's numbers, 0 without one; None where it is computed."""
    if value is None:
        return np.zeros((), np.int8)
    tensor = constant(value)
    return None if tensor is None else tensor.numpy()


def _pieces(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]
