"""Grids of blocks whose zero point was looked for, and need not be an integer: w ≈ s (q − z), q = round(w / s + z).

Two ways to them, both by turns between codes and grids, both without data:

- *least squares*: min over s, z of Σ_k d_k (w_k − s (q_k − z))², d the weight of each input (1 without data).
- *half-quadratic* (HQQ): min over z of Σ |w − s (q − z)|^p with p < 1, which lets single outliers be wrong. A second
  variable e takes them up: e = shrink_p(w − ŵ, β), z = mean(q − (w − e) / s), with β growing.

Source: Badri & Shaji 2023, "HQQ: Half-Quadratic Quantization of Large Machine Learning Models", eqs. 3–6 and the
reference implementation's p = 0.7, β = 10, κ = 1.01, 20 turns.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.engine.quantization import grids

Array: TypeAlias = npt.NDArray[Any]

_NORM, _BETA, _GROWTH, _TURNS = 0.7, 10.0, 1.01, 20
_TINY = 1e-12
# Parts of the whole range that least squares begin with, and turns for each.
_SHARES, _REFITS = (1.0, 0.94, 0.88, 0.82, 0.76), 5


def least_squares(parts: Array, weight: Array | None, bits: int) -> tuple[Array, Array]:
    """Scale and float zero point (n, blocks, 1) of the least (weighted) squared error.

    Args:
        parts: (n, blocks, size) float weights.
        weight: of each, broadcastable; None = all alike.
        bits: of a code.

    Raises:
        StudioError: `parts` hold NaN or infinities.
    """
    top = 2**bits - 1
    low, reach = _range(parts, bits)
    d = np.ones(1, np.float32) if weight is None else weight.astype(np.float32) + _TINY
    mass = np.broadcast_to(d, parts.shape).sum(-1, keepdims=True)
    centre = (d * parts).sum(-1, keepdims=True) / mass
    best_scale, best_zero = reach / top, -low / (reach / top)
    least = np.full(low.shape, np.inf)
    for share in _SHARES:
        scale = reach * share / top
        zero = top / 2 - (low + reach / 2) / scale
        for _ in range(_REFITS):
            q = _codes(parts, scale, zero, top)
            error = (d * np.square(parts - (q - zero) * scale)).sum(-1, keepdims=True)
            better = error < least
            least = np.where(better, error, least)
            best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
            middle = (d * q).sum(-1, keepdims=True) / mass
            spread = (d * np.square(q - middle)).sum(-1, keepdims=True)
            common = (d * (q - middle) * (parts - centre)).sum(-1, keepdims=True)
            scale = np.where(common > 0, common / np.maximum(spread, _TINY), scale)
            scale = np.maximum(scale, grids.SMALLEST_SCALE)
            zero = middle - centre / scale
    return best_scale.astype(np.float32), best_zero.astype(np.float32)


def half_quadratic(parts: Array, bits: int, *, integer: bool) -> tuple[Array, Array]:
    """Scale and zero point (n, blocks, 1) by HQQ; with integer zero points the scales are fitted again afterwards.

    Args:
        parts: (n, blocks, size) float weights.
        bits: of a code.
        integer: zero points are rounded within every turn and lie on the grid.

    Raises:
        StudioError: `parts` hold NaN or infinities.
    """
    top = 2**bits - 1
    low, reach = _range(parts, bits)
    scale = reach / top
    zero = _held(-low / scale, top, integer=integer)
    best, least, beta = zero, np.full(low.shape, np.inf), _BETA
    for _ in range(_TURNS):
        error = parts - (_codes(parts, scale, zero, top) - zero) * scale
        loss = np.power(np.abs(error), _NORM).sum(-1, keepdims=True)
        better = loss < least
        if not better.any():
            break
        least, best = np.where(better, loss, least), np.where(better, zero, best)
        size = np.abs(error)
        outlying = np.sign(error) * np.maximum(size - np.power(size + _TINY, _NORM - 1) / beta, 0)
        q = _codes(parts, scale, zero, top)
        zero = _held((q - (parts - outlying) / scale).mean(-1, keepdims=True), top, integer=integer)
        beta *= _GROWTH
    if integer:
        q = _codes(parts, scale, best, top) - best
        energy = np.square(q).sum(-1, keepdims=True)
        fitted = (q * parts).sum(-1, keepdims=True) / np.where(energy > 0, energy, 1)
        scale = np.where(fitted > grids.SMALLEST_SCALE, fitted, scale)
    return scale.astype(np.float32), best.astype(np.float32)


def _range(parts: Array, bits: int) -> tuple[Array, Array]:
    """Lowest value and extent of every block; an extent that is never zero."""
    grids.affine(parts.min(-1), parts.max(-1), bits)  # refuses NaN and infinities
    low, high = parts.min(-1, keepdims=True), parts.max(-1, keepdims=True)
    flat = high - low <= grids.SMALLEST_SCALE * 2**bits
    # One value alone is met exactly by a step as long as it is.
    return low, np.where(flat, np.where(low == 0, 1.0, np.abs(low)) * (2**bits - 1), high - low)


def _held(zero: Array, top: int, *, integer: bool) -> Array:
    return np.clip(np.rint(zero), 0, top) if integer else zero


def _codes(parts: Array, scale: Array, zero: Array, top: int) -> Array:
    return np.asarray(np.clip(np.rint(parts / scale + zero), 0, top))
