"""What fine-tuning and distillation share as techniques: who can be trained, with what, and the call of `train`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from studio.base.errors import StudioError
from studio.engine.dataset import Dataset
from studio.engine.graph import Model
from studio.engine.layers import Listing
from studio.engine.techniques.contract import Context
from studio.engine.trainable import unsupported
from studio.engine.training.checkpoint import checkpoint_path
from studio.engine.training.loop import Course, Hooks, Outcome
from studio.engine.training.session import Lesson, train
from studio.records.plan import Action, Plan, Refusal
from studio.records.steps import Step, Training

_FLOATS = frozenset({"float32", "float16", "bfloat16", "float64"})


def plan_training(listing: Listing, step: Step, context: Context, missing: str) -> Plan:
    """Every layer with float weights is trained, the costs stay; `missing` refuses all (no data, no teacher)."""
    settings = step.settings
    assert isinstance(settings, Training)
    reason, hint = missing, ""
    if not reason and (odd := unsupported(listing.model)):
        reason = f"the model cannot be differentiated: {odd[0].operator} at {odd[0].node} is not supported"
        hint = "Techniques that need no gradients still work."
    refusals, actions = [], []
    for name in step.layers:
        record = listing.nodes[name].record
        why = reason or (
            "" if record.dtype in _FLOATS else f"its weights are {record.dtype}, which cannot be trained"
        )
        if why:
            refusals.append(Refusal(layer=name, reason=why, hint=hint))
        else:
            actions.append(
                Action(layer=name, what=f"trained, {settings.length}", before=record.cost, after=record.cost)
            )
    return Plan(
        step=step, actions=tuple(actions), refusals=tuple(refusals), before=listing.cost, after=listing.cost,
        notes=_notes(context),
    )  # fmt: skip


def _notes(context: Context) -> tuple[str, ...]:
    data = samples(context)
    if data is not None and data.samples < 1000:
        return (f"Only {data.samples} samples to learn from: more would help.",)
    return ()


def samples(context: Context) -> Dataset | None:
    """What to train on; made-up samples are no samples."""
    data = context.training or context.calibration
    return None if data is None or data.random else data


def without_samples(context: Context, what: str) -> str:
    """Why `what` cannot be done where there is nothing to learn from; '' where there is."""
    if samples(context) is not None:
        return ""
    made_up = context.training is not None or context.calibration is not None
    return f"{what} needs {'real samples: random ones teach nothing' if made_up else 'samples'}"


def carry_out(
    listing: Listing,
    plan: Plan,
    context: Context,
    *,
    teacher: Model | None,
    labels: float,
    features: float = 0.0,
    temperature: float = 1.0,
) -> Model:
    """Train the planned layers and say what came of it."""
    settings = plan.step.settings
    assert isinstance(settings, Training)
    data = samples(context)
    if data is None:
        raise StudioError(
            f"{settings.title} needs samples", "neither training nor calibration data were given"
        )
    wanted = replace(
        lesson(plan, data, context, teacher=teacher),
        labels=labels,
        features=features,
        temperature=temperature,
        trained=_chosen(listing, plan),
    )
    model, outcome = train(listing.model, wanted, hooks_of(context, listing.model, plan.step, wanted))
    context.note(in_words(outcome, labelled=teacher is None))
    for action in plan.actions:
        context.treated(model, action.layer, "trained")
    return model


def hooks_of(context: Context, model: Model, step: Step, wanted: Lesson) -> Hooks:
    """How the outside hears of the training of a model, and where its checkpoint lies."""
    place = None
    if context.scratch is not None:
        context.scratch.mkdir(parents=True, exist_ok=True)
        place = checkpoint_path(context.scratch, model, step, context.seed, wanted.teacher, wanted.data)
    return Hooks(context.progress, context.trained, context.enough, place)


def lesson(plan: Plan, data: Dataset, context: Context, *, teacher: Model | None) -> Lesson:
    """A lesson as the settings of a plan's step say."""
    settings = plan.step.settings
    assert isinstance(settings, Training)
    course = Course(
        steps=settings.steps, minutes=settings.minutes, accumulate=settings.accumulate, target=settings.target
    )
    return Lesson(
        data=data,
        teacher=teacher,
        batch=settings.batch,
        rate=settings.rate,
        course=course,
        seed=context.seed,
        threads=context.threads,
    )


def _chosen(listing: Listing, plan: Plan) -> Callable[[str], bool]:
    """Which weights are trained: all when every layer is, else those that belong to the planned layers."""
    refused = {r.layer for r in plan.refusals}
    chosen = {a.layer for a in plan.actions}
    if {layer.name for layer in listing.layers if not layer.untreatable} <= chosen | refused:
        return lambda _name: True
    names = set()
    for name in chosen:
        layer = listing.nodes[name]
        held = {
            v.name or ""
            for v in (layer.weight, layer.bias, *layer.weights, *layer.constants)
            if v is not None
        }
        names |= held | {f"{layer.path}/{n}" for n in held}
    return lambda name: name in names


def in_words(outcome: Outcome, *, labelled: bool) -> str:
    """What a run did, e.g. 'Trained 812 steps in 180 s; agreement with the teacher 95.6 % → 97.7 % …'."""
    what = "right answers" if labelled else "agreement with the teacher"
    if outcome.right is not None and outcome.right_before is not None:
        change = f"{what} {outcome.right_before:.1%} → {outcome.right:.1%}".replace("%", " %")
    else:
        change = f"loss {outcome.before:.4g} → {outcome.after:.4g}"
    ended = f" ({outcome.ended})" if outcome.ended else ""
    resumed = f", going on at step {outcome.resumed} of a run that was cut off" if outcome.resumed else ""
    reasons = [f"{n} ({reason})" for reason, n in Counter(outcome.frozen).most_common()]
    kept = f" Kept as they were: {', '.join(reasons)}." if reasons else ""
    return (
        f"Trained {outcome.steps} steps in {outcome.seconds:.0f} s{resumed}{ended}; "
        f"{change} on samples that did not teach.{kept}"
    )
