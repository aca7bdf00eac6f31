"""What treating each layer alone does to the output.

Every layer × one step: the layer is treated, everything else stays, and the outputs over the
calibration data are compared with the untouched model's. Results are emitted one by one, so a
scan that is stopped keeps what is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.engine import graph
from studio.engine.accuracy import Reference
from studio.engine.dataset import Dataset, open_for
from studio.engine.layers import Listing, list_layers, resolve_layers
from studio.engine.planning import plan_step, ready
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records import task
from studio.records.measure import DataSpec, Sensitivity
from studio.records.steps import Step

# Samples that every layer is judged on; ranks settle long before this many.
DEFAULT_SAMPLES = 64


def scan(asked: task.Scan, progress: Progress, emit: Callable[[task.News], None]) -> task.Scanned:
    """Answer a `Scan`.

    Raises:
        StudioError: the model or the data cannot be used, or a pattern matches no layer.
        Cancelled: at any tick; what was emitted stays true.
    """
    started = time.perf_counter()
    listing = list_layers(graph.load(Path(asked.model)), dict(asked.input_sizes))
    data = _samples(asked.calibration, listing)
    context = Context(calibration=data, seed=asked.seed, threads=asked.threads, agreed=True)
    names = resolve_layers(asked.layers, listing)
    reference = Reference(listing.model, data, asked.threads)
    found: list[Sensitivity] = []
    for number, name in enumerate(names):
        part = progress.part(number / len(names), (number + 1) / len(names))
        part.tick(0.0, f"{name}: {asked.settings.chip} alone")
        step = Step(settings=asked.settings, layers=(name,))
        found.append(_alone(listing, step, replace(context, progress=part), reference))
        emit(task.ScannedLayer(sensitivity=found[-1]))
    progress.tick(1.0)
    return task.Scanned(layers=tuple(found), samples=data.samples, seconds=time.perf_counter() - started)


def _samples(spec: DataSpec | None, listing: Listing) -> Dataset:
    """The calibration data, at most `DEFAULT_SAMPLES` of them unless the spec sets a limit itself."""
    data = open_for(listing.model, spec or DataSpec(kind="random", limit=8), listing.input_sizes)
    return data if spec is not None and spec.limit else data.take(DEFAULT_SAMPLES)


def _alone(listing: Listing, step: Step, context: Context, reference: Reference) -> Sensitivity:
    """Treat the one layer of `step` and compare outputs; a layer that cannot be treated is data, not an error."""
    started = time.perf_counter()
    (name,) = step.layers
    plan = plan_step(listing, step, context)
    if not plan.actions:
        return Sensitivity(layer=name, refused=plan.refusals[0].reason if plan.refusals else "nothing to do")
    try:
        treated = find(step.settings).apply(ready(listing, step), plan, context)
        error, accuracy = reference.compare(treated, context.progress)
    except StudioError as problem:
        return Sensitivity(layer=name, refused=problem.sentence)
    return Sensitivity(layer=name, error=error, accuracy=accuracy, seconds=time.perf_counter() - started)
