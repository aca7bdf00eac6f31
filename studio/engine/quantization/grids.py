"""Integer grids: which real numbers a few bits stand for, and how to get there and back.

Equation: q = clip(round(x / scale) + zero, low, high) and x ≈ (q − zero) · scale, as in ONNX
QuantizeLinear and DequantizeLinear (rounding half to even).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from studio.base.errors import StudioError

Array: TypeAlias = npt.NDArray[Any]

# A scale is never smaller: the reciprocal must stay finite in float32.
SMALLEST_SCALE = 1e-30
_STORED = {(8, True): np.int8, (8, False): np.uint8, (4, True): ml_dtypes.int4, (4, False): ml_dtypes.uint4}


@dataclass(frozen=True)
class Grid:
    """An integer grid.

    Attributes:
        scale: float32, broadcastable against the (possibly blocked) values.
        zero: int32 of the same shape.
        low / high: smallest and largest integer.
    """

    scale: Array
    zero: Array
    low: int
    high: int

    def quantize(self, x: Array) -> Array:
        """Integers (int32) nearest to `x`, clipped to the grid."""
        q = np.asarray(np.rint(np.asarray(x) / self.scale))
        q += self.zero
        np.clip(q, self.low, self.high, out=q)
        return q.astype(np.int32)

    def dequantize(self, q: Array) -> Array:
        """The real numbers (float32) that integers stand for."""
        return np.asarray((q - self.zero).astype(np.float32) * self.scale, np.float32)

    def snap(self, x: Array) -> Array:
        """The nearest numbers that the grid can hold."""
        return self.dequantize(self.quantize(x))


def bounds(bits: int, *, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """Smallest and largest integer of so many bits; `narrow` leaves out the lowest signed one."""
    if not signed:
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1


def symmetric(w: Array, axes: tuple[int, ...] | None, bits: int) -> Grid:
    """A grid without zero point whose largest number is the largest |w| over `axes` (None = all).

    The scale keeps reduced axes as size 1. All-zero parts get scale 1.

    Raises:
        StudioError: `w` holds NaN or infinities.
    """
    low, high = bounds(bits, signed=True, narrow=True)
    top = _finite(np.abs(w).max(axis=axes, keepdims=True))
    scale = np.where(top > 0, top / high, 1.0).astype(np.float32)
    return Grid(np.maximum(scale, SMALLEST_SCALE), np.zeros(scale.shape, np.int32), low, high)


def affine(low: Array, high: Array, bits: int = 8, *, signed: bool = False) -> Grid:
    """A grid that covers [min(low, 0), max(high, 0)] with zero exactly on it.

    Raises:
        StudioError: a bound is NaN or infinite.
    """
    first, last = bounds(bits, signed=signed)
    bottom = np.minimum(_finite(low), 0).astype(np.float64)
    top = np.maximum(_finite(high), 0).astype(np.float64)
    scale = (top - bottom) / (last - first)
    scale = np.where(scale > SMALLEST_SCALE, scale, 1.0).astype(np.float32)
    zero = np.clip(np.rint(first - bottom / scale), first, last).astype(np.int32)
    return Grid(scale, zero, first, last)


def _finite(values: Array) -> Array:
    if not np.isfinite(values).all():
        raise StudioError(
            "Cannot quantize these values",
            "they hold NaN or infinities",
            "Leave this layer in float, or repair the model first.",
        )
    return np.asarray(values)


def stored(q: Array, bits: int, *, signed: bool) -> Array:
    """Integers in the type that ONNX stores them in (int8, uint8, int4, uint4)."""
    return q.astype(_STORED[bits, signed])


def blocks(w: Array, size: int) -> Array:
    """(n, k) as (n, ceil(k / size), size), padded with zeros.

    Block quantization gives every run of `size` values along k a scale of its own.
    """
    n, k = w.shape
    count = -(-k // size)
    padded = np.zeros((n, count * size), w.dtype)
    padded[:, :k] = w
    return padded.reshape(n, count, size)


def block_grid(w: Array, size: int, bits: int, *, symmetric_: bool) -> Grid:
    """One grid a block of (n, k) weights, unsigned; scale and zero have shape (n, blocks, 1).

    The symmetric form has its zero point in the middle (2^(bits−1)), as MatMulNBits assumes without one, and uses
    the one extra code on the side of the value with the largest magnitude.

    Raises:
        StudioError: `w` holds NaN or infinities.
    """
    parts = blocks(w, size)
    if not symmetric_:
        return affine(parts.min(-1, keepdims=True), parts.max(-1, keepdims=True), bits)
    middle = 2 ** (bits - 1)
    at = np.abs(parts).argmax(-1)[..., None]
    extreme = _finite(np.take_along_axis(parts, at, -1)).astype(np.float32)
    scale = extreme / -middle
    scale = np.where(np.abs(scale) > SMALLEST_SCALE, scale, 1.0).astype(np.float32)
    return Grid(scale, np.full(scale.shape, middle, np.int32), *bounds(bits, signed=False))


def pack(q: Array, bits: int) -> Array:
    """Unsigned integers of 2, 4 or 8 bits, several a byte along the last axis, the first in the lowest bits."""
    each = 8 // bits
    missing = -q.shape[-1] % each
    if missing:
        q = np.concatenate([q, np.zeros((*q.shape[:-1], missing), q.dtype)], axis=-1)
    values = q.astype(np.uint8).reshape(*q.shape[:-1], -1, each)
    shifted = values << (bits * np.arange(each, dtype=np.uint8))
    return np.asarray(np.bitwise_or.reduce(shifted, axis=-1), np.uint8)


def planes(q: Array, bits: int) -> Array:
    """Unsigned integers as `bits` rows of single bits, eight a byte, the lowest bits first: (bits, ceil(size / 8))."""
    flat = q.astype(np.uint8).reshape(-1)
    rows = [np.packbits((flat >> bit) & 1, bitorder="little") for bit in range(bits)]
    return np.stack(rows)


def sqnr_db(x: Array, approximation: Array) -> float:
    """10·log10(Σ x² / Σ (x − approximation)²), 200 for equal arrays."""
    error = (x - approximation).ravel()
    noise, signal = float(np.vdot(error, error)), float(np.vdot(x, x))
    return 200.0 if noise == 0 else float(10 * np.log10(max(signal, 1e-300) / noise))
