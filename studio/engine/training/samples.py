"""Samples for training: drawn in random order, split into those that teach and those that judge.

Arrays are kept in memory up to a limit; a larger data set is walked through in parts of that size,
shuffled within each. Feeds that cannot be stacked are used as they come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.base.errors import StudioError
from studio.engine.dataset import Dataset
from studio.engine.dataset.core import Batch

Array: TypeAlias = npt.NDArray[Any]

_KEPT_BYTES = 1_500_000_000
_JUDGES = 0.1  # share of the samples that judge
_FEWEST_JUDGES = 8  # or a quarter of them
_MOST_JUDGES = 1024


@dataclass(frozen=True)
class Sample:
    """One batch: inputs by name, labels (None without), and the samples' numbers (None where they cannot be told)."""

    feed: dict[str, Array]
    labels: Array | None
    numbers: Array | None


class Samples:
    """The training data of one run.

    Args:
        data: labelled or not.
        batch: samples per step, where samples stack.
        seed: of order and split.
    """

    def __init__(self, data: Dataset, batch: int, seed: int) -> None:
        self._data, self._batch, self._alone = data, batch, False
        self._random = np.random.default_rng(seed)
        self._parts = _whole(data, batch)
        count = self._parts.count
        if not count:
            raise StudioError("There are no samples to train on", "the data set is empty")
        wanted = max(int(count * _JUDGES), min(_FEWEST_JUDGES, count // 4))
        judges = min(max(1, _MOST_JUDGES // max(1, self._parts.unit)), wanted)
        order = self._random.permutation(count)
        self._judges, self._pupils = np.sort(order[:judges]), order[judges:]

    @property
    def count(self) -> int:
        """Samples (or feeds, where they do not stack) that teach."""
        return len(self._pupils)

    @property
    def judging(self) -> int:
        """Samples that judge; those that teach where there are too few."""
        return len(self._chosen())

    @property
    def total(self) -> int:
        """Samples that have a number of their own: all of them, or none where they do not stack."""
        return self._parts.count if self.stacked else 0

    def one_by_one(self) -> None:
        """Give one sample at a time from now on."""
        self._batch, self._alone = 1, True

    @property
    def single(self) -> bool:
        """Whether a batch is one sample, though more were asked for."""
        return self._alone if self.stacked else self._parts.unit == 1

    @property
    def stacked(self) -> bool:
        """Whether samples can be batched freely."""
        return isinstance(self._parts, _Stack)

    def judges(self) -> Iterator[Sample]:
        """The samples that judge, always in the same order; those that teach where there are too few."""
        yield from self.some(self.judging)

    def some(self, count: int) -> Iterator[Sample]:
        """So many of the samples that judge, always the same; fewer where there are fewer."""
        chosen = self._chosen()[:count]
        for start in range(0, len(chosen), self._step):
            yield self._parts.take(chosen[start : start + self._step])

    def _chosen(self) -> Array:
        return self._judges if len(self._judges) else np.sort(self._pupils)

    def endless(self, skip: int = 0) -> Iterator[Sample]:
        """Batches in random order, epoch after epoch, without the first `skip`."""
        done = 0
        while True:
            order = self._random.permutation(self._pupils)
            for start in range(0, len(order), self._step):
                chosen = order[start : start + self._step]
                if len(chosen) < self._step and start:
                    break  # a small rest would weigh too much
                done += 1
                if done > skip:
                    yield self._parts.take(chosen)

    @property
    def _step(self) -> int:
        return self._batch if self.stacked else 1


@dataclass(frozen=True)
class _Stack:
    """All samples in memory, stacked."""

    feed: Mapping[str, Array]
    labels: Array | None
    unit: int = 1

    @property
    def count(self) -> int:
        return len(next(iter(self.feed.values())))

    def take(self, chosen: Array) -> Sample:
        labels = None if self.labels is None else self.labels[chosen]
        return Sample({n: a[chosen] for n, a in self.feed.items()}, labels, chosen)


@dataclass(frozen=True)
class _Feeds:
    """Feeds that do not stack, as they come."""

    feeds: Sequence[Batch]
    unit: int

    @property
    def count(self) -> int:
        return len(self.feeds)

    def take(self, chosen: Array) -> Sample:
        item = self.feeds[int(chosen[0])]
        return Sample(item.feed, item.labels, None)


def _whole(data: Dataset, batch: int) -> _Stack | _Feeds:
    found: list[Batch] = []
    held = 0
    for item in data.batches(None if data.source.batch else batch):
        found.append(item)
        held += sum(a.nbytes for a in item.feed.values())
        if held > _KEPT_BYTES:
            break
    if not found:
        raise StudioError("There are no samples to train on", "the data set is empty")
    fixed = data.source.batch > 1
    shapes = {tuple((n, a.shape[1:]) for n, a in item.feed.items()) for item in found}
    stackable = all(a.ndim and a.shape[0] == item.count for item in found for a in item.feed.values())
    if fixed or len(shapes) > 1 or not stackable:
        return _Feeds(found, max(1, round(sum(i.count for i in found) / len(found))))
    feed = {n: np.concatenate([i.feed[n] for i in found]) for n in found[0].feed}
    labels = [i.labels for i in found]
    if any(v is None for v in labels) or len({v.shape[1:] for v in labels if v is not None}) > 1:
        return _Stack(feed, None)
    return _Stack(feed, np.concatenate([v for v in labels if v is not None]))
