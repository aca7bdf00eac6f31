"""A narrower and shallower student that starts from its teacher: every width times one factor, some blocks left out.

No data are looked at: of every group of channels those with the largest weights are copied, Σ w² over all that makes
them; of the residual blocks y = x + f(x) those that stay lie evenly over the depth. What is left knows little of what
the teacher knew, so distil afterwards.

Source: Sanh et al. 2019, *DistilBERT*, §2 (a student initialised from every other layer of its teacher); Howard et
al. 2017, *MobileNets*, §3.3 (width multiplier).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from studio.engine.graph import Model
from studio.engine.groups.cut import cut_twins
from studio.engine.groups.grouping import find_groups
from studio.engine.groups.trace import trace
from studio.engine.layers import Listing, list_layers
from studio.engine.pruning.allocation import by_ratio
from studio.engine.pruning.blocks import Block, blocks, without
from studio.engine.pruning.criteria import by_weights
from studio.engine.techniques.contract import Context
from studio.records.model import Cost
from studio.records.plan import Action, Plan, Refusal
from studio.records.steps import Settings, Step, Student


class ScaledStudent:
    """See the module."""

    settings: type[Settings] = Student

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`; layers that stay as they are are refused with a reason."""
        small = list_layers(_student(listing, step, context.seed), dict(listing.input_sizes))
        actions, refusals = [], []
        for layer in listing.layers:
            now = small.nodes.get(layer.name)
            if now is None:
                words = "left out with its block"
                actions.append(Action(layer=layer.name, what=words, before=layer.cost, after=Cost(macs=0)))
            elif now.record.weight_shape != layer.weight_shape:
                words = f"{_sizes(layer.weight_shape)} becomes {_sizes(now.record.weight_shape)}"
                actions.append(Action(layer=layer.name, what=words, before=layer.cost, after=now.record.cost))
            elif layer.name in step.layers:
                why = "nothing that it makes or reads can be made narrower, and it lies in no block that goes"
                refusals.append(Refusal(layer=layer.name, reason=why))
        return Plan(
            step=step, actions=tuple(actions), refusals=tuple(refusals), before=listing.cost,
            after=small.cost if actions else listing.cost, notes=("Distil afterwards.",) if actions else (),
        )  # fmt: skip

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        context.progress.tick(0.0, "Choosing blocks and channels")
        model = _student(listing, plan.step, context.seed)
        for action in context.progress.over(plan.actions, lambda a: f"{a.layer}: {a.what}"):
            context.treated(model, action.layer, f"{action.layer}: {action.what}")
        return model


def _sizes(shape: Sequence[int]) -> str:
    return "×".join(str(d) for d in shape)


def _student(listing: Listing, step: Step, seed: int) -> Model:
    settings = cast("Student", step.settings)
    chosen = set(step.layers)
    model = without(listing.model, _left_out(listing, chosen, settings.depth))
    if settings.width == 1:
        return model
    shallow = list_layers(model, dict(listing.input_sizes))
    grouping = find_groups(trace(model, shallow.shapes), shallow)
    groups = tuple(g for g in grouping.groups if g.kind != "inner" and chosen.intersection(g.leaders))
    kept = by_ratio(grouping, groups, 1 - settings.width, 0, 1)
    orders = by_weights(grouping, "l2", seed)
    removed = {}
    for group in groups:
        name = group.record.name
        removed[name] = np.zeros(group.record.width, bool)
        removed[name][orders[name].channels[: group.record.width - kept[name]]] = True
    return cut_twins(grouping.trace, grouping.gone(removed)).copy


def _left_out(listing: Listing, chosen: set[str], depth: float) -> list[Block]:
    """The blocks that go, evenly over the depth, so that a share of `depth` of them stays, and at least one."""
    if depth == 1:
        return []
    found = [b for b in blocks(listing) if b.layers <= chosen]
    goes = min(len(found) - 1, round((1 - depth) * len(found)))
    if goes < 1:
        return []
    places = np.unique(np.round((np.arange(goes) + 0.5) * len(found) / goes - 0.5 + 1e-9).astype(int))
    return [found[min(place, len(found) - 1)] for place in places]
