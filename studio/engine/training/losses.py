"""What a student is asked for: the labels, the teacher's answer, the teacher's inner values.

With temperature T the teacher's distribution is softened and the loss multiplied by T², so that gradients
keep their size: T²·KL(softmax(t/T) ‖ softmax(s/T)). Plain values are compared by squared error over the
teacher's variance, over many samples: one sample alone may have none.

Source: Hinton, Vinyals, Dean 2015, *Distilling the Knowledge in a Neural Network*, §2; Romero et al.
2015, *FitNets* (inner values).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from studio.engine.accuracy.kinds import Kind, class_axis

_CONSTANT = 1e-6  # share of the mean square: with less variance values are taken as constant
_IGNORED = -1  # the label of an unlabelled sample


@dataclass(frozen=True)
class Objective:
    """How a step is judged.

    Attributes:
        outputs: names, output 0 first.
        kind: what output 0 means.
        answers: weight of the teacher's outputs; 0 = no teacher.
        labels: weight of the labels; 0 = none.
        features: names of inner values that teacher and student share.
        feature_weight: of all of them together.
        temperature: of the answers.
        spreads: variance of the teacher's outputs, or of output 0's labels, by output; where none is given, the batch's.
    """

    outputs: tuple[str, ...]
    kind: Kind
    answers: float = 1.0
    labels: float = 0.0
    features: tuple[str, ...] = ()
    feature_weight: float = 0.0
    temperature: float = 1.0
    spreads: Mapping[str, float] = field(default_factory=dict)

    def loss(self, got: Mapping[str, Tensor], teacher: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """The mean loss of a batch."""
        total = torch.zeros((), device=got[self.outputs[0]].device)
        if self.answers and teacher:
            total = total + self.answers * self._answers(got, teacher)
        if self.labels and labels is not None:
            first = self.outputs[0]
            total = total + self.labels * labelled(got[first], labels, self.kind, self.spreads.get(first))
        if self.features and teacher:
            parts = [relative_error(got[n], teacher[n]) for n in self.features]
            total = total + self.feature_weight * torch.stack(parts).mean()
        return total

    def _answers(self, got: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        first = self.outputs[0]
        total = distilled(got[first], teacher[first], self.kind, self.temperature, self.spreads.get(first))
        for name in self.outputs[1:]:
            if got[name].is_floating_point() and got[name].requires_grad:
                total = total + 0.1 * relative_error(got[name], teacher[name], self.spreads.get(name))
        return total


def rows(values: Tensor) -> Tensor:
    """Values as rows over classes (rows, C)."""
    return values.movedim(class_axis(values), -1).flatten(0, -2)


def log_probabilities(values: Tensor, kind: Kind, temperature: float = 1.0) -> Tensor:
    """Rows of log probabilities (rows, C) of output 0."""
    logs = rows(values) if kind == "logits" else rows(values).clamp(min=1e-8).log()
    return (logs / temperature).log_softmax(-1)


def distilled(
    got: Tensor, wanted: Tensor, kind: Kind, temperature: float, spread: float | None = None
) -> Tensor:
    """How far an answer is from the teacher's, mean over rows."""
    if kind == "plain":
        return relative_error(got, wanted, spread)
    if kind == "binary":
        p = got.clamp(1e-7, 1 - 1e-7)
        entropy = F.binary_cross_entropy(wanted.clamp(1e-7, 1 - 1e-7), wanted)
        return F.binary_cross_entropy(p, wanted) - entropy
    student, teacher = (log_probabilities(v, kind, temperature) for v in (got, wanted))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def labelled(got: Tensor, labels: Tensor, kind: Kind, spread: float | None = None) -> Tensor:
    """Cross-entropy with class numbers or probabilities, squared error with numbers."""
    if kind in ("logits", "probabilities"):
        logs = log_probabilities(got, kind)
        return F.nll_loss(logs, labels.reshape(-1).to(torch.int64), ignore_index=_IGNORED)
    if kind == "binary":
        return F.binary_cross_entropy(got.clamp(1e-7, 1 - 1e-7), labels.reshape(got.shape).to(got.dtype))
    return relative_error(got, labels.reshape(got.shape).to(got.dtype), spread)


def relative_error(got: Tensor, wanted: Tensor, spread: float | None = None) -> Tensor:
    """Squared error over the variance of what is wanted: the given one, or that of these values."""
    wanted = wanted.to(got.dtype)
    variance = wanted.var(correction=0) if spread is None else torch.as_tensor(spread, device=wanted.device)
    return F.mse_loss(got, wanted) / variance.clamp(min=1e-8)


def spread_of(batches: Iterable[Tensor]) -> float:
    """The variance over many batches; the mean square of values that are all but constant."""
    count, total, squares = 0, 0.0, 0.0
    for values in batches:
        wide = values.detach().double()
        count += wide.numel()
        total += float(wide.sum())
        squares += float(wide.square().sum())
    mean, power = total / max(1, count), squares / max(1, count)
    variance = power - mean**2
    return variance if variance > _CONSTANT * power else power


def agreement(got: Tensor, wanted: Tensor, kind: Kind) -> tuple[int, int]:
    """(rows with the same best class or side, rows); (0, 0) where that means nothing."""
    if kind == "binary":
        return int(((got > 0.5) == (wanted > 0.5)).sum()), got.numel()
    if kind == "plain":
        return 0, 0
    return int((rows(got).argmax(-1) == rows(wanted).argmax(-1)).sum()), len(rows(got))


def hits(got: Tensor, labels: Tensor, kind: Kind) -> tuple[int, int]:
    """(rows whose best class is the label, labelled rows)."""
    if kind == "binary":
        return int(((got > 0.5) == (labels.reshape(got.shape) > 0.5)).sum()), got.numel()
    if kind == "plain":
        return 0, 0
    flat = labels.reshape(-1)
    known = flat != _IGNORED
    return int((rows(got).argmax(-1) == flat)[known].sum()), int(known.sum())
