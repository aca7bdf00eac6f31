"""How far outputs are from the reference's, batch by batch; nothing is held but sums.

SQNR  = 10·log10(Σ r² / Σ (r − y)²)                over all float outputs, in dB
KL    = mean over rows of Σ p·(log p − log q)      p from r, q from y, in nats
cosine = mean over samples of r·y / (|r|·|y|)      of output 0
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from studio.base.errors import StudioError
from studio.base.units import shape as shape_text
from studio.engine.accuracy.kinds import Array, Kind, rows_of
from studio.records.measure import OutputError

# Stands for equal outputs; a finite figure survives every file format.
EQUAL_DB = 200.0
_SMALLEST_PROBABILITY = 1e-12


class Fidelity:
    """Sums over batches of reference outputs r and outputs y.

    Args:
        kind: what output 0 is; decides whether there are KL and agreement.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._signal = self._noise = self._largest = 0.0
        self._divergence = self._cosines = 0.0
        self._rows = self._same = self._vectors = self._samples = 0

    def add(self, reference: Sequence[Array], outputs: Sequence[Array], samples: int) -> None:
        """Take in one batch.

        Raises:
            StudioError: the outputs have another rank than the reference's.
        """
        pairs = [_matched(r, y) for r, y in zip(reference, outputs, strict=True)]
        floats = [pair for pair in pairs if pair[0].dtype.kind == "f"]
        for r, y in floats or pairs:
            self._add_noise(*_as_numbers(r, y))
        self._samples += samples
        r, y = pairs[0]
        if r.dtype.kind != "f":
            self._rows += r.size
            self._same += int((r == y).sum())
        elif r.size:
            self._add_cosines(np.asarray(r, np.float64), np.asarray(y, np.float64), samples)
            if self.kind != "plain":
                self._add_distributions(np.asarray(r, np.float64), np.asarray(y, np.float64))

    def _add_noise(self, r: Array, y: Array) -> None:
        with np.errstate(invalid="ignore"):
            # What is equal differs by nothing, infinities and NaN included.
            difference = np.where((r == y) | (np.isnan(r) & np.isnan(y)), 0.0, r - y)
        self._signal += float(np.square(r[np.isfinite(r)]).sum())
        self._noise += float(np.square(difference).sum())
        if difference.size:
            self._largest = max(self._largest, float(np.abs(np.nan_to_num(difference, nan=np.inf)).max()))

    def _add_cosines(self, r: Array, y: Array, samples: int) -> None:
        count = samples if r.ndim and r.shape[0] == samples else 1
        a, b = r.reshape(count, -1), y.reshape(count, -1)
        equal = ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        self._cosines += float(np.where(np.isfinite(cosines), cosines, equal).sum())
        self._vectors += count

    def _add_distributions(self, r: Array, y: Array) -> None:
        p, q = log_probabilities(r, self.kind), log_probabilities(y, self.kind)
        self._rows += len(p)
        self._same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
        self._divergence += float((np.exp(p) * (p - q)).sum())

    def result(self) -> OutputError:
        """The figures over everything taken in; a sum that is not finite counts as the worst there is."""
        rows = self._rows or None
        return OutputError(
            sqnr_db=_decibels(self._signal, self._noise),
            kl=_finite(self._divergence / rows) if rows and self.kind != "plain" else None,
            cosine=self._cosines / self._vectors if self._vectors else None,
            agreement=self._same / rows if rows else None,
            max_abs=_finite(self._largest),
            samples=self._samples,
        )


def _matched(r: Array, y: Array) -> tuple[Array, Array]:
    """The two arrays in one shape. Where a size depends on the data (detections), the shorter is filled with zeros."""
    if r.shape == y.shape:
        return r, y
    if r.ndim != y.ndim:
        raise StudioError(
            "The two models cannot be compared",
            f"an output has shape {shape_text(y.shape)}, the reference's {shape_text(r.shape)}",
        )
    sizes = [max(pair) for pair in zip(r.shape, y.shape, strict=True)]
    filled = []
    for array in (r, y):
        whole = np.zeros(sizes, array.dtype)
        whole[tuple(slice(size) for size in array.shape)] = array
        filled.append(whole)
    return filled[0], filled[1]


def _as_numbers(r: Array, y: Array) -> tuple[Array, Array]:
    """Both as doubles; of texts, ones and whether they are equal."""
    if r.dtype.kind in "fiub":
        return np.asarray(r, np.float64), np.asarray(y, np.float64)
    return np.ones(r.shape), np.asarray(r == y, np.float64)


def log_probabilities(values: Array, kind: Kind) -> Array:
    """Rows of log probabilities (rows, C): softmax of logits; a binary probability has two classes."""
    if kind == "logits":
        return np.asarray(special.log_softmax(np.nan_to_num(rows_of(values)), axis=1))
    if kind == "binary":
        positive = values.reshape(-1)
        rows = np.stack([1 - positive, positive], axis=1)
    else:
        rows = rows_of(values)
    logs: Array = np.log(np.clip(np.nan_to_num(rows), _SMALLEST_PROBABILITY, None))
    return logs


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return EQUAL_DB
    if not math.isfinite(noise) or signal == 0:
        return -EQUAL_DB
    return float(np.clip(10 * math.log10(signal / noise), -EQUAL_DB, EQUAL_DB))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else float(np.finfo(np.float32).max)
