"""Widths for a budget of measured running time.

Layers are timed at several widths (`pruning/staircase`), and channels are spread in a few ways, each until its draft,
timed against the model, keeps the budget. Of these the one is taken whose outputs differ least.
All that was measured is kept, so a preview after it needs no clock and the same step gives the same widths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from studio.base.progress import Progress
from studio.engine.dataset import Feed, open_for
from studio.engine.groups.grouping import ChannelGroup, Grouping
from studio.engine.layers import Listing
from studio.engine.pruning import staircase
from studio.engine.pruning.allocation import Costs, by_budget, by_ratio
from studio.engine.pruning.orders import Order
from studio.engine.pruning.staircase import Aim, Staircase
from studio.engine.techniques.channel_orders import judge_of
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import PruneChannels

_ROUNDS = 5
_HALVINGS = 8
_MUCH_WORSE = 2.0  # as much error as the best, which finer aiming does not make up for
_SLACK = 0.01  # of the whole time, which is what a ratio of times is good for


def timed_before(listing: Listing, context: Context) -> bool:
    """Whether this model's layers have been timed on this machine."""
    return staircase.known(_file(listing, context)) is not None


def time_layers(listing: Listing, grouping: Grouping, context: Context) -> Staircase:
    """Time the layers at several widths, unless that is known."""
    file = _file(listing, context)
    found = staircase.known(file)
    if found is None:
        widths = {share: by_ratio(grouping, grouping.groups, 1 - share, 0, 1) for share in staircase.SHARES}
        progress = context.progress.part(0.0, 0.1)
        feed = _feed(listing, context)
        found = staircase.measure(listing, grouping, widths, feed, context.threads, progress)
        staircase.keep(file, found)
    return found


def within_time(
    listing: Listing,
    grouping: Grouping,
    chosen: Sequence[ChannelGroup],
    orders: Mapping[str, Order],
    settings: PruneChannels,
    context: Context,
) -> tuple[dict[str, int], float]:
    """Kept channels by group, and the share of the running time that is left."""
    wanted = settings.latency
    if wanted is None:
        raise ValueError("a step without a latency budget")
    known = time_layers(listing, grouping, context)
    ways = _ways(listing, grouping, chosen, orders, settings, known)
    key = repr((settings, [g.record.name for g in chosen]))
    if not context.preview and key not in known.aims:
        aim, sure = _chosen(ways, wanted, _Bench(listing, grouping, known, orders, context))
        known = msgspec.structs.replace(known, aims={**known.aims, key: aim})
        if sure:
            staircase.keep(_file(listing, context), known)
    aim = known.aims.get(key, Aim(way=_BY_TIME, share=wanted))
    kept = ways[aim.way](aim.share)
    least = _modelled(grouping, known)(ways[aim.way](_LEAST))
    return kept, max(wanted, least)


_BY_TIME = "times"
_LEAST = 0.02  # the smallest share that is tried
_Way: TypeAlias = Callable[
    [float], dict[str, int]
]  # kept channels by group, at a share of what the way counts


def _ways(
    listing: Listing, grouping: Grouping, chosen: Sequence[ChannelGroup], orders: Mapping[str, Order],
    settings: PruneChannels, known: Staircase,
) -> dict[str, _Way]:  # fmt: skip
    """Ways to make a model faster: by the times of its layers, by their work, and all groups alike.

    None is always best. What is timed layer by layer does not add up exactly, and work is not time; groups
    that are all alike lose nothing to a wrong guess, but what can spare nothing loses as much as the rest.
    """
    rounding = settings.round_to, settings.minimum
    time = Costs(grouping, "latency", known).total([1.0] * len(grouping.groups))
    work = float(listing.cost.macs or 0)
    ways: dict[str, _Way] = {
        _BY_TIME: lambda share: (
            by_budget(grouping, chosen, orders, "latency", share, time, *rounding, known).kept
        ),
        "evenly": lambda share: by_ratio(grouping, chosen, 1 - share, *rounding),
    }
    if work:
        ways["work"] = lambda share: by_budget(grouping, chosen, orders, "macs", share, work, *rounding).kept
    return ways


def _modelled(grouping: Grouping, known: Staircase) -> Callable[[Mapping[str, int]], float]:
    """The share of the running time that widths leave, by the times of the layers."""
    costs = Costs(grouping, "latency", known)
    groups = [g.record for g in grouping.groups]
    whole = costs.total([1.0] * len(groups))
    return lambda kept: costs.total([kept.get(g.name, g.width) / g.width for g in groups]) / max(whole, 1e-9)


@dataclass(frozen=True)
class _Bench:
    """What candidates are timed and judged with."""

    listing: Listing
    grouping: Grouping
    known: Staircase
    orders: Mapping[str, Order]
    context: Context

    def timed(self, kept: Mapping[str, int], progress: Progress) -> tuple[float, bool]:
        """The share of the model's running time that a draft takes; whether the machine was busy."""
        feed = _feed(self.listing, self.context)
        return staircase.timed(self.listing, self.grouping, kept, feed, self.context.threads, progress)


def _chosen(ways: Mapping[str, _Way], wanted: float, bench: _Bench) -> tuple[Aim, bool]:
    """The way whose draft keeps the budget with the least error; whether the machine was quiet meanwhile.

    Ways that seem much worse than the best before any is timed are left out.
    """
    modelled = _modelled(bench.grouping, bench.known)
    error = judge_of(bench.listing, bench.grouping, bench.orders, bench.context)
    starts = {name: _guess(way, modelled, wanted) for name, way in ways.items()}
    seem = {name: error(ways[name](start)) for name, start in starts.items()}
    tried = [name for name in ways if seem[name] <= _MUCH_WORSE * min(seem.values())]
    found: list[tuple[bool, float, Aim]] = []
    sure = True
    for number, name in enumerate(tried):
        progress = bench.context.progress.part(
            0.1 + 0.1 * number / len(tried), 0.1 + 0.1 * (number + 1) / len(tried)
        )
        share, kept_it, busy = _aim(ways[name], starts[name], wanted, bench, progress)
        sure = sure and not busy
        found.append((not kept_it, error(ways[name](share)), Aim(way=name, share=share)))
    return min(found, key=lambda row: row[:2])[2], sure


def _guess(way: _Way, modelled: Callable[[Mapping[str, int]], float], wanted: float) -> float:
    """The largest share that seems to keep the budget; the least of all where none does."""
    low, high = _LEAST, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if modelled(way(middle)) <= wanted:
            low = middle
        else:
            high = middle
    return low


def _aim(
    way: _Way, start: float, wanted: float, bench: _Bench, progress: Progress
) -> tuple[float, bool, bool]:
    """The share whose draft takes the wanted share of the measured time or a little less.

    Returns:
        That share, whether it keeps the budget, and whether the machine was busy.
    """
    aim, busy = start, False
    low: float | None = None  # the largest share that keeps within the budget
    high: float | None = None  # the smallest that does not
    for turn in range(_ROUNDS):
        took, disturbed = bench.timed(way(aim), progress.part(turn / _ROUNDS, (turn + 1) / _ROUNDS))
        busy = busy or disturbed
        if took <= wanted + _SLACK:
            low = aim if low is None else max(low, aim)
            if took > wanted - 3 * _SLACK or low >= 1:
                break
        else:
            high = aim if high is None else min(high, aim)
        # Times go in steps: by the ratio until the budget lies between two shares, by halves from then on.
        if low is not None and high is not None and low < high:
            aim = (low + high) / 2
        else:
            aim = min(1.0, aim * wanted / took)
    return (aim if low is None else low), low is not None, busy


def _file(listing: Listing, context: Context) -> Path:
    return staircase.place(listing, _feed(listing, context), context.threads)


def _feed(listing: Listing, context: Context) -> Feed:
    data = context.calibration
    if data is None:
        spec = DataSpec(kind="random", limit=1, seed=context.seed)
        data = open_for(listing.model, spec, dict(listing.input_sizes))
    return data.first()
