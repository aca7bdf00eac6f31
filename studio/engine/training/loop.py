"""The training loop: steps, judged now and then by samples that do not teach; the best so far is kept.

AdamW with a short warm-up and a cosine to zero, gradients clipped by norm, weights averaged over time (the
average is what is judged and kept). A run that only does harm goes back to its best weights and on at a quarter of
the rate. It is as long as its steps or its minutes, whichever is given. On a graphics card the network computes in
bfloat16 (weights, loss and optimiser stay in float32).

Source: Loshchilov & Hutter 2019, *Decoupled Weight Decay Regularization*; 2017, *SGDR*; Polyak &
Juditsky 1992 (averaging).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from studio.base.progress import Progress
from studio.engine.trainable import GraphModule
from studio.engine.training import checkpoint
from studio.engine.training.losses import Objective, agreement, hits
from studio.engine.training.norms import Norms
from studio.engine.training.samples import Sample, Samples
from studio.engine.training.teacher import Teacher
from studio.engine.training.variety import Variety

_WARM_UP = 0.05
_CLIP = 1.0
_AVERAGE = 0.998
_HARM = 1.5  # times the best loss: so much worse is no way to something better
_GENTLER = 0.25
_JUDGEMENTS = 20  # in a run
_JUDGING_SHARE = 0.2  # of the time may go into judging
_LONGEST_STEP = 30.0  # seconds: what is longer was a pause


@dataclass(frozen=True)
class Course:
    """How long and how fast.

    Attributes:
        steps: of the optimiser; 0 = as many as fit into `minutes`.
        rate: of learning, at its highest.
        accumulate: batches per step.
        target: stop when this share of right answers (or agreement with the teacher) is reached; 0 = never.
    """

    steps: int = 0
    minutes: float = 3.0
    rate: float = 1e-3
    decay: float = 0.0
    accumulate: int = 1
    target: float = 0.0


@dataclass
class Hooks:
    """How the outside hears and is heard.

    Attributes:
        told: called with (step, steps expected, loss, share right or None, rate).
        enough: asked between steps; True ends the run with the best so far.
        checkpoint: file for resuming; None = no checkpoints. It stays when the run is over, so that what comes
            after it may be killed too; whoever named it removes it.
    """

    progress: Progress = field(default_factory=Progress)
    told: Callable[[int, int, float, float | None, float], None] = lambda *_: None
    enough: Callable[[], bool] = lambda: False
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        before / after: judged loss of the first and the kept weights.
        frozen: why float constants were not trained, a reason for each.
        resumed: step from which a run that was cut off went on; 0 = it was not.
        right_before / right: share of right answers (with labels) or agreement with the teacher; None where senseless.
    """

    steps: int
    seconds: float
    before: float
    after: float
    right_before: float | None
    right: float | None
    ended: str = ""
    resumed: int = 0
    frozen: tuple[str, ...] = ()


class Trainer:
    """One run over one module; leaves the best weights in it.

    Args:
        module: its weights are trained in place.
        norms: normalisations while training; None = none.
        teacher: None = labels only.
        samples: see there.
        variety: makes new batches out of old ones.
        objective: what is asked of the student.
        course: how long and how fast.
        hooks: how the outside hears of it.
        seed: of variety.
    """

    def __init__(
        self,
        module: GraphModule,
        norms: Norms | None,
        teacher: Teacher | None,
        samples: Samples,
        variety: Variety,
        objective: Objective,
        course: Course,
        hooks: Hooks,
        seed: int = 0,
    ) -> None:
        self._module, self._norms, self._teacher = module, norms, teacher
        self._samples, self._objective, self._course, self._hooks = samples, objective, course, hooks
        self._variety, self._seed = variety, seed
        self._judges = list(variety.judges(samples, seed))
        self._parameters = self._trained()
        wide = [p for p in self._parameters.values() if p.ndim > 1]
        flat = [p for p in self._parameters.values() if p.ndim <= 1]
        groups = [{"params": wide, "weight_decay": course.decay}, {"params": flat, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=course.rate)
        self._average = {n: p.detach().clone() for n, p in self._state().items()}
        self._best: dict[str, Tensor] = {}
        self._step, self._elapsed, self._judging = 0, 0.0, 0.0
        self._gentler = 1.0
        self._loss = math.nan
        self._ended = ""

    def _trained(self) -> dict[str, nn.Parameter]:
        found = {n: p for n, p in self._module.named_parameters() if p.requires_grad}
        if self._norms is not None:
            found |= {f"norms.{n}": p for n, p in self._norms.named_parameters()}
        return found

    def _state(self) -> dict[str, Tensor]:
        """Everything that training changes: parameters and running statistics."""
        state: dict[str, Tensor] = dict(self._parameters)
        if self._norms is not None:
            state |= {f"norms.{n}": b for n, b in self._norms.named_buffers()}
            state |= {f"statistics.{s}": self._module.value(s) for s in self._norms.statistics()}
        return state

    # -------------------------------------------------------------- the run

    def run(self) -> Outcome:
        """Train; the module holds the best weights afterwards.

        Raises:
            Cancelled: at any tick.
        """
        first, right_before = self._judge(self._state())
        best, right, kept_right = first, right_before, right_before
        self._best = {n: t.detach().clone() for n, t in self._state().items()}
        resumed = self._resume()
        if resumed is not None:
            best, kept_right = resumed["best"], resumed["right"]
        batches = self._samples.endless(self._step * self._course.accumulate)
        judged, pace = self._judgements(), checkpoint.Pace()
        while self._share() < 1 and not self._ended:
            started = time.monotonic()
            self._one_step(batches)
            self._elapsed += min(time.monotonic() - started, _LONGEST_STEP)
            self._tell(right)
            if self._hooks.enough():
                self._ended = "ended early, as asked"
            elif self._judgements() > judged and self._may_judge():
                judged = self._judgements()
                loss, right = self._judge(self._average)
                if loss < best:
                    best, kept_right = loss, right
                    self._best = {n: t.clone() for n, t in self._average.items()}
                elif not loss <= _HARM * best:  # nor is it a number, perhaps
                    self._retreat()
                if self._course.target and right is not None and right >= self._course.target:
                    self._ended = "the target was reached"
            if pace.due:
                pace.wrote(self._save(best, kept_right))
        loss, right = self._judge(self._average)
        if loss < best:
            best, kept_right = loss, right
            self._best = {n: t.clone() for n, t in self._average.items()}
        if checkpoint.worth_keeping(self._elapsed):
            self._save(best, kept_right)
        self._put(self._best)
        return Outcome(
            self._step, self._elapsed, first, best, right_before, kept_right, self._ended,
            0 if resumed is None else int(resumed["step"]),
        )  # fmt: skip

    def _share(self) -> float:
        """How much of the run is done, 0..1."""
        if self._course.steps:
            return self._step / self._course.steps
        return self._elapsed / max(self._course.minutes * 60, 1e-9)

    def _judgements(self) -> int:
        """How many there should have been by now."""
        return int(self._share() * _JUDGEMENTS)

    def _may_judge(self) -> bool:
        """Clocks decide nothing where the number of steps is given, so that a run can be repeated."""
        return bool(self._course.steps) or self._judging <= _JUDGING_SHARE * self._elapsed

    def _expected(self) -> int:
        if self._course.steps:
            return self._course.steps
        return max(self._step, round(self._step / max(self._share(), 1e-9)))

    def _rate(self) -> float:
        share = min(1.0, self._share())
        warm = min(1.0, (share + 1e-3) / _WARM_UP)
        return self._course.rate * self._gentler * warm * 0.5 * (1 + math.cos(math.pi * share))

    def _retreat(self) -> None:
        """Back to the best weights, and on more gently."""
        self._put(self._best)
        self._average = {n: t.clone() for n, t in self._best.items()}
        self._optimizer.state.clear()
        self._gentler *= _GENTLER

    def _one_step(self, batches: Iterator[Sample]) -> None:
        rate = self._rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._training(on=True)
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for turn in range(self._course.accumulate):
            loss = self._loss_of(self._varied(next(batches), turn)) / self._course.accumulate
            if loss.requires_grad:
                loss.backward()
            total += float(loss.detach())
        if math.isfinite(total):
            nn.utils.clip_grad_norm_(self._parameters.values(), _CLIP)
            self._optimizer.step()
            self._follow()
        self._step += 1
        self._loss = total if math.isnan(self._loss) else 0.9 * self._loss + 0.1 * total

    def _loss_of(self, sample: Sample) -> Tensor:
        device = self._module.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found = self._module(sample.feed)
        got = {n: v.float() if v.is_floating_point() else v for n, v in found.items()}
        answers = self._teacher.answers(sample) if self._teacher is not None else {}
        return self._objective.loss(got, answers, self._labels(sample))

    def _labels(self, sample: Sample) -> Tensor | None:
        return None if sample.labels is None else torch.from_numpy(sample.labels).to(self._module.device)

    def _varied(self, sample: Sample, turn: int) -> Sample:
        random = np.random.default_rng((self._seed, self._step, turn))  # so that a resumed run draws the same
        return self._variety(sample, random)

    @torch.no_grad()
    def _follow(self) -> None:
        """Let the average follow the weights, quickly at first."""
        keep = min(_AVERAGE, (1 + self._step) / (10 + self._step))
        for name, now in self._state().items():
            self._average[name].lerp_(now.detach().to(self._average[name].dtype), 1 - keep)

    def _training(self, *, on: bool) -> None:
        if self._norms is not None:
            self._norms.train(on)

    # -------------------------------------------------------------- judging

    @torch.no_grad()
    def _judge(self, state: dict[str, Tensor]) -> tuple[float, float | None]:
        """Loss and share of right answers of some weights on the samples that do not teach."""
        started = time.monotonic()
        now = {n: t.detach().clone() for n, t in self._state().items()}
        self._put(state)
        self._training(on=False)
        losses, right, asked, batches = 0.0, 0, 0, 0
        for sample in self._judges:
            self._hooks.progress.tick(min(1.0, self._share()), "judging")
            got = self._module(sample.feed)
            answers = self._teacher.answers(sample) if self._teacher is not None else {}
            labels = self._labels(sample)
            losses += float(self._objective.loss(got, answers, labels))
            batches += 1
            first, kind = self._objective.outputs[0], self._objective.kind
            if self._objective.labels and labels is not None:
                more = hits(got[first], labels, kind)
            else:
                more = agreement(got[first], answers[first], kind) if answers else (0, 0)
            right, asked = right + more[0], asked + more[1]
        self._put(now)
        self._judging += time.monotonic() - started
        return losses / max(1, batches), right / asked if asked else None

    @torch.no_grad()
    def _put(self, state: dict[str, Tensor]) -> None:
        for name, value in self._state().items():
            value.copy_(state[name])

    def _tell(self, right: float | None) -> None:
        total = self._expected()
        words = f"step {self._step} of {total}, loss {self._loss:.4g}"
        self._hooks.progress.tick(min(1.0, self._share()), words)
        self._hooks.told(self._step, total, self._loss, right, self._rate())

    # -------------------------------------------------------------- checkpoints

    def _save(self, best: float, right: float | None) -> float:
        """Write a checkpoint; how many seconds that took."""
        if self._hooks.checkpoint is None:
            return 0.0
        started = time.monotonic()
        tensors: dict[str, Tensor] = {}
        for part, state in (("now", self._state()), ("average", self._average), ("best", self._best)):
            tensors |= {f"{part}/{n}": t for n, t in state.items()}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"adam/{key}/{name}"] = torch.as_tensor(value)
        numbers: dict[str, Any] = {
            "step": self._step,
            "elapsed": self._elapsed,
            "loss": self._loss,
            "best": best,
            "right": right,
            "ended": self._ended,
            "gentler": self._gentler,
        }
        checkpoint.save(self._hooks.checkpoint, tensors, numbers)
        return time.monotonic() - started

    def _resume(self) -> dict[str, Any] | None:
        found = checkpoint.load(self._hooks.checkpoint) if self._hooks.checkpoint is not None else None
        if found is None:
            return None
        tensors, numbers = found
        if {n.removeprefix("now/") for n in tensors if n.startswith("now/")} != set(self._state()):
            return None
        self._put({n: tensors[f"now/{n}"] for n in self._state()})
        device = self._module.device
        self._average = {n: tensors[f"average/{n}"].to(device) for n in self._average}
        self._best = {n: tensors[f"best/{n}"].to(device) for n in self._best}
        for name, parameter in self._parameters.items():
            keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"adam/{k}/{name}" in tensors]
            if keys:  # the counter of steps stays on the CPU, as torch wants it
                state = {k: tensors[f"adam/{k}/{name}"].to("cpu" if k == "step" else device) for k in keys}
                self._optimizer.state[parameter] = state
        self._step, self._elapsed, self._loss = numbers["step"], numbers["elapsed"], numbers["loss"]
        self._ended, self._gentler = numbers["ended"], numbers.get("gentler", 1.0)
        return numbers
