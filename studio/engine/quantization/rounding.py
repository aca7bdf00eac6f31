"""Rounding with error feedback: what one weight loses, the weights not yet rounded make up for.

Equation: min over integer q of tr((W − Ŵ) H (W − Ŵ)ᵀ) with H = E[x xᵀ] of the layer's inputs. Columns are rounded one
after the other; the error of column j, divided by U_jj, is spread over the columns after it by row j of U, where
H⁻¹ = Uᵀ U (Cholesky). Columns with the largest inputs go first.

Source: Frantar et al. 2023, "GPTQ"; Hassibi & Stork 1993, "Optimal Brain Surgeon".
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

_BLOCK = 64


def feedback(
    w: Array, hessian: Array, scale: Array, zero: Array, low: int, high: int, damping: float = 0.01
) -> Array:
    """Integers for `w` on given grids.

    Args:
        w: (n, k) float.
        hessian: (k, k) second moments of the inputs, any scale.
        scale: broadcastable to (n, k).
        zero: likewise.
        low: smallest integer.
        high: largest integer.
        damping: added to the diagonal, as a share of its mean.

    Returns:
        (n, k) int32.
    """
    n, k = w.shape
    order = np.argsort(-np.diag(hessian), kind="stable")
    upper = _factor(hessian[np.ix_(order, order)], damping)
    work = w[:, order].astype(np.float64)
    steps = np.broadcast_to(scale, (n, k))[:, order].astype(np.float64)
    zeros = np.broadcast_to(zero, (n, k))[:, order].astype(np.float64)
    q = np.empty((n, k), np.int32)
    for start in range(0, k, _BLOCK):
        stop = min(start + _BLOCK, k)
        errors = np.empty((n, stop - start))
        for j in range(start, stop):
            code = np.clip(np.rint(work[:, j] / steps[:, j]) + zeros[:, j], low, high)
            q[:, order[j]] = code
            errors[:, j - start] = (work[:, j] - (code - zeros[:, j]) * steps[:, j]) / upper[j, j]
            work[:, j + 1 : stop] -= np.outer(errors[:, j - start], upper[j, j + 1 : stop])
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    return q


def _factor(hessian: Array, damping: float) -> Array:
    """Upper U with H⁻¹ = Uᵀ U, for a damped H; dead inputs (zero moments) count as the mean."""
    from scipy import linalg  # takes a while to load

    h = hessian.astype(np.float64)
    diagonal = np.diag(h)
    mean = float(diagonal.mean()) or 1.0
    h = h + np.diag(np.where(diagonal > 0, damping * mean, mean))
    inverse = linalg.cho_solve(linalg.cho_factor(h, lower=True), np.eye(len(h)))
    return np.asarray(linalg.cholesky((inverse + inverse.T) / 2, lower=False))


def feedback_grouped(
    w: Array, hessians: Array, scale: Array, low: int, high: int, damping: float = 0.01
) -> Array:
    """As `feedback`, for many small groups at once, on symmetric grids.

    Args:
        w: (groups, n, k) float.
        hessians: (groups, k, k).
        scale: (groups, n, 1).
        low: smallest integer.
        high: largest integer.
        damping: share of the mean of each diagonal.

    Returns:
        (groups, n, k) int32.
    """
    k = w.shape[2]
    h = hessians.astype(np.float64)
    diagonal = np.einsum("gkk->gk", h)
    mean = np.maximum(diagonal.mean(axis=1, keepdims=True), 1e-30)
    extra = np.where(diagonal > 0, damping * mean, mean)
    inverse = np.linalg.inv(h + np.eye(k) * extra[:, :, None])
    # numpy factors lower · lowerᵀ: upper = lowerᵀ gives H⁻¹ = upperᵀ · upper.
    upper = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)
    work, steps = w.astype(np.float64), scale[..., 0].astype(np.float64)
    q = np.empty(w.shape, np.int32)
    for j in range(k):
        code = np.clip(np.rint(work[:, :, j] / steps), low, high)
        q[:, :, j] = code
        error = (work[:, :, j] - code * steps) / upper[:, None, j, j]
        work[:, :, j + 1 :] -= error[..., None] * upper[:, None, j, j + 1 :]
    return q


def loss(w: Array, approximation: Array, hessian: Array) -> float:
    """tr((W − Ŵ) H (W − Ŵ)ᵀ)."""
    error = (w - approximation).astype(np.float64)
    return float(np.sum((error @ hessian) * error))
