"""How often a model is right, where labels exist; −1 is no label.

| output 0 | labels | metric | beside it |
|---|---|---|---|
| rows over classes (N, C) | (N,) | top-1 | top-5 above five classes |
| rows over tokens (N, T, V) | (N, T) | token top-1 | bits per token |
| classes per pixel (N, C, H, W) | (N, H, W) | pixel top-1 | |
| class numbers (N,), any integers | as many | accuracy | |
| one value a row (N,), (N, 1), a frame each | as many of 0 and 1 | AUC | accuracy at 0.5 (logits: at 0) |
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from studio.engine.accuracy.fidelity import log_probabilities
from studio.engine.accuracy.kinds import Array, class_axis, kind_of, labels_are_classes, rows_of
from studio.records.measure import Accuracy

_TOP = 5
# Scores kept for the AUC; above, its accuracy alone is told.
_MOST_SCORES = 5_000_000
_UNLABELLED = -1


class Score:
    """Counts right answers batch by batch.

    Args:
        final: the operator that makes output 0 (`kinds.final_operator`).
    """

    def __init__(self, final: str = "") -> None:
        self._final = final
        self._metric = ""
        self._rows = self._right = self._right_top = 0
        self._unfit = False
        self._bits = 0.0
        self._threshold = 0.5
        self._scores: list[Array] = []
        self._truths: list[Array] = []

    def add(self, output: Array, labels: Array) -> None:
        """Take in output 0 and the labels of one batch; a score of some batches only would be none of the data."""
        self._unfit = self._unfit or not self._fits(output, labels)

    def _fits(self, output: Array, labels: Array) -> bool:
        """Take a batch in where its labels fit a metric."""
        if labels.dtype.kind not in "iub":
            return False
        if output.dtype.kind in "iu" and output.size == labels.size:
            self._add_answers(output.reshape(-1), labels.reshape(-1))
            return True
        if output.dtype.kind != "f":
            return False
        if labels_are_classes(output, labels.astype(np.int64)):
            self._add_classes(np.asarray(output, np.float64), labels.reshape(-1).astype(np.int64))
            return True
        truths = labels.reshape(-1)[: output.size] if labels.size >= output.size else labels.reshape(-1)
        if truths.size == output.size and int(labels.max()) <= 1:
            self._add_binary(output.reshape(-1), truths)
            return True
        return False

    def _add_answers(self, answers: Array, labels: Array) -> None:
        self._metric = "accuracy"
        known = labels != _UNLABELLED
        self._rows += int(known.sum())
        self._right += int((answers == labels)[known].sum())

    def _add_classes(self, output: Array, labels: Array) -> None:
        axis = class_axis(output)
        self._metric = "pixel top-1" if output.ndim >= 4 else "token top-1" if output.ndim == 3 else "top-1"
        known = labels != _UNLABELLED
        rows, wanted = rows_of(output)[known], labels[known]
        if not len(rows):
            return
        self._rows += len(rows)
        self._right += int((rows.argmax(axis=1) == wanted).sum())
        if output.shape[axis] > _TOP:
            best = np.argpartition(-rows, _TOP - 1, axis=1)[:, :_TOP]
            self._right_top += int((best == wanted[:, None]).any(axis=1).sum())
        if output.ndim == 3:
            kind = kind_of(output, labels, self._final)
            log_p = log_probabilities(output, kind)[known]
            self._bits -= float(np.take_along_axis(log_p, wanted[:, None], axis=1).sum() / np.log(2))

    def _add_binary(self, scores: Array, truths: Array) -> None:
        self._metric = "AUC"
        if (scores < 0).any() or (scores > 1).any():
            self._threshold = 0.0  # logits
        known = truths != _UNLABELLED
        self._rows += int(known.sum())
        self._scores.append(scores[known])
        self._truths.append(truths[known])

    def result(self) -> Accuracy | None:
        """The metric over everything taken in; None where there is no label, or one that fits no answer."""
        if self._unfit or not self._rows:
            return None
        if self._metric == "AUC":
            return self._binary()
        beside: list[tuple[str, float]] = []
        if self._metric == "top-1" and self._right_top:
            beside.append(("top-5", self._right_top / self._rows))
        if self._metric == "token top-1":
            beside.append(("bits per token", self._bits / self._rows))
        return Accuracy(
            metric=self._metric, value=self._right / self._rows, samples=self._rows, also=tuple(beside)
        )

    def _binary(self) -> Accuracy:
        scores, positive = np.concatenate(self._scores), np.concatenate(self._truths) == 1
        accuracy = float(((scores > self._threshold) == positive).mean())
        if positive.all() or not positive.any() or len(scores) > _MOST_SCORES:
            return Accuracy(metric="accuracy", value=accuracy, samples=len(scores))
        return Accuracy(
            metric="AUC",
            value=area_under_curve(scores, positive),
            samples=len(scores),
            also=(("accuracy", accuracy),),
        )


def area_under_curve(scores: Array, positive: Array) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half.

    Source: Mann & Whitney, 1947; Hanley & McNeil, Radiology 143, 1982.
    """
    ranks = stats.rankdata(np.nan_to_num(scores))
    above = float(positive.sum())
    below = len(scores) - above
    return float((ranks[positive].sum() - above * (above + 1) / 2) / (above * below))
