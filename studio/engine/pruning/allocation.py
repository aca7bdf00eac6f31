"""How many channels of each group stay: a local ratio, or one budget spread by what each group can spare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from studio.engine.cost import macs, stored_values, tensor_bytes
from studio.engine.graph import constant
from studio.engine.groups.atoms import Axis
from studio.engine.groups.grouping import ChannelGroup, Grouping
from studio.engine.pruning.orders import Order
from studio.engine.pruning.staircase import Staircase
from studio.engine.pruning.widths import fewer, grain, more, rounded

Resource = Literal["macs", "params", "bytes", "latency"]

_STEPS = 32  # of a group's channels, in a budget


@dataclass(frozen=True)
class _Item:
    """Something that costs `base` × Π over axes of Σ over runs of share · Π of the kept shares of groups."""

    base: float
    axes: tuple[tuple[tuple[float, tuple[int, ...]], ...], ...]

    def cost(self, shares: Sequence[float]) -> float:
        return self.base * self.kept(shares)

    def kept(self, shares: Sequence[float]) -> float:
        """The share of the work that is left."""
        product = 1.0
        for axis in self.axes:
            product *= sum(share * float(np.prod([shares[g] for g in groups])) for share, groups in axis)
        return product


@dataclass(frozen=True)
class _Timed(_Item):
    """Something whose time at some shares of its work was measured: times for ascending roots of these shares."""

    at: tuple[float, ...] = ()
    times: tuple[float, ...] = ()

    def cost(self, shares: Sequence[float]) -> float:
        return self.base * float(np.interp(_root(self, shares), self.at, self.times))


def _root(item: _Item, shares: Sequence[float]) -> float:
    """The geometric mean of the shares that the axes keep."""
    return float(item.kept(shares) ** (1 / max(1, len(item.axes))))


class Costs:
    """What the model costs at given widths of its groups, without cutting anything.

    Args:
        grouping: all groups.
        resource: what is counted.
        staircase: what was measured, for the latency (in milliseconds).
    """

    def __init__(self, grouping: Grouping, resource: Resource, staircase: Staircase | None = None) -> None:
        self._groups = grouping.groups
        self._owner: dict[int, int] = {}
        for index, group in enumerate(grouping.groups):
            self._owner.update(dict.fromkeys(group.atoms.tolist(), index))
        self._items: Sequence[_Item]
        if staircase is not None:
            self._items = self._timed(grouping, staircase)
        else:
            self._items = self._work(grouping) if resource == "macs" else self._stored(grouping, resource)
        self._by_group: dict[int, list[int]] = defaultdict(list)
        for number, item in enumerate(self._items):
            for index in {g for axis in item.axes for _, groups in axis for g in groups}:
                self._by_group[index].append(number)

    def total(self, shares: Sequence[float]) -> float:
        """Cost of everything that has a cost, at these kept shares."""
        return sum(item.cost(shares) for item in self._items)

    def saving(self, shares: list[float], group: int, share: float) -> float:
        """What keeping only `share` of one group saves."""
        changed = list(shares)
        changed[group] = share
        items = [self._items[n] for n in self._by_group[group]]
        return sum(item.cost(shares) - item.cost(changed) for item in items)

    def _work(self, grouping: Grouping) -> list[_Item]:
        found = []
        listed = {}
        for work in grouping.trace.work:
            if work.node not in listed:
                listed[work.node] = macs(work.node, grouping.trace.shapes) or 0
            axes = tuple(self._axis(grouping, axis) for axis in work.axes)
            found.append(_Item(listed[work.node] * work.share, axes))
        return found

    def _timed(self, grouping: Grouping, staircase: Staircase) -> list[_Item]:
        """The layers, by the shares of their own axes; all else by the mean share of all groups."""
        drafts = [
            [stair.kept.get(g.record.name, g.record.width) / g.record.width for g in self._groups]
            for stair in staircase.stairs
        ]
        found: list[_Item] = []
        layers = set()
        for work in grouping.trace.work:
            name = grouping.names.get(work.node, "")
            layers.add(name)
            plain = _Item(work.share, tuple(self._axis(grouping, axis) for axis in work.axes))
            found.append(_measured(plain, drafts, staircase.curve(name)))
        count = len(self._groups)
        whole = _Item(1.0, (tuple((1 / count, (index,)) for index in range(count)),) if count else ())
        found.append(_measured(whole, drafts, staircase.rest(layers)))
        return found

    def _stored(self, grouping: Grouping, resource: Resource) -> list[_Item]:
        found = []
        seen = set()
        for held in grouping.trace.constants.values():
            tensor = constant(held.value)
            if tensor is None or held.value in seen:
                continue
            seen.add(held.value)
            base = stored_values(held.value) if resource == "params" else tensor_bytes(tensor)
            axes = tuple(self._axis(grouping, axis) for axis in held.labels if axis is not None)
            found.append(_Item(float(base), axes))
        return found

    def _axis(self, grouping: Grouping, axis: Axis) -> tuple[tuple[float, tuple[int, ...]], ...]:
        parts = grouping.trace.atoms.parts(axis)
        owners = [tuple(sorted({self._owner[a] for a in row if a in self._owner})) for row in parts.tolist()]
        counts: dict[tuple[int, ...], int] = defaultdict(int)
        for row in owners:
            counts[row] += 1
        return tuple((count / len(owners), groups) for groups, count in counts.items())


def _measured(plain: _Item, drafts: Sequence[Sequence[float]], times: Sequence[float]) -> _Timed:
    """An item with the times that it took in drafts, each given by the shares of the groups."""
    points = dict(sorted(zip((_root(plain, shares) for shares in drafts), times, strict=True)))
    return _Timed(plain.base, plain.axes, tuple(points), tuple(points.values()))


@dataclass(frozen=True)
class Allocation:
    """Kept channels by group name; `reached` is the share of the resource that is left."""

    kept: dict[str, int]
    reached: float


def by_ratio(
    grouping: Grouping, chosen: Sequence[ChannelGroup], ratio: float, round_to: int, minimum: int
) -> dict[str, int]:
    """Every chosen group loses about the same share."""
    return {
        g.record.name: rounded(
            g.record.width, g.record.width * (1 - ratio), round_to, minimum, grain(grouping, g)
        )
        for g in chosen
    }


def by_budget(
    grouping: Grouping,
    chosen: Sequence[ChannelGroup],
    orders: Mapping[str, Order],
    resource: Resource,
    budget: float,
    total: float,
    round_to: int,
    minimum: int,
    staircase: Staircase | None = None,
) -> Allocation:
    """Take channels where they cost the least error per saving, until the budget holds.

    Args:
        grouping: all groups.
        chosen: those that may be narrowed.
        orders: how much error each next channel makes.
        resource: what the budget is of.
        budget: share of `total` to keep.
        total: of the whole model, parts that nothing can narrow included.
        round_to: see `widths.rounded`.
        minimum: width that no group goes below.
        staircase: what was measured, for the latency.
    """
    costs = Costs(grouping, resource, staircase)
    index = {g.record.name: i for i, g in enumerate(grouping.groups)}
    shares = [1.0] * len(grouping.groups)
    kept = {g.record.name: g.record.width for g in chosen}
    grains = {g.record.name: grain(grouping, g) for g in chosen}
    spent = total

    def change(group: ChannelGroup, width: int) -> tuple[float, float]:
        """(Error that a width adds, what it saves), against the present one."""
        name, whole = group.record.name, group.record.width
        error = orders[name].error
        added = float(error[whole - width] - error[whole - kept[name]])
        return added, costs.saving(shares, index[name], width / whole)

    def take(group: ChannelGroup, width: int, saved: float) -> float:
        kept[group.record.name] = width
        shares[index[group.record.name]] = width / group.record.width
        return spent - saved

    while spent > budget * total:
        best: tuple[float, ChannelGroup, int, float] | None = None
        for group in chosen:
            name, width = group.record.name, group.record.width
            less = fewer(width, kept[name], round_to, minimum, grains[name], width / _STEPS)
            if less < kept[name]:
                added, saved = change(group, less)
                if best is None or added / max(saved, 1e-9) < best[0]:
                    best = (added / max(saved, 1e-9), group, less, saved)
        if best is None:
            break
        spent = take(*best[1:])
    while True:  # the last step may have saved too much: give back where it helps most
        back: tuple[float, ChannelGroup, int, float] | None = None
        for group in chosen:
            name = group.record.name
            larger = more(group.record.width, kept[name], round_to, grains[name])
            if larger > kept[name]:
                added, saved = change(group, larger)
                if spent - saved <= budget * total and (back is None or added < back[0]):
                    back = (added, group, larger, saved)
        if back is None or back[0] >= 0:
            return Allocation(kept, spent / max(total, 1e-9))
        spent = take(*back[1:])
