"""More samples out of those there are; the teacher answers for the new ones, so nothing need be known about them.

Few samples are blended in pairs, shifted and mirrored, every one of them new; many are taken as they are, since what
a run has time for is learned best from plain ones. Few samples are judged on blends too, of those that do not teach:
plain ones may have served an earlier repair already, and then look better than any other.

Source: Zhang et al. 2018, *mixup*; Beyer et al. 2022, *Knowledge distillation: A good teacher is patient and
consistent* (teacher and student see the same view).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.engine.accuracy.kinds import Kind
from studio.engine.training.losses import agreement
from studio.engine.training.samples import Sample, Samples
from studio.engine.training.teacher import Teacher

Array: TypeAlias = npt.NDArray[Any]

_TRUSTED = 0.8  # share of samples for which the teacher answers alike when they are mirrored
_BLENDED = 0.7  # share of batches that are blended
_SHIFT = 1 / 14  # of the picture's height and width, at most
_JUDGES = 64  # samples whose blends judge
_VIEWS = 2  # of each of them; more where there are fewer


class Variety(Protocol):
    """Makes new batches out of old ones."""

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The batch, or another one."""
        ...

    def judges(self, samples: Samples, seed: int) -> Iterator[Sample]:
        """What is judged by, the same batches every time."""
        ...


@dataclass(frozen=True)
class Same:
    """Every batch as it is."""

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:  # noqa: ARG002 - the protocol's
        """See `Variety`."""
        return sample

    def judges(self, samples: Samples, seed: int) -> Iterator[Sample]:  # noqa: ARG002 - the protocol's
        """See `Variety`."""
        return samples.judges()


@dataclass(frozen=True)
class Blends:
    """Most batches blended in pairs, x ← a·x + (1 − a)·x′ with an even a, all pictures shifted.

    Attributes:
        mirror: half of the batches are mirrored.
        fitted: the student may have been fitted to the samples already, so that only blends can judge it.
    """

    mirror: bool = False
    fitted: bool = True

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """See `Variety`; what is blended has no label."""
        share = float(random.uniform()) if random.random() < _BLENDED else 1.0
        order = random.permutation(len(next(iter(sample.feed.values()))))
        down, right = random.uniform(-_SHIFT, _SHIFT, 2)
        mirrored = self.mirror and random.random() < 0.5
        feed = {n: _seen(_blended(a, share, order), down, right, mirrored) for n, a in sample.feed.items()}
        return Sample(feed, None if share < 1 else sample.labels, None)

    def judges(self, samples: Samples, seed: int) -> Iterator[Sample]:
        """See `Variety`; each with numbers of its own behind those of the samples."""
        if not self.fitted:
            yield from samples.judges()
            return
        number = samples.total
        for turn, sample in enumerate(samples.some(_JUDGES)):
            for again in range(_views(samples)):
                made = self(sample, np.random.default_rng((seed, turn, again)))
                count = len(next(iter(made.feed.values())))
                yield replace(made, numbers=np.arange(number, number + count))
                number += count


def _blended(array: Array, share: float, order: Array) -> Array:
    if array.dtype.kind != "f" or share == 1:
        return array
    return (share * array + (1 - share) * array[order]).astype(array.dtype)


def _seen(array: Array, down: float, right: float, mirrored: bool) -> Array:
    """Pictures (n, c, h, w) shifted by shares of their sizes, and mirrored; anything else as it is."""
    if array.dtype.kind != "f" or array.ndim != 4:
        return array
    shift = tuple(round(share * size) for share, size in zip((down, right), array.shape[2:], strict=True))
    moved = np.roll(array, shift, axis=(2, 3))
    return np.ascontiguousarray(moved[..., ::-1]) if mirrored else moved


def may_mirror(teacher: Teacher, samples: Samples, output: str, kind: Kind) -> bool:
    """Whether the teacher answers for mirrored pictures mostly as for the pictures themselves."""
    sample = replace(next(samples.judges()), numbers=None)
    mirrored = {n: _seen(a, 0, 0, mirrored=True) for n, a in sample.feed.items()}
    seen = teacher.answers(replace(sample, feed=mirrored))[output]
    same, asked = agreement(seen, teacher.answers(sample)[output], kind)
    return bool(asked) and same >= _TRUSTED * asked


def numbered(samples: Samples) -> int:
    """How many numbers samples and the blends that judge may have."""
    return samples.total + _views(samples) * min(_JUDGES, samples.judging)


def _views(samples: Samples) -> int:
    """How many views of each sample judge."""
    return max(_VIEWS, -(-_JUDGES // samples.judging))
