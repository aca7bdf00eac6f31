"""Choosing by measured output error: run the float model once, then every candidate on the same feeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.engine import execute
from studio.engine.graph import Model

Array: TypeAlias = npt.NDArray[Any]
Feed: TypeAlias = Mapping[str, Array]

_HELD_BYTES = 16_000_000
_SATURATING = {"Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Tanh"}


class Judge:
    """Measures how far a candidate's float outputs are from those of the float model.

    Args:
        threads: of the runtime.
        most: feeds that are compared on.
        held: bytes that these and the answers may take.

    Attributes:
        feeds: that candidates are run on.
        full: no more are taken in.
    """

    def __init__(self, threads: int = 0, most: int = 1_000_000, held: int = _HELD_BYTES) -> None:
        self.feeds: list[Feed] = []
        self.full = False
        self._threads, self._most, self._left = threads, most, held
        self._wanted: list[Sequence[Array]] = []

    @classmethod
    def of(cls, reference: Model, feeds: Iterable[Feed], threads: int = 0) -> Judge:
        """A judge who has seen the float model run on these feeds."""
        judge = cls(threads)
        sess = _session(reference, threads)
        for feed in feeds:
            judge.learn(feed, [np.asarray(a) for a in execute.run(sess, feed)])
            if judge.full:
                break
        return judge

    def learn(self, feed: Feed, answers: Sequence[Array]) -> None:
        """Take in what the float model answers to a feed, those of `expose_scores` among it."""
        self._left -= sum(a.nbytes for a in (*feed.values(), *answers))
        self.full = self.full or (bool(self.feeds) and self._left < 0)
        if not self.full:
            self.feeds.append(feed)
            self._wanted.append(answers)
            self.full = len(self.feeds) >= self._most

    def noise(self, candidate: Model) -> float:
        """See `share_of_noise`; of an output behind a Softmax or Sigmoid, what they read counts as an output too."""
        sess = _session(candidate, self._threads)
        return share_of_noise(self._wanted, [execute.run(sess, feed) for feed in self.feeds])


def _session(model: Model, threads: int) -> Any:
    outputs = list(model.graph.outputs)
    try:
        expose_scores(model)
        return execute.session(model, threads=threads)
    finally:
        model.graph.outputs.clear()
        model.graph.outputs.extend(outputs)


def expose_scores(model: Model) -> None:
    """Make outputs of what final Softmax and Sigmoid nodes read: saturated probabilities hide what is wrong.

    Args:
        model: changed in place.
    """
    outputs = model.graph.outputs
    for value in list(outputs):
        producer = value.producer()
        if producer is None or producer.op_type not in _SATURATING:
            continue
        scores = producer.inputs[0]
        if scores is not None and scores not in outputs and scores.producer() is not None:
            if scores.dtype is None:
                scores.type = value.type
            outputs.append(scores)


def share_of_noise(wanted: Sequence[Sequence[Array]], found: Sequence[Sequence[Array]]) -> float:
    """Σ (wanted − found)² / Σ wanted², each output by itself, averaged over the float outputs.

    Args:
        wanted: outputs by run.
        found: likewise.
    """
    noise: dict[int, float] = {}
    power: dict[int, float] = {}
    for one, other in zip(wanted, found, strict=True):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            if a.dtype.kind == "f" and a.shape == b.shape:
                wide = a.astype(np.float64)
                noise[index] = noise.get(index, 0.0) + float(np.square(wide - b).sum())
                power[index] = power.get(index, 0.0) + float(np.square(wide).sum())
    shares = [noise[i] / max(power[i], 1e-30) for i in noise]
    return float(np.mean(shares)) if shares else 0.0
