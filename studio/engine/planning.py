"""From names and settings to plans: resolve globs, refuse what nothing can treat, plan step after step.

Techniques are reached through here, so that a pattern that matches nothing is always an error and
a layer that was left out always has its reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from studio.base.progress import Progress
from studio.engine.dataset import Dataset, open_for
from studio.engine.graph import Model
from studio.engine.layers import Listing, list_layers, not_finite, resolve_layers, with_weights_folded
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context, Drafting, Timing
from studio.engine.tidy import tidy
from studio.records import task
from studio.records.measure import DataSpec
from studio.records.plan import Plan, Refusal
from studio.records.steps import Step


def plan_step(listing: Listing, step: Step, context: Context, broken: frozenset[str] | None = None) -> Plan:
    """The plan of one step; layers that no technique can treat are refused here, once for all.

    Args:
        listing: the model.
        step: what to plan.
        context: see `Context`.
        broken: layers whose weights hold NaN or infinities; None = they are looked for.

    Raises:
        StudioError: a pattern matches nothing.
    """
    names = resolve_layers(step.layers, listing)
    technique = find(step.settings)
    broken = _not_finite(listing) if broken is None else broken
    reasons = dict.fromkeys(broken, "its weights hold NaN or infinities")
    if not getattr(technique, "treats_stored", False):
        reasons |= {layer.name: layer.untreatable for layer in listing.layers if layer.untreatable}
    listing, whole = ready(listing, step), listing.cost
    treatable = Step(settings=step.settings, layers=tuple(name for name in names if name not in reasons))
    plan = technique.plan(listing, treatable, context)
    refused = tuple(Refusal(layer=name, reason=reasons[name]) for name in names if name in reasons)
    return Plan(
        step=plan.step,
        actions=plan.actions,
        refusals=refused + plan.refusals,
        before=whole,
        after=plan.after if plan.actions else whole,
        groups=plan.groups,
        notes=plan.notes,
        questions=plan.questions,
    )


# Of the model that was planned last: a slider that moves plans it again and again.
_checked: tuple[Model, frozenset[str]] | None = None


def _not_finite(listing: Listing) -> frozenset[str]:
    global _checked
    if _checked is None or _checked[0] is not listing.model:
        _checked = (listing.model, not_finite(listing))
    return _checked[1]


def ready(listing: Listing, step: Step) -> Listing:
    """The model as the step's technique wants it: weights that are computed from constants are stored as computed.

    A technique that treats numbers as they are stored takes them as they are; one that `tidies` gets the model without
    nodes that compute what is known beforehand.
    """
    technique = find(step.settings)
    if not getattr(technique, "treats_stored", False):
        listing = with_weights_folded(listing, resolve_layers(step.layers, listing))
    return _tidied(listing) if getattr(technique, "tidies", False) else listing


_tidy: tuple[Model, dict[str, int], Listing] | None = None  # likewise, of the model that was planned last


def _tidied(listing: Listing) -> Listing:
    global _tidy
    sizes = dict(listing.input_sizes)
    if _tidy is None or _tidy[0] is not listing.model or _tidy[1] != sizes:
        _tidy = (listing.model, sizes, tidy(listing))
    return _tidy[2]


def plan_steps(listing: Listing, steps: Sequence[Step], context: Context) -> tuple[Plan, ...]:
    """One plan a step, each made on the model that the steps before leave."""
    plans: list[Plan] = []
    broken = _not_finite(listing)  # a draft has any weights
    for number, step in enumerate(steps):
        plan = plan_step(listing, step, context, broken)
        plans.append(plan)
        if number + 1 < len(steps):
            listing = draft(listing, plan, context)
    return tuple(plans)


def draft(listing: Listing, plan: Plan, context: Context) -> Listing:
    """The structure that a plan leaves, with any weights, listed."""
    if not plan.actions:
        return listing
    technique = find(plan.step.settings)
    listing = ready(listing, plan.step)
    after = (
        technique.draft(listing, plan, context)
        if isinstance(technique, Drafting)
        else technique.apply(listing, plan, context)
    )
    return list_layers(after, dict(listing.input_sizes))


def warm(listing: Listing, plan: Plan, context: Context) -> None:
    """Let the plan's technique time what its next plan will want to know."""
    technique = find(plan.step.settings)
    if plan.actions and isinstance(technique, Timing):
        technique.warm(ready(listing, plan.step), plan, context)


def open_calibration(spec: DataSpec | None, listing: Listing) -> Dataset | None:
    """The samples a spec names, shaped for this model; None for None."""
    if spec is None:
        return None
    return open_for(listing.model, spec, listing.input_sizes)


def preview(asked: task.PreviewSteps, progress: Progress, listing: Listing) -> task.Previewed:
    """Answer a `PreviewSteps` on the model in `listing`."""
    data = open_calibration(asked.calibration, listing)
    context = Context(progress=progress, calibration=data, preview=True)
    return task.Previewed(plans=plan_steps(listing, asked.steps, context))
