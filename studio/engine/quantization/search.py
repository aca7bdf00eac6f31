"""Choosing by measured output error: run the float model once, then every candidate on the same feeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.engine import execute
from studio.engine.graph import Model
from studio.engine.quantization.calibrate import Feed

Array: TypeAlias = npt.NDArray[Any]

_HELD_BYTES = 16_000_000
_SATURATING = {"Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Tanh"}


class Judge:
    """Measures how far a candidate's float outputs are from the reference's.

    Args:
        reference: the float model.
        feeds: what both run on; as many are held as fit into a fixed number of bytes.
        threads: of the runtime.
    """

    def __init__(self, reference: Model, feeds: Iterable[Feed], threads: int = 0) -> None:
        self._threads = threads
        self._feeds: list[Feed] = []
        self._wanted: list[list[Array]] = []
        sess = _session(reference, threads)
        held = 0
        for feed in feeds:
            outputs = [np.asarray(a) for a in execute.run(sess, feed)]
            held += sum(a.nbytes for a in (*feed.values(), *outputs))
            if self._feeds and held > _HELD_BYTES:
                break
            self._feeds.append(feed)
            self._wanted.append(outputs)

    def noise(self, candidate: Model) -> float:
        """See `share_of_noise`; of an output behind a Softmax or Sigmoid, what they read counts as an output too."""
        sess = _session(candidate, self._threads)
        return share_of_noise(self._wanted, [execute.run(sess, feed) for feed in self._feeds])


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
