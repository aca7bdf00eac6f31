"""Measuring: latencies interleaved in one process, peak memory of each model in a process of its own."""

from __future__ import annotations

import contextlib

from studio.app.export import Runs
from studio.base.errors import StudioError
from studio.records.base import replace
from studio.records.measure import Measurement
from studio.records.task import Footprint, Footprinted, Measure, Measurements

_MAIN = 0.85  # share of the work that the interleaved runs are


def measure(run: Runs, task: Measure) -> tuple[Measurement, ...]:
    """Measure models against the first.

    Raises:
        StudioError: a model cannot be run.
        Cancelled: it was cancelled.
    """
    found = run.task(task, Measurements, 0.0, _MAIN).measurements
    share = (1.0 - _MAIN) / max(len(found), 1)
    complete = []
    for number, (model, measurement) in enumerate(zip(task.models, found, strict=True)):
        low = _MAIN + share * number
        peak = measurement.peak_bytes
        if peak is None:
            peak = _peak(run, task, model, low, low + share)
        complete.append(replace(measurement, peak_bytes=peak))
    return tuple(complete)


def _peak(run: Runs, task: Measure, model: str, low: float, high: float) -> int | None:
    footprint = Footprint(
        model=model, evaluation=task.evaluation, input_sizes=task.input_sizes, threads=task.threads
    )
    with contextlib.suppress(StudioError):  # the other figures stand without this one
        return run.task(footprint, Footprinted, low, high).peak_bytes
    return None
