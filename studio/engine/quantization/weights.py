"""Integer weights for one layer: ranges per channel, found by max or by least squared error."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.engine.quantization import grids, rounding
from studio.engine.quantization.qdq import LayerWeights

Array: TypeAlias = npt.NDArray[Any]
Search: TypeAlias = Literal["max", "mse"]


def per_channel(w: Array, axis: int | None, bits: int = 8, search: Search = "max") -> LayerWeights:
    """Symmetric integers with one scale a channel along `axis` (None: one for all).

    Args:
        w: float weights.
        axis: of the output channels.
        bits: 2 to 8; fewer than 8 leave the upper values of int8 unused.
        search: 'max' covers every weight; 'mse' tries narrower ranges and keeps the one with the least squared error.

    Raises:
        StudioError: `w` holds NaN or infinities.
    """
    others = None if axis is None else tuple(i for i in range(w.ndim) if i != axis)
    grid = grids.symmetric(w, others, bits)
    if search == "mse":
        grid = _least_squares(w, grid, others)
    return LayerWeights(
        grid.quantize(w), grid.scale.reshape(-1) if axis is not None else grid.scale.reshape(()), axis
    )


def shifted(w: Array, axis: int | None, bits: int = 8) -> LayerWeights:
    """Integers with a zero point: the grid reaches from the smallest to the largest weight, zero is on it.

    Args:
        w: float weights.
        axis: of the output channels; None: one scale for all.
        bits: 2 to 8.

    Raises:
        StudioError: `w` holds NaN or infinities.
    """
    others = None if axis is None else tuple(i for i in range(w.ndim) if i != axis)
    low, high = w.min(axis=others, keepdims=True), w.max(axis=others, keepdims=True)
    grid = grids.affine(low, high, bits, signed=True)
    shape = (-1,) if axis is not None else ()
    return LayerWeights(grid.quantize(w), grid.scale.reshape(shape), axis, grid.zero.reshape(shape))


def _least_squares(w: Array, grid: grids.Grid, others: tuple[int, ...] | None) -> grids.Grid:
    best = grid.scale.copy()
    least = np.square(w - grid.snap(w)).sum(axis=others, keepdims=True)
    for share in np.linspace(0.98, 0.6, 20):
        tried = grids.Grid((grid.scale * share).astype(np.float32), grid.zero, grid.low, grid.high)
        error = np.square(w - tried.snap(w)).sum(axis=others, keepdims=True)
        better = error < least
        best, least = np.where(better, tried.scale, best), np.where(better, error, least)
    return grids.Grid(best.astype(np.float32), grid.zero, grid.low, grid.high)


def fed_back(w: Array, axis: int, bits: int, moments: Array, damping: float = 0.01) -> LayerWeights:
    """As `per_channel` (covering every weight), rounded with error feedback in the metric of the layer's inputs.

    Args:
        w: float weights; (out, in / groups, *kernel) for a convolution, else 2-D.
        axis: of the output channels.
        bits: 2 to 8.
        moments: (groups, k, k) of the layer's inputs.
        damping: added to their diagonal, as a share of its mean.
    """
    plain = per_channel(w, axis, bits)
    low, high = grids.bounds(bits, signed=True, narrow=True)
    groups, k = moments.shape[:2]
    rows = np.moveaxis(w, axis, 0).reshape(groups, -1, k)
    scale = plain.scale.reshape(groups, -1, 1)
    if groups == 1:
        q = rounding.feedback(rows[0], moments[0], scale[0], np.zeros(1), low, high, damping)[None]
    else:
        q = rounding.feedback_grouped(rows, moments, scale, low, high, damping)
    moved = q.reshape([w.shape[axis], *(d for i, d in enumerate(w.shape) if i != axis)])
    return LayerWeights(np.moveaxis(moved, 0, axis), plain.scale, axis)


def zeros(shape: tuple[int, ...], axis: int | None, *, symmetric: bool = True) -> LayerWeights:
    """Integer weights of the right shape and no value: for plans."""
    channels = () if axis is None else (shape[axis],)
    zero = None if symmetric else np.zeros(channels, np.int32)
    return LayerWeights(np.zeros(shape, np.int8), np.ones(channels, np.float32), axis, zero)
