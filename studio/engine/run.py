"""A recipe, carried out: plan each step on what the step before left, apply it, say what happens on the way."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.base.units import file_size
from studio.engine import graph, latency
from studio.engine.cost import constant_cost
from studio.engine.dataset import Feed
from studio.engine.graph import Model
from studio.engine.layers import Listing, list_layers, resolve_layers
from studio.engine.lean import known, make_lean
from studio.engine.planning import open_calibration, plan_step, ready
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records import presets, task
from studio.records.base import encode
from studio.records.plan import Plan
from studio.records.steps import Step

# Timing the model so far may take this share of the time that the work itself takes.
CHECKPOINT_SHARE = 0.2
_KEPT_SECONDS = 30 * 86400  # what nobody went on with for so long is removed


def apply_steps(
    model: Model, steps: Sequence[Step], context: Context, input_sizes: dict[str, int]
) -> tuple[Model, tuple[Plan, ...]]:
    """Carry out steps one after the other on a copy; the given model is left untouched.

    Raises:
        StudioError: a step can treat none of its layers, or its plan asks something that nobody answered.
        Cancelled: at any tick.
    """
    plans: list[Plan] = []
    for number, step in enumerate(steps):
        part = context.progress.part(number / len(steps), (number + 1) / len(steps))
        here = replace(context, progress=part, memo={})
        listing, plan = _planned(model, step, here, input_sizes)
        if not plan.actions:
            raise _nothing_to_do(plan)
        if plan.questions and not context.agreed:
            raise StudioError(
                f"{step.settings.title} asks first", plan.questions[0], "On the command line, --yes agrees."
            )
        model = find(step.settings).apply(ready(listing, step), plan, here)
        plans.append(plan)
    return model, tuple(plans)


def _nothing_to_do(plan: Plan) -> StudioError:
    """What is said of a step that can treat no layer."""
    title, refusals = plan.step.settings.title, plan.refusals
    if not refusals:
        return StudioError("There is nothing to compress", "the model has no layers")
    one = len(refusals) == 1
    return StudioError(
        f"{title} cannot treat {refusals[0].layer}"
        if one
        else f"{title} can treat none of the {len(refusals)} chosen layers",
        refusals[0].reason,
        refusals[0].hint,
        "\n".join(f"{refusal.layer}: {refusal.reason}" for refusal in refusals),
    )


def _planned(model: Model, step: Step, context: Context, input_sizes: dict[str, int]) -> tuple[Listing, Plan]:
    context.progress.tick(0.0, f"Planning {step.settings.title.lower()}")
    listing = list_layers(model, input_sizes)
    return listing, plan_step(listing, step, context)


def apply_preset(
    model: Model, preset: presets.Preset, context: Context, input_sizes: dict[str, int]
) -> tuple[Model, tuple[Plan, ...]]:
    """Carry out what a preset chooses for this model; what its steps refuse gets 8-bit weights where that is possible.

    Raises:
        StudioError: no layer can be treated.
        Cancelled: at any tick.
    """
    layers = list_layers(model, input_sizes).layers
    chosen = presets.steps(preset, layers, calibrated=context.calibration is not None)
    plans: list[Plan] = []
    refused: list[str] = []
    for number, step in enumerate(chosen):
        part = context.progress.part(number / (len(chosen) + 1), (number + 1) / (len(chosen) + 1))
        model, plan = _carried_out(model, step, replace(context, progress=part), input_sizes)
        plans.append(plan)
        refused += [refusal.layer for refusal in plan.refusals]
    if refused:
        rest = Step(settings=presets.FALLBACK, layers=tuple(refused))
        last = replace(context, progress=context.progress.part(len(chosen) / (len(chosen) + 1), 1.0))
        model, plan = _carried_out(model, rest, last, input_sizes)
        plans.append(plan)
    if not any(plan.actions for plan in plans):
        raise StudioError(
            "There is nothing to quantize",
            plans[-1].refusals[0].reason if plans else "no layer holds float32 weights that can be treated",
        )
    return model, tuple(plan for plan in plans if plan.actions)


def _carried_out(
    model: Model, step: Step, context: Context, input_sizes: dict[str, int]
) -> tuple[Model, Plan]:
    """One step, and its plan; the model as it is where the step can treat no layer."""
    here = replace(context, memo={})
    listing, plan = _planned(model, step, here, input_sizes)
    return (find(step.settings).apply(ready(listing, step), plan, here) if plan.actions else model), plan


def apply(
    asked: task.Apply,
    progress: Progress,
    emit: Callable[[task.News], None],
    enough: Callable[[], bool] = lambda: False,
) -> task.Applied:
    """Answer an `Apply`: carry out the recipe, write the result, report size and latency on the way.

    `enough` ends training early with the best so far.

    Raises:
        StudioError: the model, the data, a step or the output path cannot be used.
        Cancelled: at any tick; nothing is written then.
    """
    started = time.perf_counter()
    model = graph.load(Path(asked.model))
    sizes = dict(asked.input_sizes)
    before = known(model)
    listing = list_layers(model, sizes)
    notes: list[str] = []
    scratch = _scratch(asked)
    context = Context(
        progress=progress.part(0.0, 0.95),
        calibration=open_calibration(asked.calibration, listing),
        training=open_calibration(asked.training, listing),
        teacher=_teacher(asked, model),
        scratch=scratch,
        enough=enough,
        trained=lambda *what: emit(_trained(*what)),
        seed=asked.recipe.seed,
        threads=asked.threads,
        agreed=asked.agreed,
        note=notes.append,
        treated=_Reporter(asked, listing, emit),
    )
    if asked.recipe.preset is None:
        result, plans = apply_steps(model, asked.recipe.steps, context, sizes)
    else:
        result, plans = apply_preset(model, asked.recipe.preset, context, sizes)
    progress.tick(0.96, "Writing the model")
    if plans:
        make_lean(result, before)
    output = Path(asked.output)
    written = graph.save(result, output)
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    return task.Applied(
        output=str(output),
        digest=graph.digest(output),
        plans=plans,
        file_bytes=written,
        seconds=time.perf_counter() - started,
        notes=(*(note for plan in plans for note in plan.notes), *notes),
    )


def _scratch(asked: task.Apply) -> Path | None:
    """A folder for this work alone; the same work asked for again finds it, until it is done.

    None where it cannot be made: then nothing is lost but the way back after a kill.
    """
    if not asked.scratch:
        return None
    place = Path(asked.scratch)
    parts = (asked.recipe, asked.input_sizes, asked.calibration, asked.training)
    what = graph.digest(Path(asked.model)).encode() + b"".join(encode(part) for part in parts)
    key = hashlib.sha256(what).hexdigest()[:16]
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        for old in place.iterdir():
            if time.time() - old.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        (place / key).mkdir(exist_ok=True)
        os.utime(place / key)
        return place / key
    return None


def _teacher(asked: task.Apply, model: Model) -> Model | None:
    """Whom a student follows: the model named, else the one that the recipe starts from (when it changes it)."""
    if asked.teacher:
        return graph.load(Path(asked.teacher))
    return model if asked.recipe.steps[1:] else None


def _trained(step: int, total: int, loss: float, right: float | None, rate: float) -> task.Trained:
    return task.Trained(step=step, total=total, loss=loss, accuracy=right, lr=rate)


def _bytes_in_use(model: Model) -> int:
    """Weight bytes that something reads: what a technique has replaced leaves the graph only at its end."""
    held = [
        value
        for _path, inner in graph.graphs(model)
        for value in (
            *inner.initializers.values(),
            *(node.outputs[0] for node in inner if graph.is_constant_node(node)),
        )
    ]
    return constant_cost(v for v in held if v.uses() or v.is_graph_output()).bytes


class _Reporter:
    """Turns 'this layer is done' into news: size after every layer, latency at checkpoints."""

    def __init__(self, asked: task.Apply, listing: Listing, emit: Callable[[task.News], None]) -> None:
        self._emit, self._asked, self._listing = emit, asked, listing
        self._done = 0
        self._total = sum(len(resolve_layers(step.layers, listing)) for step in asked.recipe.steps[:1])
        self._total += len(asked.recipe.steps[1:]) * self._total
        if asked.recipe.preset is not None:
            self._total = len(listing.layers)
        self._timing = 0.0
        self._feed: Feed | None = None
        self._started = time.perf_counter()

    def __call__(self, model: Model, layer: str, words: str) -> None:
        self._done += 1
        total = max(self._total, self._done)
        size = _bytes_in_use(model)
        self._emit(
            task.Treated(
                layer=layer,
                done=self._done,
                total=total,
                bytes=size,
                words=words or f"{layer}: {file_size(size)}",
            )
        )
        if self._asked.checkpoints and self._may_time(last=self._done == total):
            self._time(model, total)

    def _may_time(self, *, last: bool) -> bool:
        working = time.perf_counter() - self._started - self._timing
        return self._done == 1 or last or self._timing < CHECKPOINT_SHARE * working

    def _time(self, model: Model, total: int) -> None:
        before = time.perf_counter()
        if self._feed is None:
            asked, sizes = self._asked, self._listing.input_sizes
            self._feed = latency.timing_feed(model, asked.evaluation, asked.calibration, sizes)
        timed = latency.time_so_far(self._listing.model, model, self._feed, self._asked.threads)
        self._timing += time.perf_counter() - before
        if timed is not None:
            self._emit(
                task.TimedSoFar(
                    done=self._done,
                    total=total,
                    median_ms=timed.median_ms,
                    low_ms=timed.low_ms,
                    high_ms=timed.high_ms,
                    ratios=(timed.ratio or 1.0, timed.ratio_low or 1.0, timed.ratio_high or 1.0),
                )
            )
