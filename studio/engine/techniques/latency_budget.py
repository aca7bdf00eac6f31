"""Widths for a budget of measured running time.

Layers are timed at several widths (`pruning/staircase`), the budget is spread by these times, and the draft that
comes out is timed against the model. Where that misses the budget, the modelled one is moved until it does not.
All that was measured is kept, so a preview after it needs no clock and the same step gives the same widths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from studio.engine.dataset import Feed, open_for
from studio.engine.groups.grouping import ChannelGroup, Grouping
from studio.engine.layers import Listing
from studio.engine.pruning import staircase
from studio.engine.pruning.allocation import Allocation, Costs, by_budget, by_ratio
from studio.engine.pruning.orders import Order
from studio.engine.pruning.staircase import Staircase
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import PruneChannels

_ROUNDS = 6
_SLACK = 0.01  # of the whole time, which is what a ratio of times is good for


def timed_before(listing: Listing, context: Context) -> bool:
    """Whether this model's layers have been timed on this machine."""
    return staircase.known(_file(listing, context)) is not None


def time_layers(listing: Listing, grouping: Grouping, context: Context) -> Staircase:
    """Time the layers at several widths, unless that is known."""
    file = _file(listing, context)
    found = staircase.known(file)
    if found is None:
        widths = {share: by_ratio(grouping.groups, 1 - share, 0, 1) for share in staircase.SHARES}
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
    total = Costs(grouping, "latency", known).total([1.0] * len(grouping.groups))

    def spread(aim: float) -> Allocation:
        return by_budget(
            grouping, chosen, orders, "latency", aim, total, settings.round_to, settings.minimum, known
        )

    key = repr((settings, [g.record.name for g in chosen]))
    if not context.preview and key not in known.aims:
        aim, busy = _aim(spread, wanted, listing, grouping, context)
        known = msgspec.structs.replace(known, aims={**known.aims, key: aim})
        if not busy:
            staircase.keep(_file(listing, context), known)
    aim = known.aims.get(key, wanted)
    found = spread(aim)
    return found.kept, found.reached if found.reached > aim else wanted


def _aim(
    spread: Callable[[float], Allocation],
    wanted: float,
    listing: Listing,
    grouping: Grouping,
    context: Context,
) -> tuple[float, bool]:
    """The modelled share whose draft takes the wanted share of the measured time or a little less; whether it was busy."""
    aim, busy = wanted, False
    low: float | None = None  # the largest share that keeps within the budget
    high: float | None = None  # the smallest that does not
    for turn in range(_ROUNDS):
        progress = context.progress.part(0.1 + 0.1 * turn / _ROUNDS, 0.1 + 0.1 * (turn + 1) / _ROUNDS)
        kept = spread(aim).kept
        feed = _feed(listing, context)
        took, disturbed = staircase.timed(listing, grouping, kept, feed, context.threads, progress)
        busy = busy or disturbed
        if took <= wanted + _SLACK:
            low = aim if low is None else max(low, aim)
            if took > wanted - 3 * _SLACK:
                break
        else:
            high = aim if high is None else min(high, aim)
        # Times go in steps: by the ratio until the budget lies between two shares, by halves from then on.
        if low is not None and high is not None and low < high:
            aim = (low + high) / 2
        else:
            aim = min(1.0, aim * wanted / took)
    return (aim if low is None else low), busy


def _file(listing: Listing, context: Context) -> Path:
    return staircase.place(listing, _feed(listing, context), context.threads)


def _feed(listing: Listing, context: Context) -> Feed:
    data = context.calibration
    if data is None:
        spec = DataSpec(kind="random", limit=1, seed=context.seed)
        data = open_for(listing.model, spec, dict(listing.input_sizes))
    return data.first()
