"""New samples out of old ones: the teacher answers for them, and what it answered once it remembers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from support.nets import Net

from studio.engine import graph
from studio.engine.dataset import open_data
from studio.engine.graph import Model
from studio.engine.layers import list_layers
from studio.engine.training.samples import Sample, Samples
from studio.engine.training.teacher import Teacher
from studio.engine.training.variety import PLAIN, VIEWS, Blends, View, Views, trusted
from studio.records.measure import DataSpec


def brighter_half(folder: Path, *, left_or_right: bool) -> Model:
    """A teacher that says which half of a 14×14 picture is brighter: left or right, else top or bottom."""
    weight = np.ones((2, 14, 14), np.float32)
    if left_or_right:
        weight[0, :, 7:] = weight[1, :, :7] = 0
    else:
        weight[0, 7:] = weight[1, :7] = 0
    net = Net(seed=1)
    net.add("Flatten", ["x"], "f")
    net.add(
        "Gemm",
        ["f", net.constant("w", weight.reshape(2, -1)), net.constant("b", np.zeros(2, np.float32))],
        "y",
        transB=1,
    )
    proto = net.build({"x": (TensorProto.FLOAT, ["N", 1, 14, 14])}, {"y": (TensorProto.FLOAT, ["N", 2])})
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return graph.load(folder / "net.onnx")


def samples_of(model: Model, folder: Path) -> Samples:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 0.1, (80, 1, 14, 14)).astype(np.float32)
    for picture in x:  # one bright spot, well inside a quarter
        row, column = rng.choice([3, 10], 2)
        picture[0, row - 1 : row + 2, column - 1 : column + 2] = 5
    np.savez(folder / "x.npz", x=x)
    listing = list_layers(model)
    data = open_data(DataSpec(path=str(folder / "x.npz")), listing.inputs, dict(listing.input_sizes))
    return Samples(data, 16, seed=0)


@pytest.mark.parametrize("left_or_right", [True, False])
def test_pictures_are_mirrored_where_that_does_not_change_the_teachers_mind(
    tmp_path: Path, left_or_right: bool
) -> None:
    model = brighter_half(tmp_path, left_or_right=left_or_right)
    teacher = Teacher(model, ["y"], 1)
    views = trusted(teacher, samples_of(model, tmp_path), "y", "logits")
    assert views[0] == PLAIN
    assert any(v.mirrored for v in views) is not left_or_right
    assert len(views) >= len(VIEWS) / 2


def test_each_view_of_a_sample_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = brighter_half(tmp_path, left_or_right=True)
    samples, teacher = samples_of(model, tmp_path), Teacher(model, ["y"], 1)
    variety = Views((PLAIN, View(right=0.5)), samples.total)
    teacher.remember(2 * samples.total)
    sample = next(samples.judges())
    asked: list[int] = []
    run = teacher._run
    monkeypatch.setattr(teacher, "_run", lambda s: asked.append(1) or run(s))
    answers = {}
    for seed in range(12):
        seen = variety(sample, np.random.default_rng(seed), passes=100)
        assert seen.numbers is not None
        view = int(seen.numbers[0] >= samples.total)
        answers.setdefault(view, []).append(teacher.answers(seen)["y"].numpy())
    assert len(asked) == 2
    early = [variety(sample, np.random.default_rng(seed), passes=1) for seed in range(12)]
    assert all(np.array_equal(seen.numbers, sample.numbers) for seen in early if seen.numbers is not None)
    for number, view in enumerate(variety.views):
        fresh = Teacher(model, ["y"], 1).answers(replace(sample, feed=view.of(sample.feed), numbers=None))[
            "y"
        ]
        assert all(np.array_equal(a, fresh.numpy()) for a in answers[number])


@given(st.integers(0, 1000), st.booleans())
def test_blending_keeps_types_and_bounds_and_leaves_numbers_that_are_no_pictures(
    seed: int, mirror: bool
) -> None:
    rng = np.random.default_rng(seed)
    feed = {"x": rng.uniform(size=(4, 1, 6, 6)).astype(np.float32), "ids": rng.integers(0, 9, (4, 3))}
    made = Blends(mirror=mirror)(Sample(feed, np.arange(4), np.arange(4)), rng, 0)
    assert made.feed["x"].dtype == np.float32
    assert made.feed["x"].min() >= feed["x"].min() - 1e-6
    assert made.feed["x"].max() <= feed["x"].max() + 1e-6
    assert np.array_equal(made.feed["ids"], feed["ids"])
    assert made.numbers is None
