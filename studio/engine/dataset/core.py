"""What a data set is: an order of samples over a source that is read in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.base.errors import StudioError
from studio.base.units import counted
from studio.records.measure import DataSpec, DataSummary
from studio.records.model import TensorInfo

Array: TypeAlias = npt.NDArray[Any]
Feed: TypeAlias = dict[str, Array]
Order: TypeAlias = npt.NDArray[np.int64]

UNLABELLED = -1
# A batch is as many samples as fit into this, and no more than that many.
_BATCH_BYTES = 8_000_000
_BATCH_SAMPLES = 32


@dataclass(frozen=True)
class Batch:
    """One run's worth: inputs, the labels of its samples (None without labels), and how many samples."""

    feed: Feed
    labels: Array | None
    count: int


class Source(Protocol):
    """Something that samples come from."""

    @property
    def count(self) -> int:
        """Samples in it."""
        ...

    @property
    def batch(self) -> int:
        """Samples that one run must take; 0 = any number."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        ...

    @property
    def what(self) -> str:
        """In words, for the summary and for errors: 'calibration.npz'."""
        ...

    @property
    def cautions(self) -> tuple[str, ...]:
        """What the user should know."""
        ...

    def read(self, order: Order, size: int) -> Iterator[Batch]:
        """The samples of `order` (ascending), `size` at a time."""
        ...

    def labels(self, order: Order) -> Iterator[Array]:
        """The labels of those samples in blocks (samples, …), without reading inputs."""
        ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples of one DataSpec for one model.

    Attributes:
        spec: where they come from.
        inputs: of the model.
        source: what reads them.
        order: which samples, in the order they were drawn.
        random: made up, not measured.
    """

    spec: DataSpec
    inputs: tuple[TensorInfo, ...]
    source: Source
    order: Order
    random: bool = False

    @property
    def samples(self) -> int:
        """How many samples a walk gives."""
        return len(self.order)

    def take(self, count: int) -> Dataset:
        """The first `count` samples drawn."""
        return replace(self, order=self.order[:count])

    def batch_size(self, batch: int | None = None) -> int:
        """Samples per run: what the model demands, else as asked, else the DataSpec's, else what is sensible."""
        if self.source.batch:
            return self.source.batch
        return batch or self.spec.batch or self._sensible_batch

    @cached_property
    def _sensible_batch(self) -> int:
        """As many samples as are small enough together, judged by one of them."""
        first = next(self.source.read(np.sort(self.order[:1]), 1))
        size = sum(array.nbytes for array in first.feed.values())
        return int(np.clip(_BATCH_BYTES // max(1, size), 1, _BATCH_SAMPLES))

    def runs(self, batch: int | None = None) -> int:
        """How many batches a walk gives."""
        size = self.batch_size(batch)
        return self.samples // size if self.source.batch else -(-self.samples // size)

    def batches(self, batch: int | None = None) -> Iterator[Batch]:
        """Inputs and labels, a batch at a time, read anew on every call.

        Raises:
            StudioError: a file is damaged, a value is not a number, or a sample does not fit the model.
        """
        size = self.batch_size(batch)
        done = 0
        for item in self.source.read(np.sort(self.order), size):
            if self.source.batch and item.count < size:
                return  # the rest does not fill a run of this model
            self._check_numbers(item.feed, done)
            done += item.count
            yield item

    def feeds(self, batch: int | None = None) -> Iterator[Feed]:
        """Inputs only, a batch at a time."""
        for item in self.batches(batch):
            yield item.feed

    def first(self) -> Feed:
        """The smallest feed: one sample, or as many as the model demands."""
        return next(self.feeds(1))

    def input_sizes(self) -> dict[str, int]:
        """The sizes that dynamic dimensions have in the first sample, by name."""
        feed = self.first()
        return {
            name: int(size)
            for info in self.inputs
            for name, size in zip(info.shape or (), feed[info.name].shape, strict=False)
            if isinstance(name, str)
        }

    def labels(self) -> Array | None:
        """All labels (samples, …); shorter ones are filled up with −1 (unlabelled). None without labels."""
        if not self.source.labelled:
            return None
        parts = list(self.source.labels(np.sort(self.order)))
        rest = [max(sizes) for sizes in zip(*(p.shape[1:] for p in parts), strict=True)]
        filled = [
            np.pad(
                part,
                [(0, 0), *((0, want - have) for want, have in zip(rest, part.shape[1:], strict=True))],
                constant_values=UNLABELLED,
            )
            for part in parts
        ]
        return np.concatenate(filled)

    def summary(self) -> DataSummary:
        """What the DataSpec turned out to hold."""
        labels = self.labels()
        labelled = classes = 0
        if labels is not None:
            known = labels.reshape(len(labels), -1) != UNLABELLED
            labelled = int(known.any(axis=1).sum())
            if labels.dtype.kind in "iu":
                classes = len(np.unique(labels[labels != UNLABELLED]))
        cautions = list(self.source.cautions)
        left = self.samples % self.source.batch if self.source.batch else 0
        if left:
            cautions.append(
                f"the model takes {self.source.batch} samples at a time: the last {left} are left out"
            )
        return DataSummary(
            spec=self.spec,
            samples=self.samples,
            labelled=labelled,
            classes=classes,
            description=f"{self.source.what} · {counted(self.samples, 'sample')}",
            random=self.random,
            input_sizes=tuple(self.input_sizes().items()),
            cautions=tuple(cautions),
        )

    def _check_numbers(self, feed: Mapping[str, Array], done: int) -> None:
        for name, array in feed.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise StudioError(
                    f"{self.source.what} holds values that are not numbers",
                    f"input '{name}' is NaN at or soon after sample {done}",
                    "Remove or repair those samples.",
                )


def draw(spec: DataSpec, count: int) -> Order:
    """Which of `count` samples a DataSpec asks for: the first, or a draw with its seed."""
    limit = min(spec.limit or count, count)
    if spec.shuffle:
        return np.random.default_rng(spec.seed).permutation(count)[:limit].astype(np.int64)
    return np.arange(limit, dtype=np.int64)
