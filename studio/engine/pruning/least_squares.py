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
