"""Second moments of layers' inputs over calibration data, streamed: H = Σ x xᵀ.

Rows are sampled where a convolution has many positions: a few for every column suffice, and time and
memory stay bounded for any image size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from studio.base.progress import Progress
from studio.engine.dataset import Dataset
from studio.engine.execute import stream
from studio.engine.graph import Model
from studio.engine.pruning.least_squares import products
from studio.engine.pruning.linear import Array, Linear

_ROWS_PER_COLUMN = 32
_LEAST_ROWS = 8192
_MOST_ROWS = 40_000
_GENEROUSLY = 4  # times as many rows for a fit as for second moments
_MOST_HELD = 1 << 25  # values of the rows of a fit, which may be held
_MOST_VALUES = 1 << 24  # of all groups together, which a wide depthwise convolution would exceed
_BYTES = 1 << 30  # of all matrices held at a time; more layers mean another walk over the data


def sample(rng: np.random.Generator, positions: int, budget: int) -> Array:
    """At most `budget` of `positions` row numbers, ascending."""
    if positions <= budget:
        return np.arange(positions)
    return np.sort(rng.choice(positions, budget, replace=False))


def row_budget(view: Linear) -> int:
    """How many rows a layer's second moments get."""
    columns = columns_of(view)
    wanted = int(np.clip(_ROWS_PER_COLUMN * columns, _LEAST_ROWS, _MOST_ROWS))
    affordable = max(_ROWS_PER_COLUMN * columns, _MOST_VALUES // (view.groups * columns))
    return wanted if view.groups == 1 else min(wanted, affordable)


def fit_budget(view: Linear) -> int:
    """How many rows a layer that is fitted gets: more than second moments need, as far as they can be held."""
    wanted = row_budget(view)
    if view.groups > 1:
        return wanted
    return max(wanted, min(_GENEROUSLY * wanted, _MOST_HELD // columns_of(view)))


@dataclass
class Statistics:
    """Sums over the rows of a layer's input, in two halves of the samples, so that one can check the other.

    Attributes:
        n: rows (2,).
        x: sums (2, groups, cols).
        xx: sums of products (2, groups, cols, cols).
    """

    n: Array
    x: Array
    xx: Array

    def mean(self, half: int | None = None) -> Array:
        """Mean input (groups, cols) of one half, or of both."""
        pick = self._pick(half)
        return np.asarray(self.x[pick].sum(axis=0) / max(1, int(self.n[pick].sum())))

    def _pick(self, half: int | None) -> slice:
        """Which halves; both where the one asked for is empty."""
        return slice(None) if half is None or not self.n[half] else slice(half, half + 1)

    def moments(self, half: int | None = None, *, centred: bool = False) -> Array:
        """Mean products (groups, cols, cols), of one half or of both, around the mean if asked."""
        pick = self._pick(half)
        n = max(1, int(self.n[pick].sum()))
        found = self.xx[pick].sum(axis=0) / n
        if centred:
            mean = self.x[pick].sum(axis=0) / n
            found = found - mean[:, :, None] * mean[:, None, :]
        return np.asarray(found)


def second_moments(
    model: Model,
    layers: Mapping[str, tuple[str, Linear]],
    data: Dataset,
    seed: int,
    progress: Progress,
    threads: int = 0,
) -> dict[str, Statistics]:
    """Statistics of the inputs of every layer.

    Args:
        model: as it is run.
        layers: by any name: the name under which the input value is streamed, and the map that reads it.
        data: walked once for every gigabyte of matrices.
        seed: of the choice of rows.
        progress: ticked before every run.
        threads: of onnxruntime.
    """
    found: dict[str, Statistics] = {}
    parts = _parts(layers)
    for number, names in enumerate(parts):
        rng = np.random.default_rng(seed)
        inputs = list(dict.fromkeys(layers[name][0] for name in names))
        runs = max(1, data.runs())
        here = progress.part(number / len(parts), (number + 1) / len(parts))
        for turn, values in enumerate(stream(model, inputs, data.feeds(), here, threads, total=runs)):
            for name in names:
                value, view = layers[name]
                if value not in values:  # another branch ran
                    continue
                x = values[value]
                if view.kind != "matrix":  # the rounds of a loop are samples to a convolution
                    x = x.reshape(-1, *x.shape[-len(view.shape) + 1 :])
                out = view.output_shape(x.shape)
                at = sample(rng, view.positions(out), -(-row_budget(view) // runs))
                rows = view.rows(x, out, at)  # (groups, n, cols)
                if name not in found:
                    g, k = rows.shape[0], rows.shape[2]
                    found[name] = Statistics(
                        np.zeros(2, np.int64), np.zeros((2, g, k)), np.zeros((2, g, k, k))
                    )
                _add(found[name], rows, turn, runs)
    return found


def _add(to: Statistics, rows: Array, turn: int, runs: int) -> None:
    """Feeds take turns between the halves; a single feed is divided."""
    middle = rows.shape[1] // 2
    pieces = ((turn % 2, rows),) if runs > 1 else ((0, rows[:, :middle]), (1, rows[:, middle:]))
    for half, piece in pieces:
        to.n[half] += piece.shape[1]
        to.x[half] += piece.sum(axis=1, dtype=np.float64)
        to.xx[half] += products(piece, piece)


def columns_of(view: Linear) -> int:
    """Columns of a layer's matrix."""
    if view.kind == "matrix":
        return view.shape[0 if view.transposed else 1]
    return view.taps * (view.shape[1] if view.kind == "conv" else view.shape[0] // view.groups)


def _parts(layers: Mapping[str, tuple[str, Linear]]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    held = 0
    for name, (_value, view) in layers.items():
        size = 16 * view.groups * columns_of(view) ** 2
        if held + size > _BYTES and parts[-1]:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    return parts
