"""Weights in blocks: every run of `size` values along the input axis has a scale (and zero point) of its own.

The scale of each block is searched in the metric of the layer's inputs, Σ_k d_k (w_k − ŵ_k)² with d = diag E[x xᵀ]
(1 without data), then the weights are rounded with error feedback where E[x xᵀ] is known. A zero point may lie between
two codes: its fraction f moves the weights, w + f s = s (q − ⌊z⌉), and all else stays as it is.

Source: Badri & Shaji 2023, "HQQ" (searching the grid, not the weights); Lin et al. 2024, "AWQ" (inputs decide which
weights matter); Frantar et al. 2023, "GPTQ".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.engine.quantization import grids, rounding, zero_points

Array: TypeAlias = npt.NDArray[Any]
Solver: TypeAlias = Literal["squares", "hqq"]

_TURNS = 2  # of codes for the scales, and scales for the codes
_SHARES = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.78, 0.74, 0.7)


@dataclass(frozen=True)
class Blocks:
    """Block-quantized weights of one (n, k) matrix.

    Attributes:
        q: (n, blocks, size) int32 codes, 0 to 2^bits − 1.
        scale: (n, blocks) float32.
        zero: (n, blocks) int32, the middle for the symmetric form; float32 where it may lie between two codes.
        bits: of a code.
        columns: k, without the padding of the last block.
        symmetric: no zero points are stored.
    """

    q: Array
    scale: Array
    zero: Array
    bits: int
    columns: int
    symmetric: bool

    def real(self) -> Array:
        """(n, k): the numbers the codes stand for."""
        values = (self.q - self.zero[..., None]) * self.scale[..., None]
        return np.asarray(values.reshape(len(self.q), -1)[:, : self.columns], np.float32)


def fit(
    w: Array,
    size: int,
    bits: int,
    *,
    symmetric: bool,
    moments: Array | None = None,
    solver: Solver = "squares",
    float_zeros: bool = False,
) -> Blocks:
    """Codes and grids for (n, k) weights.

    Args:
        w: float weights, a row an output.
        size: values that share a scale.
        bits: of a code.
        symmetric: no zero points.
        moments: (groups, k, k) second moments of the inputs; None = all inputs alike.
        solver: of the grids: least squares, or HQQ, which needs zero points.
        float_zeros: zero points may lie between two codes; not with `symmetric`.

    Raises:
        StudioError: `w` holds NaN or infinities.
    """
    parts = grids.blocks(w, size)
    n, k = w.shape
    weight = None
    if moments is not None:
        diagonals = np.repeat(np.einsum("gkk->gk", moments), n // len(moments), axis=0)
        weight = grids.blocks(np.maximum(diagonals, 0), size)
    grid, fraction = _grid(parts, weight, bits, solver, symmetric=symmetric, float_zeros=float_zeros)
    zero = grid.zero if fraction is None else grid.zero + fraction
    moved = parts if fraction is None else parts + fraction * grid.scale
    if moments is None:
        return Blocks(grid.quantize(moved), grid.scale[..., 0], zero[..., 0], bits, k, symmetric)
    scale, whole, exact = (np.repeat(a[..., 0], size, axis=1)[:, :k] for a in (grid.scale, grid.zero, zero))
    wanted = moved.reshape(n, -1)[:, :k]
    q = np.broadcast_to(grid.zero, parts.shape).reshape(n, -1).copy()
    group = n // len(moments)
    for index, hessian in enumerate(moments):
        part = slice(index * group, (index + 1) * group)
        q[part, :k] = rounding.feedback(wanted[part], hessian, scale[part], whole[part], grid.low, grid.high)
        scale[part] = refit(w[part], hessian, q[part, :k], scale[part], exact[part], size)
    return Blocks(q.reshape(parts.shape), _by_block(scale, size), zero[..., 0], bits, k, symmetric)


def _grid(
    parts: Array, weight: Array | None, bits: int, solver: Solver, *, symmetric: bool, float_zeros: bool
) -> tuple[grids.Grid, Array | None]:
    """The grid of every block, and the fractions of its zero points; None where these are integers."""
    if symmetric or (solver == "squares" and not float_zeros):
        n, _, size = parts.shape
        whole = grids.block_grid(parts.reshape(n, -1), size, bits, symmetric_=symmetric)
        return _search(parts, whole, weight, symmetric=symmetric), None
    if solver == "hqq":
        scale, zero = zero_points.half_quadratic(parts, bits, integer=not float_zeros)
    else:
        scale, zero = zero_points.least_squares(parts, weight, bits)
    nearest = np.rint(zero)
    fraction = (zero - nearest).astype(np.float32) if float_zeros else None
    return grids.Grid(scale, nearest.astype(np.int32), *grids.bounds(bits, signed=False)), fraction


def refit(w: Array, hessian: Array, q: Array, scale: Array, zero: Array, size: int) -> Array:
    """Scales for codes that are fixed: least squares in the metric of the inputs, one block after the other.

    Args:
        w: (n, k) float weights.
        hessian: (k, k) second moments of the inputs.
        q: (n, k) codes.
        scale: (n, k), the same within a block.
        zero: likewise.
        size: values that share a scale.

    Returns:
        (n, k); no scale changes sign or moves by more than a quarter.
    """
    codes, found = (q - zero).astype(np.float32), scale.astype(np.float32)
    left = (w - codes * found) @ hessian
    for start in range(0, w.shape[1], size):
        part = slice(start, min(start + size, w.shape[1]))
        u = codes[:, part]
        energy = ((u @ hessian[part, part]) * u).sum(1)
        ratio = (u * left[:, part]).sum(1) / np.where(energy > 0, energy, 1) / found[:, start]
        change = np.clip(np.where(energy > 0, ratio, 0), -0.25, 0.25) * found[:, start]
        found[:, part] += change[:, None]
        left -= (u * change[:, None]) @ hessian[part]
    return found


def _by_block(values: Array, size: int) -> Array:
    """(n, k) values, the same within a block, as (n, blocks)."""
    return np.ascontiguousarray(values[:, ::size])


def _search(parts: Array, grid: grids.Grid, weight: Array | None, *, symmetric: bool) -> grids.Grid:
    """The grid of each block with the least (weighted) squared error among narrower and shifted ones."""
    best_scale, best_zero = grid.scale, grid.zero
    least = np.full(grid.scale.shape, np.inf)
    for share in _SHARES:
        scale = (grid.scale * share).astype(np.float32)
        for shift in (0,) if symmetric else (0, -1, 1):
            zero = np.clip(grid.zero + shift, grid.low, grid.high)
            error = np.square(parts - grids.Grid(scale, zero, grid.low, grid.high).snap(parts))
            total = (error if weight is None else error * weight).sum(-1, keepdims=True)
            better = total < least
            least = np.where(better, total, least)
            best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
    for _ in range(_TURNS):
        codes = grids.Grid(best_scale, best_zero, grid.low, grid.high).quantize(parts) - best_zero
        weighed = codes if weight is None else codes * weight
        energy = (weighed * codes).sum(-1, keepdims=True)
        fitted = (weighed * parts).sum(-1, keepdims=True) / np.where(energy > 0, energy, 1)
        scale = np.where(fitted * best_scale > 0, fitted, best_scale).astype(np.float32)
        error = np.square(parts - grids.Grid(scale, best_zero, grid.low, grid.high).snap(parts))
        total = (error if weight is None else error * weight).sum(-1, keepdims=True)
        best_scale, least = np.where(total < least, scale, best_scale), np.minimum(total, least)
    return grids.Grid(best_scale.astype(np.float32), best_zero.astype(np.int32), grid.low, grid.high)


def blank(n: int, k: int, size: int, bits: int, *, symmetric: bool, float_zeros: bool = False) -> Blocks:
    """Blocks of the right shape and no value: for plans."""
    count = -(-k // size)
    middle = np.full((n, count), 2 ** (bits - 1), np.float32 if float_zeros else np.int32)
    return Blocks(
        np.zeros((n, count, size), np.uint8), np.ones((n, count), np.float32), middle, bits, k, symmetric
    )
