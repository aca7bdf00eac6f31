"""Second moments E[x xᵀ] of what layers read, streamed: the metric in which rounding errors count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.base.progress import Progress
from studio.engine import execute
from studio.engine.graph import Model
from studio.engine.quantization.calibrate import Feed

Array: TypeAlias = npt.NDArray[Any]

# A layer with more inputs than this has too large a matrix to be worth it.
LARGEST = 4096


def row_moments(
    model: Model,
    names: Sequence[str],
    feeds: Iterable[Feed],
    progress: Progress | None = None,
    *,
    total: int = 0,
    threads: int = 0,
) -> Mapping[str, Array]:
    """Σ x xᵀ over all rows (the last axis is the row) of values of the main graph, float32 (k, k) by name."""
    sums: dict[str, Array] = {}
    for values in execute.stream(model, list(names), feeds, progress, threads, total=total):
        for name, value in values.items():
            rows = value.reshape(-1, value.shape[-1]).astype(np.float32, copy=False)
            if rows.shape[1] > LARGEST:
                continue
            product = rows.T @ rows
            sums[name] = product if name not in sums else sums[name] + product
    return sums
