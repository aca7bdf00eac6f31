"""From a model, data and wishes to a trained model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studio.base.errors import StudioError
from studio.engine.accuracy.kinds import Kind, final_operator, kind_of
from studio.engine.dataset import Dataset
from studio.engine.graph import Model, copy, nodes
from studio.engine.trainable import GraphModule, write_back
from studio.engine.training.loop import Course, Hooks, Outcome, Trainer
from studio.engine.training.losses import Objective, agreement, hits, relative_error, spread_of
from studio.engine.training.norms import Norms
from studio.engine.training.samples import Sample, Samples
from studio.engine.training.teacher import Teacher
from studio.engine.training.variety import Blends, Same, Variety, may_mirror, numbered

_SPARSE = 0.1  # share of zeros from which on they are a pattern that must stay
_ACCUMULATED = 16  # samples a step, at most, of a model that takes one at a time
_SAME = 1e-3  # largest difference, as a share of the spread, between samples together and one by one
_SPREAD_OVER = 64  # samples
_OBSERVED = 512  # samples that give the normalisations their first statistics
_FEATURES = 6
_FEW_SAMPLES = 4000  # with fewer, new ones are blended from old ones
_BROKEN = 0.1  # share of wrong answers from which on normalisations help where samples are few
_DENTED = 0.02  # and where they are many
_HURT = 0.03  # share of wrong answers from which on a model is trained at full speed
_NORMED = 3.0  # times the speed: normalisations bear it
_GENTLEST = 0.1  # of the full speed, for a model that is nearly right


@dataclass(frozen=True)
class Lesson:
    """What a student is to learn.

    Attributes:
        data: samples, labelled or not.
        teacher: whose answers to follow; None = labels only.
        labels: weight of the labels beside the teacher's answers (1 without a teacher).
        features: weight of the teacher's inner values.
        temperature: of the answers.
        batch: samples per step.
        rate: of learning; 0 = what suits the architecture.
        norms: normalise convolutions while training, where the model is badly damaged.
        blend: blend samples; None = where there are few.
        fitted: the student may have been fitted to these samples before.
        trained: asked for every weight by name; False keeps it.
        course: how long.
        seed: of order, split and blending.
        threads: 0 = the runtime's choice.
    """

    data: Dataset
    teacher: Model | None = None
    labels: float = 0.0
    features: float = 0.0
    temperature: float = 1.0
    batch: int = 64
    rate: float = 0.0
    norms: bool = True
    blend: bool | None = None
    fitted: bool = True
    trained: Callable[[str], bool] = lambda _name: True
    course: Course = field(default_factory=Course)
    seed: int = 0
    threads: int = 0


def train(student: Model, lesson: Lesson, hooks: Hooks) -> tuple[Model, Outcome]:
    """A trained copy of the student.

    Raises:
        StudioError: the model cannot be differentiated, or there is nothing to train with.
        Cancelled: at any tick.
    """
    with threads_of_torch(lesson.threads):
        features = _common(student, lesson.teacher) if lesson.features and lesson.teacher is not None else ()
        module = GraphModule(student, trainable=lesson.trained, watch=features)
        if not module.weights:
            raise StudioError(
                "There is nothing to train", "none of the chosen layers has weights that can be trained"
            )
        outcome = teach(module, lesson, hooks, features)
        if outcome.after >= outcome.before:  # nothing better was found
            return copy(student), outcome
        return write_back(module), outcome


@contextlib.contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """Let torch use so many threads for a while; 0 = as many as it likes."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def teach(module: GraphModule, lesson: Lesson, hooks: Hooks, features: tuple[str, ...] = ()) -> Outcome:
    """Train a module in place, on a graphics card where there is one; see `train`."""
    module.place("cuda" if torch.cuda.is_available() else "cpu")
    keep_zeros(module)
    samples = Samples(lesson.data, lesson.batch, lesson.seed)
    hooks.progress.tick(0.0, "reading samples")
    teacher = None
    if lesson.teacher is not None:
        names = [*(v.name or "" for v in lesson.teacher.graph.outputs), *features]
        teacher = Teacher(lesson.teacher, names, lesson.threads, module.device)
    if (
        lesson.data.source.batch == 1
        and samples.stacked
        and not _takes_several(module, next(samples.judges()))
    ):
        samples.one_by_one()
    course = lesson.course
    if samples.single:
        course = replace(course, accumulate=course.accumulate * min(lesson.batch, _ACCUMULATED))
    first = next(samples.judges())
    features = _alike(module, teacher, first, features)
    objective = _objective(module, teacher, lesson, first, features)
    objective = replace(objective, spreads=_spreads(objective, teacher, samples))
    variety: Variety = Same()
    if teacher is not None:
        variety = _variety(teacher, samples, objective, lesson)
    damage = _damage(module, teacher, samples.judges(), objective)
    broken = _BROKEN if samples.count < _FEW_SAMPLES else _DENTED
    norms = _normed(module, samples) if lesson.norms and damage > broken else None
    usual = _usual_rate(module.model) * (1.0 if norms is None else _NORMED)
    rate = lesson.rate or usual * min(1.0, max(_GENTLEST, damage / _HURT))
    course = replace(course, rate=rate)
    trainer = Trainer(module, norms, teacher, samples, variety, objective, course, hooks, lesson.seed)
    outcome = trainer.run()
    if norms is not None:
        norms.fold()
    module.place("cpu")
    return replace(outcome, frozen=tuple(f.reason for f in module.frozen if "numbers" not in f.reason))


@torch.no_grad()
def _takes_several(module: GraphModule, sample: Sample) -> bool:
    """Whether a model that was exported for one sample answers several at once as it answers each."""
    count = min(2, *(len(a) for a in sample.feed.values()))
    rows = [{n: a[i : i + 1] for n, a in sample.feed.items()} for i in range(count)]
    apart = [module(row) for row in rows]
    try:
        together = module({n: a[:count] for n, a in sample.feed.items()})
    except (
        RuntimeError,
        ValueError,
        IndexError,
        StudioError,
    ):  # a shape or a state in the graph is of one sample
        return False
    for name, got in together.items():
        wanted = torch.cat([answer[name] for answer in apart])
        if got.shape != wanted.shape:
            return False
        if got.is_floating_point() and (got - wanted).abs().max() > _SAME * wanted.std():
            return False
    return True


def keep_zeros(module: GraphModule) -> None:
    """Weights with a pattern of zeros keep it."""
    for weight in module.weights.values():
        mask = weight.parameter.detach() != 0
        if weight.parameter.ndim > 1 and float((~mask).float().mean()) >= _SPARSE:
            weight.transform = _Mask(mask)


@dataclass(frozen=True)
class _Mask:
    mask: Tensor

    def __call__(self, value: Tensor) -> Tensor:
        return value * self.mask.to(value.device)  # a weight may have moved since


def _objective(
    module: GraphModule, teacher: Teacher | None, lesson: Lesson, first: Sample, features: tuple[str, ...]
) -> Objective:
    source = lesson.teacher or module.model
    with torch.no_grad():
        answers = teacher.answers(first) if teacher is not None else module(first.feed)
    name = module.outputs[0]
    if name not in answers:
        raise StudioError("The teacher answers something else", f"it has no output '{name}'")
    kind: Kind = kind_of(answers[name].detach().cpu().numpy(), first.labels, final_operator(source))
    use_labels = lesson.labels if teacher is not None else 1.0
    if use_labels and first.labels is None:
        raise StudioError(
            "There are no labels to train with",
            "the data set has none",
            "Distil from a teacher: that needs none.",
        )
    return Objective(
        outputs=module.outputs,
        kind=kind,
        answers=(1.0 - use_labels) if teacher is not None else 0.0,
        labels=use_labels,
        features=features,
        feature_weight=lesson.features,
        temperature=lesson.temperature,
    )


def _spreads(objective: Objective, teacher: Teacher | None, samples: Samples) -> dict[str, float]:
    """The variance of what plain outputs are compared with, over the samples that judge."""
    judges = list(samples.some(_SPREAD_OVER))
    if teacher is None:
        labels = [torch.from_numpy(s.labels) for s in judges if s.labels is not None]
        return {objective.outputs[0]: spread_of(labels)} if objective.kind == "plain" else {}
    answers = [teacher.answers(sample) for sample in judges]
    floats = [n for n, v in answers[0].items() if v.is_floating_point()]
    return {name: spread_of(a[name] for a in answers) for name in floats}


def _variety(teacher: Teacher, samples: Samples, objective: Objective, lesson: Lesson) -> Variety:
    """Blends of few samples; the teacher remembers what comes again."""
    teacher.remember(numbered(samples))
    few = samples.count < _FEW_SAMPLES if lesson.blend is None else lesson.blend
    if not samples.stacked or not few:
        return Same()
    mirror = may_mirror(teacher, samples, objective.outputs[0], objective.kind)
    return Blends(mirror=mirror, fitted=lesson.fitted)


@torch.no_grad()
def _damage(
    module: GraphModule, teacher: Teacher | None, judges: Iterator[Sample], objective: Objective
) -> float:
    """How wrong the model is to begin with, 0..1: wrong answers, or relative error where there are none."""
    name = objective.outputs[0]
    right = asked = batches = 0
    error = 0.0
    for sample in judges:
        got = module(sample.feed)[name]
        if teacher is not None:
            wanted = teacher.answers(sample)[name]
            more = agreement(got, wanted, objective.kind)
            error += float(relative_error(got, wanted, objective.spreads.get(name)))
        else:
            more = (
                hits(got, torch.from_numpy(sample.labels).to(got.device), objective.kind)
                if sample.labels is not None
                else (0, 0)
            )
        right, asked, batches = right + more[0], asked + more[1], batches + 1
        if batches * len(got) >= _OBSERVED:
            break
    if asked:
        return 1 - right / asked
    return min(1.0, (error / batches) ** 0.5) if teacher is not None else 1.0


def _normed(module: GraphModule, samples: Samples) -> Norms | None:
    norms = Norms(module).to(module.device)
    norms.observe(on=True)
    norms.train(False)
    seen = 0
    with torch.no_grad():
        for sample in samples.endless():
            module(sample.feed)
            seen += len(next(iter(sample.feed.values())))
            if seen >= min(_OBSERVED, samples.count):
                break
    norms.observe(on=False)
    norms.start()
    return norms if norms.any else None


def _usual_rate(model: Model) -> float:
    """Transformers want smaller steps than convolutions."""
    ops = {n.op_type for n in nodes(model)}
    return 5e-4 if "Softmax" in ops and "Conv" not in ops else 1e-3


def _common(student: Model, teacher: Model) -> tuple[str, ...]:
    """Names of residual sums that both have, a few, evenly spaced."""
    theirs = {v.name for n in teacher.graph for v in n.outputs}
    ours = {v.name for v in student.graph.outputs}
    shared = [
        n.outputs[0].name or ""
        for n in student.graph
        if n.op_type == "Add" and n.outputs[0].name in theirs - ours
    ]
    if len(shared) <= _FEATURES:
        return tuple(shared)
    return tuple(shared[round(i)] for i in np.linspace(0, len(shared) - 1, _FEATURES))


def _alike(
    module: GraphModule, teacher: Teacher | None, first: Sample, features: tuple[str, ...]
) -> tuple[str, ...]:
    """Of the inner values, those that have the same shape in both and carry a gradient."""
    if not features or teacher is None:
        return ()
    wanted: dict[str, Any] = teacher.answers(first)
    got = module(first.feed)
    return tuple(n for n in features if got[n].shape == wanted[n].shape and got[n].requires_grad)
