"""Ridge least squares toward given weights, from second moments, with the ridge chosen by validation.

Minimise ‖Y − XWᵀ − 1bᵀ‖² + λ‖W − W₀‖². With centred moments G = XᵀX / n and C = YᵀX / n:

    W = W₀ + (C − W₀G)(G + λI)⁻¹,    b = ȳ − Wx̄.

Moments are gathered in two halves; λ is what serves the half that was not fitted best. A leading axis of
`groups` holds problems of one size side by side: the filters of a depthwise convolution are solved at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
_Part = TypeVar("_Part")
_Result = TypeVar("_Result")

# Candidates for λ, relative to the mean diagonal of G.
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_TINY = 1e-12
_FEW = 256  # rows at a time that are summed in double precision


@dataclass
class Moments:
    """Sums over the rows of one half of the data, for every group.

    Attributes:
        n: rows.
        x, y: sums (groups, k), (groups, r).
        xx, yx: sums of products (groups, k, k), (groups, r, k).
        yy: sum of squares of y (groups,).
    """

    n: int
    x: Array
    y: Array
    xx: Array
    yx: Array
    yy: Array

    @classmethod
    def zero(cls, groups: int, k: int, r: int) -> Moments:
        """Of no rows."""
        return cls(
            0, np.zeros((groups, k)), np.zeros((groups, r)), np.zeros((groups, k, k)),
            np.zeros((groups, r, k)), np.zeros(groups),
        )  # fmt: skip

    def add(self, x: Array, y: Array) -> None:
        """Add rows x (groups, n, k) and y (groups, n, r).

        Few rows come from where space has been averaged away: they vary so little around their mean that single
        precision would lose it.
        """
        if x.shape[1] <= _FEW:
            x, y = x.astype(np.float64), y.astype(np.float64)
        self.n += x.shape[1]
        self.x += x.sum(axis=1, dtype=np.float64)
        self.y += y.sum(axis=1, dtype=np.float64)
        self.xx += products(x, x)
        self.yx += products(y, x)
        self.yy += np.square(y).sum(axis=(1, 2), dtype=np.float64)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.n + other.n, self.x + other.x, self.y + other.y, self.xx + other.xx, self.yx + other.yx,
            self.yy + other.yy,
        )  # fmt: skip

    def centred(self, *, intercept: bool) -> tuple[Array, Array]:
        """G (groups, k, k) and C (groups, r, k), around the means where there is an intercept."""
        g, c = self.xx / self.n, self.yx / self.n
        if intercept:
            x, y = self.x / self.n, self.y / self.n
            g -= x[:, :, None] * x[:, None, :]
            c -= y[:, :, None] * x[:, None, :]
        return g, c

    def error(self, w: Array, b: Array) -> Array:
        """Mean squared error of y = xWᵀ + b on these rows: (groups,)."""
        x, y = self.x / self.n, self.y / self.n
        fitted = ((w @ (self.xx / self.n)) * w).sum(axis=(1, 2)) + np.square(b).sum(axis=1)
        fitted += 2 * (b * np.einsum("grk,gk->gr", w, x)).sum(axis=1)
        return np.asarray(
            self.yy / self.n
            - 2 * ((self.yx / self.n) * w).sum(axis=(1, 2))
            - 2 * (b * y).sum(axis=1)
            + fitted
        )


def at_once(work: Callable[[_Part], _Result], parts: Sequence[_Part]) -> list[_Result]:
    """What comes of every part, a thread each: numpy lets the others run while it multiplies."""
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(work, parts))


def products(a: Array, b: Array) -> Array:
    """Σ over rows of aᵀb: (groups, p, q) from (groups, n, p) and (groups, n, q)."""
    if len(a) == 1:  # numpy sees that a matrix meets itself, and halves the work
        return np.asarray(a[0].T @ b[0])[None]
    return np.asarray(a.transpose(0, 2, 1) @ b)


@dataclass(frozen=True)
class Fit:
    """Weights found (groups, r, k), biases (groups, r), ridges (groups,).

    `error` and `before` are mean squared errors over all rows, relative to y's power: (groups,).
    """

    w: Array
    b: Array
    ridge: Array
    error: Array
    before: Array


def fit(halves: tuple[Moments, Moments], w0: Array, b0: Array, *, intercept: bool) -> Fit:
    """Fit w (groups, r, k) and b (groups, r) toward w0; b stays b0 without an intercept."""
    first, second = halves
    total = first + second
    nothing = np.zeros(len(w0))
    if total.n == 0:
        return Fit(w0, b0, nothing, nothing, nothing)
    w0, b0 = w0.astype(np.float64), b0.astype(np.float64)
    ridge = np.full(len(w0), 1e-2)
    if first.n and second.n:
        ridge = np.array(_RIDGES)[_tried(first, second, w0, b0, intercept=intercept).argmin(axis=0)]
    power = np.maximum(total.yy / total.n, 1e-30)
    before = total.error(w0, b0) / power
    w, b = _solve(total, w0, b0, ridge, intercept=intercept)
    after = total.error(w, b) / power
    worse = ~(after <= before)
    w[worse], b[worse], after[worse] = w0[worse], b0[worse], before[worse]
    return Fit(w, b, ridge, after, before)


def _tried(train: Moments, test: Moments, w0: Array, b0: Array, *, intercept: bool) -> Array:
    """Errors on rows that were not fitted, for every ridge: (ridges, groups)."""
    found = [
        test.error(*_solve(train, w0, b0, np.full(len(w0), ridge), intercept=intercept)) for ridge in _RIDGES
    ]
    return np.asarray(np.nan_to_num(np.array(found), nan=np.inf))


def _solve(m: Moments, w0: Array, b0: Array, ridge: Array, *, intercept: bool) -> tuple[Array, Array]:
    """W and b at one ridge a group; NaN where rounding makes the damped moments indefinite."""
    g, c = m.centred(intercept=intercept)
    if not intercept:
        c -= b0[:, :, None] * (m.x / m.n)[:, None, :]
    wanted = (c - w0 @ g).transpose(0, 2, 1)
    w = w0 + _divider(g, ridge)(wanted).transpose(0, 2, 1)
    b = (m.y / m.n) - np.einsum("grk,gk->gr", w, m.x / m.n) if intercept else b0.copy()
    return w, b


def _divider(g: Array, ridge: Array) -> Callable[[Array], Array]:
    """What multiplies (groups, k, r) by the inverse of G, damped in place: a single G is factorised once."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    diagonal = np.einsum("gkk->gk", g)  # a view: what is added lands in g
    diagonal += (ridge * np.maximum(diagonal.mean(axis=1), _TINY))[:, None]
    if len(g) > 1:
        return lambda wanted: np.asarray(np.linalg.solve(g, wanted))
    try:
        factor = cho_factor(g[0], lower=True, check_finite=False)
    except LinAlgError:
        return lambda wanted: np.full_like(wanted, np.nan)
    return lambda wanted: np.array([cho_solve(factor, wanted[0], check_finite=False)])


Bounds: TypeAlias = tuple[float, float]  # of the activation behind: values outside are all the same to it

_ROUNDS, _TRIAL_ROUNDS = 5, 2  # of all rows; of the half that shows whether it helps


@dataclass(frozen=True)
class Rows:
    """Rows of a problem: x (groups, n, k), y (groups, n, r), and what is added to y in front of the activation."""

    x: Array
    y: Array
    beside: Array | float = 0.0  # (groups, n, r)

    def part(self, rows: slice) -> Rows:
        """Some of the rows."""
        beside = self.beside[:, rows] if isinstance(self.beside, np.ndarray) else self.beside
        return Rows(self.x[:, rows], self.y[:, rows], beside)

    def halves(self) -> tuple[Rows, Rows]:
        """The first and the other half of the rows."""
        middle = self.x.shape[1] // 2
        return self.part(slice(middle)), self.part(slice(middle, None))

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of several."""
        beside = [p.beside for p in parts if isinstance(p.beside, np.ndarray)]
        return cls(
            np.concatenate([p.x for p in parts], axis=1),
            np.concatenate([p.y for p in parts], axis=1),
            np.concatenate(beside, axis=1) if len(beside) == len(parts) else 0.0,
        )


def rectified(
    rows: tuple[Rows, Rows], halves: tuple[Moments, Moments], start: Fit, w0: Array, bounds: Bounds
) -> Fit:
    """Fit anew what the activation lets through: where target and fit are both clipped, nothing is asked.

    Targets outside the bounds move to the fit as long as that is outside, too (a majorising step each round).
    It is kept in the groups where the half that was not fitted agrees.

    Source: Zhang et al., Accelerating Very Deep Convolutional Networks, 2015, section 3.2 (nonlinear case).
    """
    first, second = halves
    if not first.n or not second.n:
        return start
    b0 = np.zeros(w0.shape[:2])  # not asked for where there is an intercept
    trial = _solve(first, w0, b0, start.ridge, intercept=True)
    better = _rounds(rows[0].halves(), first, trial, w0, start.ridge, bounds, _TRIAL_ROUNDS)
    errors = at_once(lambda found: _clipped_error(rows[1], found, bounds), (better, trial))
    agreed = errors[0] < errors[1]
    if not agreed.any():
        return start
    w, b = _rounds(rows, first + second, (start.w, start.b), w0, start.ridge, bounds, _ROUNDS)
    agreed &= np.isfinite(w).all(axis=(1, 2)) & np.isfinite(b).all(axis=1)
    w, b = np.where(agreed[:, None, None], w, start.w), np.where(agreed[:, None], b, start.b)
    return Fit(w, b, start.ridge, start.error, start.before)


def _rounds(
    rows: tuple[Rows, Rows],
    m: Moments,
    found: tuple[Array, Array],
    w0: Array,
    ridge: Array,
    bounds: Bounds,
    rounds: int,
) -> tuple[Array, Array]:
    g, _ = m.centred(intercept=True)
    kept, mean = w0 @ g, m.x / m.n
    divided = _divider(g, ridge)

    def asked(part: Rows) -> tuple[Array, Array]:
        """Sums of the targets, and of their products with x, where those outside the bounds moved to the fit."""
        low, high = (bound - part.beside for bound in bounds)
        fitted = _fitted(part.x, found)
        wanted = np.where(part.y >= high, np.maximum(fitted, high), part.y)
        wanted = np.where(part.y <= low, np.minimum(fitted, low), wanted)
        return wanted.sum(axis=1, dtype=np.float64), products(wanted, part.x).astype(np.float64)

    for _ in range(rounds):
        sums, crossed = (sum(parts) for parts in zip(*at_once(asked, rows), strict=True))
        centre = sums / m.n
        c = crossed / m.n - centre[:, :, None] * mean[:, None, :]
        w = w0 + divided((c - kept).transpose(0, 2, 1)).transpose(0, 2, 1)
        found = w, centre - np.einsum("grk,gk->gr", w, mean)
    return found


def _fitted(x: Array, found: tuple[Array, Array]) -> Array:
    w, b = (part.astype(np.float32) for part in found)
    return np.asarray(x @ w.transpose(0, 2, 1) + b[:, None, :])


def _clipped_error(rows: Rows, found: tuple[Array, Array], bounds: Bounds) -> Array:
    """Squared error behind the activation: (groups,)."""
    miss = np.clip(_fitted(rows.x, found) + rows.beside, *bounds) - np.clip(rows.y + rows.beside, *bounds)
    return np.asarray(np.square(miss).sum(axis=(1, 2), dtype=np.float64))


class Problem:
    """Least-squares problems of one size while their rows arrive.

    Args:
        shape: (groups, r, k) of the weights wanted.
        bounds: of the activation behind; given, the rows are held for `rectified`.
    """

    def __init__(self, shape: tuple[int, ...], bounds: Bounds | None = None) -> None:
        groups, r, k = shape
        self._halves = (Moments.zero(groups, k, r), Moments.zero(groups, k, r))
        self._rows: tuple[list[Rows], list[Rows]] = ([], [])
        self._bounds = bounds

    def add(self, rows: Rows, number: int | None) -> None:
        """Add rows: feeds take turns between the halves by their number, a single feed (None) is divided.

        Threads may add to different halves at once.
        """
        pieces = ((number % 2, rows),) if number is not None else tuple(enumerate(rows.halves()))
        for half, piece in pieces:
            self._halves[half].add(piece.x, piece.y)
            if self._bounds is not None:
                self._rows[half].append(piece)

    def solve(self, w0: Array, b0: Array, *, intercept: bool) -> Fit:
        """The weights (groups, r, k) and biases (groups, r) nearest to the given ones that the rows want."""
        found = fit(self._halves, w0, b0, intercept=intercept)
        if self._bounds is None or not intercept or not all(self._rows):
            return found
        first, second = (Rows.joined(half) for half in self._rows)
        return rectified((first, second), self._halves, found, w0, self._bounds)
