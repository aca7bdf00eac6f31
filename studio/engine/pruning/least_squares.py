"""Ridge least squares toward given weights, from second moments, with the ridge chosen by validation.

Minimise ‖Y − XWᵀ − 1bᵀ‖² + λ‖W − W₀‖². With centred moments G = XᵀX / n and C = YᵀX / n:

    W = W₀ + (C − W₀G)(G + λI)⁻¹,    b = ȳ − Wx̄.

Moments are gathered in two halves; λ is what serves the half that was not fitted best.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

# Candidates for λ, relative to the mean diagonal of G.
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


@dataclass
class Moments:
    """Sums over rows of one half of the data.

    Attributes:
        n: rows.
        x, y: sums (k,), (r,).
        xx, yx: sums of products (k, k), (r, k).
        yy: sum of squares of y.
    """

    n: int = 0
    x: Array = field(default_factory=lambda: np.zeros(0))
    y: Array = field(default_factory=lambda: np.zeros(0))
    xx: Array = field(default_factory=lambda: np.zeros((0, 0)))
    yx: Array = field(default_factory=lambda: np.zeros((0, 0)))
    yy: float = 0.0

    def add(self, x: Array, y: Array) -> None:
        """Add rows x (n, k) and y (n, r)."""
        if not self.n:
            k, r = x.shape[1], y.shape[1]
            self.x, self.y, self.xx, self.yx = np.zeros(k), np.zeros(r), np.zeros((k, k)), np.zeros((r, k))
        self.n += len(x)
        self.x += x.sum(axis=0, dtype=np.float64)
        self.y += y.sum(axis=0, dtype=np.float64)
        self.xx += x.T @ x
        self.yx += y.T @ x
        self.yy += float(np.square(y, dtype=np.float64).sum())

    def __add__(self, other: Moments) -> Moments:
        if not self.n or not other.n:
            return self if self.n else other
        return Moments(
            self.n + other.n, self.x + other.x, self.y + other.y, self.xx + other.xx, self.yx + other.yx,
            self.yy + other.yy,
        )  # fmt: skip

    def centred(self, *, intercept: bool) -> tuple[Array, Array]:
        """G (k, k) and C (r, k), around the means where there is an intercept."""
        g, c = self.xx / self.n, self.yx / self.n
        if intercept:
            x, y = self.x / self.n, self.y / self.n
            g, c = g - np.outer(x, x), c - np.outer(y, x)
        return g, c

    def error(self, w: Array, b: Array) -> float:
        """Mean squared error of y = xWᵀ + b on these rows."""
        x, y = self.x / self.n, self.y / self.n
        fitted = (w @ (self.xx / self.n) * w).sum() + 2 * b @ (w @ x) + b @ b
        return float(self.yy / self.n - 2 * ((self.yx / self.n) * w).sum() - 2 * b @ y + fitted)


@dataclass(frozen=True)
class Fit:
    """The weights found; `error` and `before` are mean squared errors over all rows, relative to y's power."""

    w: Array
    b: Array
    ridge: float
    error: float
    before: float


def fit(halves: tuple[Moments, Moments], w0: Array, b0: Array, *, intercept: bool) -> Fit:
    """Fit w (r, k) and b (r,) toward w0; b stays b0 without an intercept."""
    first, second = halves
    total = first + second
    if total.n == 0:
        return Fit(w0, b0, 0.0, 0.0, 0.0)
    w0, b0 = w0.astype(np.float64), b0.astype(np.float64)
    ridge = 1e-2
    if first.n and second.n:
        scores = [_tried(first, second, w0, b0, r, intercept=intercept) for r in _RIDGES]
        ridge = _RIDGES[int(np.argmin(scores))]
    power = max(total.yy / total.n, 1e-30)
    before = total.error(w0, b0) / power
    solved = _solve(total, w0, b0, ridge, intercept=intercept)
    if solved is None:
        return Fit(w0, b0, ridge, before, before)
    w, b = solved
    after = total.error(w, b) / power
    return Fit(w, b, ridge, after, before) if after <= before else Fit(w0, b0, ridge, before, before)


def _tried(train: Moments, test: Moments, w0: Array, b0: Array, ridge: float, *, intercept: bool) -> float:
    solved = _solve(train, w0, b0, ridge, intercept=intercept)
    return np.inf if solved is None else test.error(*solved)


def _solve(m: Moments, w0: Array, b0: Array, ridge: float, *, intercept: bool) -> tuple[Array, Array] | None:
    """W and b at one ridge; None where rounding makes the damped moments indefinite."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    g, c = m.centred(intercept=intercept)
    if not intercept:
        c = c - np.outer(b0, m.x / m.n)
    damped = g.copy()
    damped[np.diag_indices_from(damped)] += ridge * max(float(np.mean(np.diag(g))), 1e-12)
    try:
        factor = cho_factor(damped, lower=True, check_finite=False)
    except LinAlgError:
        return None
    w = w0 + cho_solve(factor, (c - w0 @ g).T, check_finite=False).T
    b = (m.y - w @ m.x) / m.n if intercept else b0
    return w, b


Rows: TypeAlias = tuple[Array, Array]  # x (n, k), y (n, r)
Bounds: TypeAlias = tuple[float, float]  # of the activation behind: values outside are all the same to it

_ROUNDS = 3


def rectified(
    rows: tuple[Rows, Rows], halves: tuple[Moments, Moments], start: Fit, w0: Array, b0: Array, bounds: Bounds
) -> Fit:
    """Fit anew what the activation lets through: where target and fit are both clipped, nothing is asked.

    Targets outside the bounds move to the fit as long as that is outside, too (a majorising step each round).
    It is kept where the half that was not fitted agrees.

    Source: Zhang et al., Accelerating Very Deep Convolutional Networks, 2015, section 3.2 (nonlinear case).
    """
    first, second = halves
    if not first.n or not second.n:
        return start
    trial = _solve(first, w0, b0, start.ridge, intercept=True)
    if trial is None:
        return start
    better = _rounds(rows[0], first, trial, w0, b0, start.ridge, bounds)
    if _clipped_error(rows[1], better, bounds) >= _clipped_error(rows[1], trial, bounds):
        return start
    both = np.concatenate([rows[0][0], rows[1][0]]), np.concatenate([rows[0][1], rows[1][1]])
    w, b = _rounds(both, first + second, (start.w, start.b), w0, b0, start.ridge, bounds)
    return Fit(w, b, start.ridge, start.error, start.before)


def _rounds(
    rows: Rows, m: Moments, found: tuple[Array, Array], w0: Array, b0: Array, ridge: float, bounds: Bounds
) -> tuple[Array, Array]:
    x, y = rows
    low, high = bounds
    for _ in range(_ROUNDS):
        fitted = x @ found[0].T.astype(np.float32) + found[1].astype(np.float32)
        wanted = np.where(y <= low, np.minimum(fitted, low), np.where(y >= high, np.maximum(fitted, high), y))
        moved = Moments(
            m.n, m.x, wanted.sum(axis=0, dtype=np.float64), m.xx, (wanted.T @ x).astype(np.float64), m.yy
        )
        solved = _solve(moved, w0, b0, ridge, intercept=True)
        if solved is None:
            break
        found = solved
    return found


def _clipped_error(rows: Rows, found: tuple[Array, Array], bounds: Bounds) -> float:
    x, y = rows
    fitted = x @ found[0].T.astype(np.float32) + found[1].astype(np.float32)
    return float(np.square(np.clip(fitted, *bounds) - np.clip(y, *bounds), dtype=np.float64).sum())


class Problem:
    """One least-squares problem while its rows arrive.

    Args:
        bounds: of the activation behind; given, the rows are held for `rectified`.
    """

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._halves = (Moments(), Moments())
        self._rows: tuple[list[Rows], list[Rows]] = ([], [])
        self._bounds = bounds

    def add(self, x: Array, y: Array, number: int | None) -> None:
        """Add rows; feeds take turns between the halves by their number, a single feed (None) is divided."""
        middle = len(x) // 2
        pieces = (
            ((number % 2, x, y),)
            if number is not None
            else ((0, x[:middle], y[:middle]), (1, x[middle:], y[middle:]))
        )
        for half, rows, wanted in pieces:
            self._halves[half].add(rows, wanted)
            if self._bounds is not None:
                self._rows[half].append((rows, wanted))

    def solve(self, w0: Array, b0: Array, *, intercept: bool) -> Fit:
        """The weights (r, k) and bias (r,) nearest to the given ones that the rows want."""
        found = fit(self._halves, w0, b0, intercept=intercept)
        if self._bounds is None or not intercept or not all(self._rows):
            return found
        joined = tuple(
            (np.concatenate([x for x, _ in half]), np.concatenate([y for _, y in half]))
            for half in self._rows
        )
        return rectified((joined[0], joined[1]), self._halves, found, w0, b0, self._bounds)
