"""Choosing by measured output error: run the float model once, then every candidate on the same feeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.engine import execute
from studio.engine.graph import Model
from studio.engine.quantization.calibrate import Feed

Array: TypeAlias = npt.NDArray[Any]

_HELD_BYTES = 16_000_000


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
        sess = execute.session(reference, threads=threads)
        held = 0
        for feed in feeds:
            outputs = [np.asarray(a) for a in execute.run(sess, feed)]
            held += sum(a.nbytes for a in (*feed.values(), *outputs))
            if self._feeds and held > _HELD_BYTES:
                break
            self._feeds.append(feed)
            self._wanted.append(outputs)

    def noise(self, candidate: Model) -> float:
        """Σ (reference − candidate)² / Σ reference², each output by itself, averaged over the float outputs."""
        sess = execute.session(candidate, threads=self._threads)
        noise: dict[int, float] = {}
        power: dict[int, float] = {}
        for feed, wanted in zip(self._feeds, self._wanted, strict=True):
            for index, (a, b) in enumerate(zip(wanted, execute.run(sess, feed), strict=True)):
                if a.dtype.kind == "f" and a.shape == b.shape:
                    wide = a.astype(np.float64)
                    noise[index] = noise.get(index, 0.0) + float(np.square(wide - b).sum())
                    power[index] = power.get(index, 0.0) + float(np.square(wide).sum())
        shares = [noise[i] / max(power[i], 1e-30) for i in noise]
        return float(np.mean(shares)) if shares else 0.0
