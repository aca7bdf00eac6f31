"""New samples out of old ones: the teacher answers for them, and what it answered once it remembers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
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
from studio.engine.training.variety import Blends, may_mirror, numbered
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
    assert may_mirror(teacher, samples_of(model, tmp_path), "y", "logits") is not left_or_right


def test_blends_that_judge_are_always_the_same_and_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = brighter_half(tmp_path, left_or_right=True)
    samples, teacher = samples_of(model, tmp_path), Teacher(model, ["y"], 1)
    teacher.remember(numbered(samples))
    asked: list[int] = []
    run = teacher._run
    monkeypatch.setattr(teacher, "_run", lambda s: asked.append(1) or run(s))
    first, second = ([teacher.answers(s)["y"] for s in Blends().judges(samples, seed=3)] for _ in range(2))
    assert len(asked) == len(first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    numbers = np.concatenate([s.numbers for s in Blends().judges(samples, seed=3)])
    assert len(set(numbers)) == len(numbers)
    assert samples.total <= numbers.min()
    assert numbers.max() < numbered(samples)


@given(st.integers(0, 1000), st.booleans())
def test_blending_keeps_types_and_bounds_and_leaves_numbers_that_are_no_pictures(
    seed: int, mirror: bool
) -> None:
    rng = np.random.default_rng(seed)
    feed = {"x": rng.uniform(size=(4, 1, 6, 6)).astype(np.float32), "ids": rng.integers(0, 9, (4, 3))}
    made = Blends(mirror=mirror)(Sample(feed, np.arange(4), np.arange(4)), rng)
    assert made.feed["x"].dtype == np.float32
    assert made.feed["x"].min() >= feed["x"].min() - 1e-6
    assert made.feed["x"].max() <= feed["x"].max() + 1e-6
    assert np.array_equal(made.feed["ids"], feed["ids"])
    assert made.numbers is None


def test_samples_that_teach_do_not_judge_even_where_there_are_few(tmp_path: Path) -> None:
    samples = samples_of(brighter_half(tmp_path, left_or_right=True), tmp_path)
    judging = {int(n) for sample in samples.judges() for n in sample.numbers}
    batches = samples.endless()
    teaching = {int(n) for _ in range(20) for n in next(batches).numbers}
    assert len(judging) == samples.judging == 8
    assert not judging & teaching
    views = list(Blends().judges(samples, seed=0))
    assert sum(len(v.feed["x"]) for v in views) == 64
