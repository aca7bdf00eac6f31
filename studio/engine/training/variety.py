"""More samples out of those there are; the teacher answers for the new ones, so nothing need be known about them.

Few samples are blended in pairs and shifted, every one of them new. Many are seen in a handful of fixed views
(shifted, mirrored), so that the teacher answers once for each view of a sample and is remembered; plainly first,
since a short run learns most from that. A view is only used where the teacher mostly answers for it as for the
sample itself.

Source: Zhang et al. 2018, *mixup*; Beyer et al. 2022, *Knowledge distillation: A good teacher is patient and
consistent* (teacher and student see the same view).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.engine.accuracy.kinds import Kind
from studio.engine.training.losses import agreement
from studio.engine.training.samples import Sample, Samples
from studio.engine.training.teacher import Teacher

Array: TypeAlias = npt.NDArray[Any]

_TRUSTED = 0.8  # share of samples for which the teacher answers alike in a view that is used

_PLAIN_PASSES = 10  # over the samples before they are seen in other views
_BLENDED = 0.7  # share of batches that are blended
_SHIFT = 1 / 14  # of the picture's height and width, at most


class Variety(Protocol):
    """Makes a new batch out of one."""

    def __call__(self, sample: Sample, random: np.random.Generator, passes: float) -> Sample:
        """The batch, or another one.

        Args:
            sample: the batch.
            random: makes all choices.
            passes: how often every sample has been seen.
        """
        ...


@dataclass(frozen=True)
class View:
    """One way to look at pictures.

    Attributes:
        down / right: shift, as shares of height and width.
        mirrored: left is right.
    """

    down: float = 0.0
    right: float = 0.0
    mirrored: bool = False

    def of(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """The feed with its pictures seen so."""
        return {n: self._seen(a) if _picture(a) else a for n, a in feed.items()}

    def _seen(self, array: Array) -> Array:
        shift = tuple(
            round(share * size) for share, size in zip((self.down, self.right), array.shape[2:], strict=True)
        )
        seen = np.roll(array, shift, axis=(2, 3)) if any(shift) else array
        return np.ascontiguousarray(seen[..., ::-1]) if self.mirrored else seen


PLAIN = View()
VIEWS = tuple(
    View(down, right, mirrored)
    for mirrored in (False, True)
    for down, right in ((0, 0), (_SHIFT, 0), (-_SHIFT, 0), (0, _SHIFT), (0, -_SHIFT))
)


def _picture(array: Array) -> bool:
    return array.dtype.kind == "f" and array.ndim == 4


@dataclass(frozen=True)
class Same:
    """The batch as it is."""

    def __call__(self, sample: Sample, random: np.random.Generator, passes: float) -> Sample:  # noqa: ARG002 - the protocol's
        """See `Variety`."""
        return sample


@dataclass(frozen=True)
class Views:
    """Every batch in one of a few views.

    Attributes:
        views: the first is the plain one.
        total: samples that have a number; a view's samples get numbers of their own behind them.
    """

    views: Sequence[View]
    total: int

    def __call__(self, sample: Sample, random: np.random.Generator, passes: float) -> Sample:
        """See `Variety`."""
        chosen = int(random.integers(len(self.views))) if passes >= _PLAIN_PASSES else 0
        numbers = None if sample.numbers is None else sample.numbers + chosen * self.total
        return replace(sample, feed=self.views[chosen].of(sample.feed), numbers=numbers)


@dataclass(frozen=True)
class Blends:
    """Most batches blended in pairs, x ← a·x + (1 − a)·x′ with an even a, all pictures shifted.

    Attributes:
        mirror: half of the batches are mirrored.
    """

    mirror: bool = False

    def __call__(self, sample: Sample, random: np.random.Generator, passes: float) -> Sample:  # noqa: ARG002 - the protocol's
        """See `Variety`; what is blended has no label."""
        share = float(random.uniform()) if random.random() < _BLENDED else 1.0
        order = random.permutation(len(next(iter(sample.feed.values()))))
        down, right = random.uniform(-_SHIFT, _SHIFT, 2)
        view = View(down, right, self.mirror and random.random() < 0.5)
        feed = {n: _blended(a, share, order) for n, a in sample.feed.items()}
        return Sample(view.of(feed), None if share < 1 else sample.labels, None)


def _blended(array: Array, share: float, order: Array) -> Array:
    if array.dtype.kind != "f" or share == 1:
        return array
    return (share * array + (1 - share) * array[order]).astype(array.dtype)


def trusted(teacher: Teacher, samples: Samples, output: str, kind: Kind) -> tuple[View, ...]:
    """The views in which the teacher answers mostly as for the plain samples, the plain one first."""
    sample = replace(next(samples.judges()), numbers=None)
    if not any(_picture(a) for a in sample.feed.values()):
        return (PLAIN,)
    plain = teacher.answers(sample)[output]
    found = []
    for view in VIEWS:
        seen = teacher.answers(replace(sample, feed=view.of(sample.feed)))[output]
        same, asked = agreement(seen, plain, kind)
        if view == PLAIN or same >= _TRUSTED * max(1, asked):
            found.append(view)
    return tuple(found)
