"""Second moments of layers' inputs over calibration data, streamed: H = Σ x xᵀ.

Rows are sampled where a convolution has many positions: a few for every column suffice, and time and
memory stay bounded for any image size.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from studio.base.progress import Progress
from studio.engine.dataset import Dataset
from studio.engine.execute import stream
from studio.engine.graph import Model
from studio.engine.pruning.linear import Array, Linear

_ROWS_PER_COLUMN = 16
_LEAST_ROWS = 4096
_MOST_ROWS = 40_000
_BYTES = 1 << 30  # of all matrices held at a time; more layers mean another walk over the data


def sample(rng: np.random.Generator, positions: int, budget: int) -> Array:
    """At most `budget` of `positions` row numbers, ascending."""
    if positions <= budget:
        return np.arange(positions)
    return np.sort(rng.choice(positions, budget, replace=False))


def row_budget(columns: int) -> int:
    """How many rows a least-squares problem with so many unknowns gets."""
    return int(np.clip(_ROWS_PER_COLUMN * columns, _LEAST_ROWS, _MOST_ROWS))


def second_moments(
    model: Model,
    layers: Mapping[str, tuple[str, Linear]],
    data: Dataset,
    seed: int,
    progress: Progress,
    threads: int = 0,
) -> dict[str, Array]:
    """H (groups, cols, cols) of every layer, float64, mean over rows.

    Args:
        model: as it is run.
        layers: by any name: the name of the input value in the main graph, and the map that reads it.
        data: walked once for every gigabyte of matrices.
        seed: of the choice of rows.
        progress: ticked before every run.
        threads: of onnxruntime.
    """
    found: dict[str, Array] = {}
    parts = _parts(layers)
    for number, names in enumerate(parts):
        rng = np.random.default_rng(seed)
        rows = dict.fromkeys(names, 0)
        inputs = list(dict.fromkeys(layers[name][0] for name in names))
        runs = max(1, data.runs())
        here = progress.part(number / len(parts), (number + 1) / len(parts))
        for values in stream(model, inputs, data.feeds(), here, threads, total=runs):
            for name in names:
                value, view = layers[name]
                x = values[value]
                out = view.output_shape(x.shape)
                at = sample(rng, view.positions(out), -(-row_budget(_columns(view)) // runs))
                matrix = view.rows(x, out, at)
                product = matrix.transpose(0, 2, 1) @ matrix
                found[name] = found[name] + product if name in found else product.astype(np.float64)
                rows[name] += len(at)
        for name in names:
            if name in found:
                found[name] /= max(1, rows[name])
    return found


def _columns(view: Linear) -> int:
    if view.kind == "matrix":
        return view.shape[0 if view.transposed else 1]
    return view.taps * (view.shape[1] if view.kind == "conv" else view.shape[0] // view.groups)


def _parts(layers: Mapping[str, tuple[str, Linear]]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    held = 0
    for name, (_value, view) in layers.items():
        size = 8 * view.groups * _columns(view) ** 2
        if held + size > _BYTES and parts[-1]:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    return parts
