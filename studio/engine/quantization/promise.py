"""From a drafted model to a plan whose figures are exact: the draft is listed and counted like any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from studio.engine.graph import Model
from studio.engine.layers import Listing, list_layers
from studio.records.plan import Action, Plan, Refusal
from studio.records.steps import Step


def promise(
    listing: Listing,
    step: Step,
    drafted: Model | None,
    words: Mapping[str, str],
    refusals: Sequence[Refusal],
    notes: Sequence[str] = (),
) -> Plan:
    """The plan of a step whose result has the structure of `drafted`.

    Args:
        listing: of the model before.
        step: with its layers resolved.
        drafted: nodes, shapes and types as the result will have; None when nothing is done.
        words: what is done, by layer name, in model order.
        refusals: of the layers that are not in `words`.
        notes: what the user should know.
    """
    if drafted is None or not words:
        return Plan(
            step=step, refusals=tuple(refusals), before=listing.cost, after=listing.cost, notes=tuple(notes)
        )
    after = list_layers(drafted, dict(listing.input_sizes))
    actions = [
        Action(
            layer=name,
            what=what,
            before=listing.nodes[name].record.cost,
            after=after.nodes[name].record.cost if name in after.nodes else listing.nodes[name].record.cost,
        )
        for name, what in words.items()
    ]
    return Plan(
        step=step,
        actions=tuple(actions),
        refusals=tuple(refusals),
        before=listing.cost,
        after=after.cost,
        notes=tuple(notes),
    )
