"""In which order the channels of every group would go, by a step's criterion, and what of it is kept for later.

The one thing to know: nothing here depends on how many channels go, so a slider that moves asks for it once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np

from studio.engine.execute import Array
from studio.engine.graph import Model
from studio.engine.groups.grouping import Grouping, find_groups
from studio.engine.groups.trace import trace
from studio.engine.layers import Listing
from studio.engine.pruning.allocation import Resource
from studio.engine.pruning.bodies import unvisited
from studio.engine.pruning.criteria import (
    by_data,
    by_gradients,
    by_weights,
    consumers,
    felt_values,
    readers,
)
from studio.engine.pruning.gains import PROBES, heard, heard_together, unseen
from studio.engine.pruning.moments import second_moments
from studio.engine.pruning.orders import Order, Reader
from studio.engine.techniques.contract import Context
from studio.records.steps import PruneChannels

BY_GRADIENTS = {"taylor", "fisher"}
NEEDS_DATA = {"activation", "obs"} | BY_GRADIENTS
# Samples on which every group is probed: fewer where a probe is dear, so that large models take no minutes.
_PROBE_SAMPLES, _LEAST_PROBE_SAMPLES = 32, 8
_PROBE_MACS = 3e12
_GRADIENT_SAMPLES = 64
_BRANCH_SAMPLES = 32
# Share of a group's channels whose order a budget knows exactly; beyond it, the order of that moment holds.
_DEEPEST = 0.9


def budget_of(settings: PruneChannels) -> tuple[Resource, float] | None:
    """The resource that is limited, and which share of it stays; None for a ratio."""
    budgets: tuple[tuple[Resource, float | None], ...] = (
        ("macs", settings.macs),
        ("params", settings.params),
        ("bytes", settings.bytes),
        ("latency", settings.latency),
    )
    return next(((name, share) for name, share in budgets if share is not None), None)


# What is known of the model that was planned last: a slider that moves plans it again and again.
_known: tuple[Model, dict[object, object]] | None = None


def _remembered(listing: Listing) -> dict[object, object]:
    global _known
    if _known is None or _known[0] is not listing.model:
        _known = (listing.model, {})
    return _known[1]


def grouping_of(listing: Listing) -> Grouping:
    """The groups of a model, found once."""
    memo = _remembered(listing)
    key = ("groups", tuple(listing.input_sizes.items()))
    found = memo.get(key)
    if not isinstance(found, Grouping):
        found = memo[key] = find_groups(trace(listing.model, listing.shapes), listing)
    return found


def idle_bodies(listing: Listing, context: Context) -> frozenset[str]:
    """Paths of bodies with layers that no calibration sample comes to, as far as some samples tell."""
    layers = {layer.path: layer.node for layer in listing.nodes.values() if layer.path}
    if not layers or context.calibration is None:
        return frozenset()
    memo = _remembered(listing)
    key = ("idle bodies", _data_key(context))
    found = memo.get(key)
    if not isinstance(found, frozenset):
        feeds = context.calibration.take(_BRANCH_SAMPLES).feeds()
        found = memo[key] = unvisited(listing.model, layers, feeds, context.threads)
    return found


def orders_of(
    listing: Listing,
    grouping: Grouping,
    settings: PruneChannels,
    limits: Mapping[str, int],
    context: Context,
) -> dict[str, Order]:
    """In which order the channels of every group go, at least as many as `limits` says."""
    criterion = settings.criterion
    if criterion == "auto":
        criterion = "l2" if context.calibration is None else "obs"
    if guesses(settings, context):
        criterion = "l2" if criterion in NEEDS_DATA else criterion
    memo = _remembered(listing)
    key = ("orders", criterion, tuple(limits.items()), budget_of(settings) is None, _data_key(context))
    found = memo.get(key)
    if isinstance(found, dict):
        return found
    orders = by_weights(grouping, "l2" if criterion in NEEDS_DATA else criterion, context.seed)
    if criterion in BY_GRADIENTS:
        orders = _by_gradients(listing, grouping, criterion, orders, context)
    elif criterion in NEEDS_DATA:
        orders = by_data(
            _comparable(listing, grouping, context)
            if budget_of(settings)
            else _readers(listing, grouping, context),
            criterion,
            orders,
            limits,
            context.progress.part(0.15, 0.2),
        )
    memo[key] = orders
    return orders


def _by_gradients(
    listing: Listing, grouping: Grouping, criterion: str, fallback: dict[str, Order], context: Context
) -> dict[str, Order]:
    from studio.engine.trainable import gradients

    if context.calibration is None:
        return fallback
    felt = felt_values(grouping.trace)
    data = context.calibration.take(_GRADIENT_SAMPLES)
    probes = gradients(
        listing.model,
        list(dict.fromkeys(value.name for value in felt)),
        data.feeds(),
        context.seed,
        context.progress.part(0.0, 0.2),
        data.runs(),
    )
    return by_gradients(grouping, criterion, felt, probes, fallback)


def guesses(settings: PruneChannels, context: Context) -> bool:
    """Whether a budget is spread by the weights alone now, and by calibration data when it is carried out."""
    return context.preview and budget_of(settings) is not None and context.calibration is not None


def limits_of(grouping: Grouping, settings: PruneChannels, kept: Mapping[str, int]) -> dict[str, int]:
    """How deep the order of every group must be known: as deep as a budget may go, or as the plan goes."""
    widths = {g.record.name: g.record.width for g in grouping.groups if g.record.name in kept}
    if budget_of(settings) is not None:
        return {name: int(_DEEPEST * width) for name, width in widths.items()}
    return {name: width - kept[name] for name, width in widths.items()}


def _data_key(context: Context) -> object:
    data = context.calibration
    return None if data is None else (data.spec, data.samples, context.seed)


def _readers(listing: Listing, grouping: Grouping, context: Context) -> dict[str, list[Reader]]:
    """What reads every group, with the statistics of its input on the calibration data."""
    key = ("prune_channels readers", id(listing.model), context.seed)
    found = context.memo.get(key)
    if isinstance(found, dict):
        return found
    if context.calibration is None:
        return {}
    wanted = {name: (c.value, c.view) for name, c in consumers(grouping.trace).items()}
    statistics = second_moments(
        listing.model,
        wanted,
        context.calibration,
        context.seed,
        context.progress.part(0.0, 0.15),
        context.threads,
    )
    context.memo[key] = made = readers(grouping, statistics)
    return made


def _comparable(listing: Listing, grouping: Grouping, context: Context) -> dict[str, list[Reader]]:
    """What reads the groups among which a budget is spread.

    Where samples leave bodies out, none in bodies: what nobody heard would seem to cost nothing.
    """
    found = _readers(listing, grouping, context)
    if not idle_bodies(listing, context):
        return found
    main = set(listing.model.graph)
    return {
        name: several for name, several in found.items() if all(reader.node in main for reader in several)
    }


def weighed(
    listing: Listing,
    grouping: Grouping,
    limits: Mapping[str, int],
    orders: dict[str, Order],
    context: Context,
) -> dict[str, Order]:
    """Errors as they show at the output, where calibration data can tell."""
    if context.calibration is None:
        return orders
    memo = _remembered(listing)
    key = ("heard", tuple(limits), _data_key(context))
    found = memo.get(key)
    if isinstance(found, dict):
        return found
    reading = {name: r for name, r in _comparable(listing, grouping, context).items() if name in limits}
    samples = _affordable(listing, len(reading), next(iter(context.calibration.feeds(1))))
    feeds = unseen(context.calibration.feeds(), samples)
    made = heard(grouping, reading, orders, feeds, context.progress.part(0.2, 0.3), context.threads)
    memo[key] = made
    return made


def _affordable(listing: Listing, groups: int, feed: Mapping[str, Array]) -> int:
    """How many samples to probe so many groups on, judged by one of them; its size may not be the listing's."""
    sized = []
    for value in listing.model.graph.inputs:
        sizes = [d for d in listing.shapes.of(value) or () if isinstance(d, int)]
        array = feed.get(value.name or "")
        if array is not None and sizes:
            sized.append(array.size / max(1, prod(sizes)))
    work = groups * PROBES * (listing.cost.macs or 0) * max(sized, default=1.0)
    return int(np.clip(_PROBE_MACS / max(1.0, work), _LEAST_PROBE_SAMPLES, _PROBE_SAMPLES))


def judge_of(
    listing: Listing, grouping: Grouping, orders: Mapping[str, Order], context: Context
) -> Callable[[Mapping[str, int]], float]:
    """What compares ways to spread a budget: the error of kept widths, the lower the better.

    With calibration data it is measured at the output on samples that did not teach, all groups cut at once;
    without, it is what the orders say, added up.
    """
    widths = {g.record.name: g.record.width for g in grouping.groups}
    data = context.calibration
    reading = _comparable(listing, grouping, context)
    feeds = [] if data is None else unseen(data.feeds(), _PROBE_SAMPLES)

    def error(kept: Mapping[str, int]) -> float:
        gone = {name: widths[name] - count for name, count in kept.items()}
        if not reading:
            return float(sum(orders[name].error[count] for name, count in gone.items()))
        return heard_together(grouping, reading, orders, gone, feeds, context.threads)

    return error
