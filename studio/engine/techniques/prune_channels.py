"""Structured pruning: whole channels, heads and hidden units leave the graph, and the loss is repaired at once.

Groups come from the graph (`engine/groups`), the widths from a ratio or a budget, the channels from a
criterion, the repair from least squares on calibration data, and every cut is checked by an oracle.

Sources: Fang et al., DepGraph, 2023 (groups); He, Zhang & Sun, 2017 (reconstruction); Hassibi & Stork, 1993,
and Kurtic et al., ZipLM, 2023 (OBS for structures).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from studio.base.errors import StudioError
from studio.engine.dataset import open_for
from studio.engine.execute import Array
from studio.engine.graph import Model, nodes
from studio.engine.groups.cut import Twins, cut_twins
from studio.engine.groups.grouping import ChannelGroup, Grouping
from studio.engine.layers import Listing, list_layers, resolve_layers
from studio.engine.pruning.allocation import Resource, by_budget, by_ratio
from studio.engine.pruning.oracle import verify
from studio.engine.pruning.orders import Order
from studio.engine.pruning.refit import Refit, behind
from studio.engine.pruning.unheard import absorb
from studio.engine.techniques.channel_orders import (
    BY_GRADIENTS,
    NEEDS_DATA,
    budget_of,
    grouping_of,
    guesses,
    idle_bodies,
    limits_of,
    orders_of,
    weighed,
)
from studio.engine.techniques.contract import Context
from studio.engine.techniques.latency_budget import time_layers, timed_before, within_time
from studio.records.measure import DataSpec
from studio.records.model import Cost, Group
from studio.records.plan import Action, Plan, Refusal
from studio.records.steps import PruneChannels, Settings, Step

_ASKS_ABOVE = 0.1
_ROUNDING = 0.01  # of a share
# Refit holds the calibration samples and a few activations of both models; more samples than fit are left out.
_REFIT_BYTES = 2 << 30


class ChannelPruning:
    """The technique behind `PruneChannels`."""

    settings: type[Settings] = PruneChannels
    tidies = True  # narrow transformers spend a good part of their time on sizes

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`. The draft is cut lazily, so costs after are counted, not estimated."""
        settings = _settings(step)
        reason = _impossible(listing, settings, context)
        if reason:
            return _refused(listing, step, dict.fromkeys(step.layers, reason))
        grouping = grouping_of(listing)
        whole = frozenset(resolve_layers(settings.keep, listing))
        chosen = _chosen(grouping, settings, step.layers, whole)
        kept, reached = _widths(listing, grouping, chosen, settings, context)
        budget = budget_of(settings)
        if budget is not None and reached > budget[1] + 1e-9:
            why = f"even at the smallest widths {reached:.0%} of the model's {_WORDS[budget[0]]} remain"
            return _refused(listing, step, dict.fromkeys(step.layers, why))
        draft = list_layers(_draft(grouping, kept), dict(listing.input_sizes))
        idle = idle_bodies(listing, context) if settings.refit else frozenset()
        return _plan(_Found(listing, grouping, chosen, kept, draft, idle, whole), step, settings, context)

    def draft(self, listing: Listing, plan: Plan, context: Context) -> Model:  # noqa: ARG002
        """See `Drafting.draft`."""
        return _draft(grouping_of(listing), _kept(plan))

    def warm(self, listing: Listing, plan: Plan, context: Context) -> None:
        """See `Timing.warm`."""
        if _settings(plan.step).latency is not None:
            time_layers(listing, grouping_of(listing), context)

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`: choose, cut, verify, refit."""
        settings = _settings(plan.step)
        grouping = grouping_of(listing)
        kept = _kept(plan)
        context.progress.tick(0.0, "Choosing channels")
        fewer = {
            g.record.name: g.record.width - kept[g.record.name]
            for g in grouping.groups
            if g.record.name in kept
        }
        orders = orders_of(listing, grouping, settings, limits_of(grouping, settings, kept), context)
        removed = {name: _first(orders[name], count) for name, count in fewer.items()}
        gone = grouping.gone(removed)
        twins = cut_twins(grouping.trace, gone)
        context.progress.tick(0.3, "Verifying the cut")
        _verify(listing, grouping, gone, twins, context)
        words = {action.layer: action.what for action in plan.actions}
        if settings.refit and context.calibration is not None:
            _refit(listing, grouping, gone, twins, words, context)
        if count := absorb(twins.copy, _narrower(grouping, kept, twins).__contains__):
            context.note(f"{count} biases of keys and values that attention does not hear are gone")
        for name, what in words.items():
            context.treated(twins.copy, name, what)
        context.progress.tick(1.0)
        return twins.copy


_WORDS: dict[Resource, str] = {
    "macs": "multiply-accumulates",
    "params": "parameters",
    "bytes": "weight bytes",
    "latency": "running time",
}


@dataclass(frozen=True)
class _Found:
    """What planning found out.

    Attributes:
        idle: bodies of Ifs that refit cannot reach, by path.
        whole: layers that keep all their channels, as asked.
    """

    listing: Listing
    grouping: Grouping
    chosen: tuple[ChannelGroup, ...]
    kept: dict[str, int]
    draft: Listing
    idle: frozenset[str]
    whole: frozenset[str]


def _settings(step: Step) -> PruneChannels:
    if not isinstance(step.settings, PruneChannels):
        raise TypeError("not a pruning step")
    return step.settings


def _impossible(listing: Listing, settings: PruneChannels, context: Context) -> str:
    shares = (settings.macs, settings.params, settings.bytes, settings.latency)
    if sum(share is not None for share in shares) > 1:
        return "only one budget can be kept at a time"
    if settings.criterion in NEEDS_DATA and context.calibration is None:
        return "this criterion looks at activations and needs calibration data"
    if settings.criterion in BY_GRADIENTS:
        from studio.engine.trainable import unsupported

        missing = unsupported(listing.model)
        if missing:
            return f"this criterion needs gradients, and there are none through {missing[0].operator} '{missing[0].node}'"
    return ""


def _refused(listing: Listing, step: Step, reasons: Mapping[str, str]) -> Plan:
    return Plan(
        step=step, refusals=tuple(Refusal(layer=name, reason=why) for name, why in reasons.items()),
        before=listing.cost, after=listing.cost,
    )  # fmt: skip


def _chosen(
    grouping: Grouping, settings: PruneChannels, layers: Sequence[str], whole: frozenset[str]
) -> tuple[ChannelGroup, ...]:
    """Groups that a chosen layer makes channels of, of the kinds asked for; none that must stay whole."""
    kinds = {"whole": {"plain", "outer"}, "within": {"plain", "inner"}, "both": {"plain", "outer", "inner"}}
    wanted = set(layers)
    return tuple(
        g
        for g in grouping.groups
        if g.kind in kinds[settings.inside] and wanted.intersection(g.leaders) and whole.isdisjoint(g.leaders)
    )


# ------------------------------------------------------------------ how many, and which


def _widths(
    listing: Listing,
    grouping: Grouping,
    chosen: tuple[ChannelGroup, ...],
    settings: PruneChannels,
    context: Context,
) -> tuple[dict[str, int], float]:
    """Kept channels by group, and the share of the budget's resource that is left (0 without a budget)."""
    budget = budget_of(settings)
    if budget is None:
        return by_ratio(grouping, chosen, settings.ratio, settings.round_to, settings.minimum), 0.0
    resource, share = budget
    limits = limits_of(grouping, settings, {g.record.name: 0 for g in chosen})
    orders = orders_of(listing, grouping, settings, limits, context)
    if not guesses(settings, context):
        orders = weighed(listing, grouping, limits, orders, context)
    if resource == "latency" and (not context.preview or timed_before(listing, context)):
        return within_time(listing, grouping, chosen, orders, settings, context)
    totals = {"params": listing.cost.parameters, "bytes": listing.cost.bytes}
    total = totals.get(resource, listing.cost.macs)
    if not total:
        return {}, 1.0
    counted: Resource = "macs" if resource == "latency" else resource
    found = by_budget(
        grouping, chosen, orders, counted, share, float(total), settings.round_to, settings.minimum
    )
    return found.kept, found.reached


def _first(order: Order, count: int) -> Array:
    """Mask of the first `count` channels to go."""
    mask = np.zeros(len(order.channels), bool)
    mask[order.channels[:count]] = True
    return mask


# ------------------------------------------------------------------ the plan


def _draft(grouping: Grouping, kept: Mapping[str, int]) -> Model:
    """The structure of the result: some channels are gone, as many as will be."""
    twins = cut_twins(grouping.trace, grouping.narrowed(kept))
    absorb(twins.copy, _narrower(grouping, kept, twins).__contains__, structure=True)
    return twins.copy


def _narrower(grouping: Grouping, kept: Mapping[str, int], twins: Twins) -> set[ir.Node]:
    """The nodes of the layers that lose channels, in the copy."""
    groups = [g.record for g in grouping.groups]
    names = {m.layer for g in groups if kept.get(g.name, g.width) < g.width for m in g.members}
    return {twins.nodes[node] for node, name in grouping.names.items() if name in names}


def _kept(plan: Plan) -> dict[str, int]:
    return {g.name: g.keep for g in plan.groups if g.keep is not None}


def _plan(found: _Found, step: Step, settings: PruneChannels, context: Context) -> Plan:
    listing, draft = found.listing, found.draft
    groups = tuple(_with_keep(g.record, found.kept.get(g.record.name)) for g in found.grouping.groups)
    removes = any(g.keep is not None and g.keep < g.width for g in groups)
    refitted = _dirty(found) if removes and settings.refit and context.calibration is not None else set()
    words = _changes(found)
    wanted = set(step.layers)
    actions: list[Action] = []
    refusals: list[Refusal] = []
    blocked = {g.name: g.blocked for g in found.grouping.blocked}
    for layer in listing.layers:
        after = draft.nodes[layer.name].record.cost if layer.name in draft.nodes else Cost()
        if removes and (layer.name in words or layer.name in refitted):
            what = words.get(layer.name, "refitted to make up for the layers before it")
            actions.append(Action(layer=layer.name, what=what, before=layer.cost, after=after))
        elif layer.name in wanted:
            refusals.append(Refusal(layer=layer.name, reason=_why(found, layer.name, blocked, settings)))
    notes, questions = _remarks(found, settings, context, removes=removes)
    return Plan(
        step=step, actions=tuple(actions), refusals=tuple(refusals), before=listing.cost,
        after=draft.cost if actions else listing.cost, groups=(*groups, *found.grouping.blocked),
        notes=notes, questions=questions,
    )  # fmt: skip


def _with_keep(group: Group, keep: int | None) -> Group:
    return Group(
        name=group.name,
        width=group.width,
        unit=group.unit,
        members=group.members,
        blocked=group.blocked,
        keep=keep,
    )


def _changes(found: _Found) -> dict[str, str]:
    """In words, what becomes of every layer that narrows: '64 → 32 out, 32 → 16 in'."""
    words: dict[str, list[str]] = {}
    for group in found.grouping.groups:
        keep = found.kept.get(group.record.name, group.record.width)
        if keep == group.record.width:
            continue
        for member in group.record.members:
            unit = member.channels // group.record.width
            axis = {"in": "in", "out": "out", "hidden": "hidden", "heads": "in whole heads"}[member.axis]
            words.setdefault(member.layer, []).append(f"{member.channels} → {keep * unit} {axis}")
    return {name: ", ".join(dict.fromkeys(parts)) for name, parts in words.items()}


def _dirty(found: _Found) -> set[str]:
    """Layers behind the cut, which refit will touch."""
    names = {layer.node: name for name, layer in found.listing.nodes.items()}
    gone = found.grouping.narrowed(found.kept)
    reached = {names[node] for node in behind(found.grouping.trace, gone) if node in names}
    return {name for name in reached if found.listing.nodes[name].path not in found.idle}


def _why(found: _Found, name: str, blocked: Mapping[str, str], settings: PruneChannels) -> str:
    """Why a chosen layer gets nothing."""
    if name in blocked:
        return f"its output {blocked[name]}"
    groups = [g for g in found.grouping.groups if name in g.leaders]
    if not groups:
        return "nothing is known of its channels"
    if name in found.whole:
        return "it is kept whole, as asked"
    tied = sorted(found.whole & {leader for g in groups for leader in g.leaders})
    if tied:
        return f"its channels go with those of '{tied[0]}', which is kept whole"
    if not any(g in found.chosen for g in groups):
        return "its heads and the dimensions within them are left whole by these settings"
    width = min(g.record.width for g in groups)
    if budget_of(settings) is not None and width > settings.minimum:
        return f"the budget is kept with all of its {width} channels"
    if settings.round_to != 1 and max(settings.minimum, math.ceil(width * (1 - settings.ratio))) < width:
        return (
            f"no fewer than its {width} channels would be faster here (widths rounded to 1 are cut as asked)"
        )
    return f"at a width of {width} there is nothing to remove"


def _remarks(
    found: _Found, settings: PruneChannels, context: Context, *, removes: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    notes: list[str] = []
    questions: list[str] = []
    repaired = settings.refit and context.calibration is not None
    share = _unrepaired(found) if repaired else 1 - _left(found)
    if removes and share > _ASKS_ABOVE:
        cause = "without calibration data" if context.calibration is None else "without refit"
        cause = "in branches that no calibration sample takes" if repaired else cause
        questions.append(
            f"Remove {share:.0%} of the parameters {cause}? Nothing repairs what that does to the answers."
        )
    if removes and guesses(settings, context):
        notes.append("How the budget is spread is a guess from the weights; the calibration data decide")
    stays = (found.draft.cost.macs or 0) / (found.listing.cost.macs or 1)
    if removes and settings.macs is not None and stays > settings.macs + _ROUNDING:
        notes.append(
            f"{stays:.0%} of the multiply-accumulates remain: the budget counts all branches of an If, "
            "the model's cost only the dearest"
        )
    if removes and settings.latency is not None:
        notes.append(
            "The latency is a guess from the multiply-accumulates until the layers have been timed here"
            if context.preview and not timed_before(found.listing, context)
            else "The latency was measured on this machine; elsewhere it may differ"
        )
    if removes and repaired and found.idle:
        notes.append("Layers in branches that no calibration sample takes are cut but not refitted")
    return tuple(notes), tuple(questions)


def _left(found: _Found) -> float:
    """Share of the parameters that stay."""
    return found.draft.cost.parameters / max(1, found.listing.cost.parameters)


def _unrepaired(found: _Found) -> float:
    """Share of the model's parameters that go from layers which refit does not reach."""
    gone = sum(
        layer.record.cost.parameters - found.draft.nodes[name].record.cost.parameters
        for name, layer in found.listing.nodes.items()
        if layer.path in found.idle and name in found.draft.nodes
    )
    return gone / max(1, found.listing.cost.parameters)


# ------------------------------------------------------------------ verifying and refitting


def _verify(listing: Listing, grouping: Grouping, gone: Array, twins: Twins, context: Context) -> None:
    """Compare with the oracle; a cut that is wrong is never handed out.

    Raises:
        StudioError: the cut model answers differently.
    """
    data = context.calibration
    if data is None:
        spec = DataSpec(kind="random", limit=2, seed=context.seed)
        data = open_for(listing.model, spec, dict(listing.input_sizes))
    feed = next(iter(data.feeds()))
    checked = verify(grouping.trace, gone, twins, feed, context.threads)
    if not checked.deaf and not checked.exact:
        raise StudioError(
            "The pruned model failed its check",
            f"it differs from the masked original by {checked.error:.2g} of the outputs' spread",
            "Leave out some layers, and please report this model's structure.",
        )
    context.note(checked.words)


def _refit(
    listing: Listing, grouping: Grouping, gone: Array, twins: Twins, words: dict[str, str], context: Context
) -> None:
    """Refit layer after layer; what is reported as treated leaves `words`."""
    if context.calibration is None:
        return
    samples = context.calibration.samples
    room = max(
        8, int(_REFIT_BYTES / max(1, 4 * _peak_bytes(listing, next(iter(context.calibration.feeds())))))
    )
    if samples > room:
        context.note(f"Refit used {room} of {samples} calibration samples, which is what fits in memory")
    feeds = list(context.calibration.take(min(samples, room)).feeds())
    work = Refit(grouping.trace, gone, twins, feeds, _seed(context), context.threads)
    names = {layer.node: name for name, layer in listing.nodes.items()}
    targets = work.targets()
    progress = context.progress.part(0.35, 0.98)
    done = 0
    for target in progress.over(targets, lambda t: f"Refit {names.get(t.old, t.old.name or '')}"):
        done += work.run(target) is not None
        name = names.get(target.old, "")
        if name in words:
            context.treated(twins.copy, name, words.pop(name))
    context.note(f"{done} layers refitted on {min(samples, room)} samples")
    if done < len(targets):
        context.note(f"{len(targets) - done} layers not refitted: no calibration sample comes to them")


def _seed(context: Context) -> int:
    return int.from_bytes(hashlib.blake2b(f"refit {context.seed}".encode(), digest_size=4).digest(), "little")


def _peak_bytes(listing: Listing, feed: Mapping[str, Array]) -> int:
    """Bytes of the largest activation of one sample; samples may be larger than the chosen input sizes."""
    sizes = [1]
    for node in nodes(listing.model):
        for value in node.outputs:
            dims = listing.shapes.of(value)
            if dims is not None and all(isinstance(d, int) for d in dims):
                sizes.append(4 * int(np.prod([int(d) for d in dims])))
    chosen = 1.0
    for value in listing.model.graph.inputs:
        dims = listing.shapes.of(value)
        array = feed.get(value.name or "")
        if array is not None and array.ndim and dims and all(isinstance(d, int) for d in dims):
            whole = float(np.prod([int(d) for d in dims]))
            chosen = max(chosen, array.size / max(1, len(array)) / max(1.0, whole))
    return int(max(sizes) * chosen)
