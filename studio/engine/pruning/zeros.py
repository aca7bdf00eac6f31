"""Which single weights become zero, and how the others make up for it.

All functions work on a matrix `w (rows, cols)`: a row computes one output, a column reads one input.

The one thing to know: error is measured in the metric of the inputs, `H = XᵀX` over calibration data.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

# Columns whose pruning is decided together; the compensation of a block is applied to the rest at once.
_BLOCK = 128
_DAMPING = 0.01
# Steps of conjugate gradients at most; the share of the residual that ends them.
_SETTLING, _SETTLED = 40, 1e-6


def smallest(scores: Array, ratio: float) -> Array:
    """Mask (True = zero) of the floor(ratio · n) lowest scores; of equal ones the first go."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(scores, axis=None, kind="stable")[: int(ratio * scores.size)]] = True
    return mask.reshape(scores.shape)


def smallest_per_row(scores: Array, ratio: float) -> Array:
    """Mask (True = zero) of the lowest scores of every row, floor(ratio · n) in all.

    Where the ratio does not come out even in a row, those rows lose one more whose next score is lowest.
    """
    rows, cols = scores.shape
    count = int(ratio * cols)
    order = np.argsort(scores, axis=1, kind="stable")
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, order[:, :count], values=True, axis=1)
    left = int(ratio * scores.size) - count * rows
    if left:
        following = order[:, count]
        lowest = np.argsort(scores[np.arange(rows), following], kind="stable")[:left]
        mask[lowest, following[lowest]] = True
    return mask


def pattern(scores: Array, zeros: int, of: int) -> Array:
    """Mask (True = zero) of the `zeros` lowest scores in every run of `of` columns; cols must divide by `of`."""
    runs = scores.reshape(-1, of)
    mask = np.zeros(runs.shape, bool)
    np.put_along_axis(mask, np.argsort(runs, axis=1, kind="stable")[:, :zeros], values=True, axis=1)
    return mask.reshape(scores.shape)


def wanda(w: Array, hessian: Array) -> Array:
    """Scores |w_ij| · ‖x_j‖.

    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2023, eq. 1.
    """
    return np.asarray(np.abs(w) * np.sqrt(np.maximum(np.diag(hessian), 0)))


def inverse_factor(hessian: Array, damping: float = _DAMPING) -> Array:
    """Upper Cholesky factor U of H⁻¹ = UᵀU, after `damping` × the mean diagonal was added to H.

    With H = MMᵀ, M upper triangular (Cholesky of H with rows and columns reversed), U = M⁻¹.
    """
    from scipy.linalg import LinAlgError, cholesky, solve_triangular

    h = hessian.astype(np.float64)
    h[np.diag_indices_from(h)] += damping * max(float(np.mean(np.diag(h))), 1e-12)
    try:
        upper = cholesky(h[::-1, ::-1], lower=True, check_finite=False)[::-1, ::-1]
    except LinAlgError:  # rounding left it indefinite
        return inverse_factor(hessian, 10 * damping)
    return np.asarray(solve_triangular(upper, np.eye(len(h)), lower=False, check_finite=False))


def sparsegpt(w: Array, hessian: Array, ratio: float, run: tuple[int, int] | None = None) -> Array:
    """Prune column after column; what each zero takes away, the columns to its right make up for.

    Removing w_i costs w_i² / U_ii² and moves the columns j > i by −(w_i / U_ii) · U_ij, with H⁻¹ = UᵀU.

    Args:
        w: (rows, cols).
        hessian: XᵀX (cols, cols).
        ratio: share of zeros in every block of columns (not used with `run`).
        run: (zeros, of) for N:M patterns; cols must divide by `of`.

    Returns:
        The new weights (rows, cols), float64.

    At last all weights that stay make up once more for all that went (`settled`).

    Source: Frantar & Alistarh, SparseGPT, 2023, algorithm 1.
    """
    rest = w.astype(np.float64)
    factor = inverse_factor(hessian)
    diagonal = np.diag(factor)
    cols = w.shape[1]
    block = _BLOCK if run is None else max(1, _BLOCK // run[1]) * run[1]
    for start in range(0, cols, block):
        end = min(start + block, cols)
        errors = np.zeros((len(w), end - start))
        mask = np.zeros((len(w), end - start), bool)
        if run is None:
            mask = smallest((rest[:, start:end] / diagonal[start:end]) ** 2, ratio)
        for i in range(start, end):
            if run is not None and (i - start) % run[1] == 0:
                ahead = slice(i, i + run[1])
                mask[:, i - start : i - start + run[1]] = pattern(
                    (rest[:, ahead] / diagonal[ahead]) ** 2, *run
                )
            gone = np.where(mask[:, i - start], rest[:, i], 0.0)
            errors[:, i - start] = gone / diagonal[i]
            rest[:, i:end] -= np.outer(errors[:, i - start], factor[i, i:end])
            rest[mask[:, i - start], i] = 0.0
        rest[:, end:] -= errors @ factor[start:end, end:]
    return settled(rest, w, hessian)


def settled(w: Array, original: Array, hessian: Array, damping: float = _DAMPING) -> Array:
    """The weights nearest to the original in the metric of the inputs, with the zeros of `w` left where they are.

    Column after column, SparseGPT lets a weight make up only for those to its left. Conjugate gradients over the
    weights of each row that are not zero, all rows at once, undo that: minimise (w − w₀) H (w − w₀)ᵀ.

    Args:
        w: (rows, cols), where to start; its zeros stay.
        original: (rows, cols).
        hessian: XᵀX (cols, cols).
        damping: × the mean diagonal, added to H.

    Source: Hestenes & Stiefel, Methods of Conjugate Gradients for Solving Linear Systems, 1952, with H's diagonal as
    the preconditioner; Kuznedelev et al., CAP, 2023, and Boža, Fast and Effective Weight Update for Pruned LLMs,
    2024, for the weights that stay.
    """
    h = hessian.astype(np.float64)
    h[np.diag_indices_from(h)] += damping * max(float(np.mean(np.diag(h))), 1e-12)
    scale, stays, found = np.diag(h), w != 0, w.astype(np.float64)
    residual = ((original - found) @ h) * stays
    direction = residual / scale
    power = (residual * direction).sum(axis=1)
    enough = _SETTLED * power.sum()
    for _ in range(_SETTLING):
        if power.sum() <= enough:
            break
        along = (direction @ h) * stays
        step = power / np.maximum((direction * along).sum(axis=1), 1e-30)
        found += step[:, None] * direction
        residual -= step[:, None] * along
        before, power = power, (np.square(residual) / scale).sum(axis=1)
        direction = residual / scale + (power / np.maximum(before, 1e-30))[:, None] * direction
    return np.asarray(found)
