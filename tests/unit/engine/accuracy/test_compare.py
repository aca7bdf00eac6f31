"""Two models over one data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support import nets

from studio.base.errors import Cancelled, StudioError
from studio.base.progress import Progress
from studio.engine.accuracy import EQUAL_DB, Reference, accuracy_of, compare
from studio.engine.dataset import Dataset, open_for
from studio.engine.execute import run, session
from studio.engine.graph import Model, load
from studio.records.measure import DataSpec


@pytest.fixture
def model(tmp_path: Path) -> Model:
    onnx.save(nets.cnn(), tmp_path / "cnn.onnx")
    return load(tmp_path / "cnn.onnx")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    proto = nets.cnn()
    weight = proto.graph.initializer[0]
    array = onnx.numpy_helper.to_array(weight) * np.float32(1.02)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(proto, tmp_path / "other.onnx")
    return tmp_path / "other.onnx"


@pytest.fixture
def data(tmp_path: Path, model: Model) -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 3, 16, 16)).astype(np.float32)
    labels = run(session(model), {"image": images})[0].argmax(1)
    labels[::4] = -1
    np.savez(tmp_path / "d.npz", image=images, labels=labels)
    return open_for(model, DataSpec(path=str(tmp_path / "d.npz")))


def test_a_model_equals_itself_and_is_always_right_about_its_own_answers(model: Model, data: Dataset) -> None:
    error, accuracy = compare(model, model, data, Progress())
    assert (error.sqnr_db, error.agreement, error.samples, error.data) == (
        EQUAL_DB,
        1.0,
        40,
        "calibration data",
    )
    assert accuracy is not None
    assert (accuracy.metric, accuracy.value, accuracy.samples) == ("top-1", 1.0, 30)
    assert accuracy_of(model, data, Progress()) == accuracy


def test_another_model_is_as_far_as_its_outputs(model: Model, other: Path, data: Dataset) -> None:
    error, _ = compare(model, other, data, Progress())
    (images,) = (np.concatenate([f["image"] for f in data.feeds()]),)
    r, y = (run(session(m), {"image": images})[0].astype(float) for m in (model, other))
    assert error.sqnr_db == pytest.approx(10 * np.log10((r**2).sum() / ((r - y) ** 2).sum()), abs=0.01)
    assert error.kl is not None
    assert 0 < error.kl < 1


def test_kept_outputs_give_the_same_figures(model: Model, other: Path, data: Dataset) -> None:
    keeping, forgetting = Reference(model, data), Reference(model, data, keep=100)
    answers = [ref.compare(other, Progress()) for ref in (keeping, keeping, forgetting, forgetting)]
    assert all(answer == answers[0] for answer in answers)


def test_random_data_are_marked(model: Model, other: Path) -> None:
    made_up = open_for(model, DataSpec(kind="random", limit=3))
    error, accuracy = compare(model, other, made_up, Progress())
    assert error.data == "random inputs"
    assert accuracy is None
    assert accuracy_of(model, made_up, Progress()) is None


def test_a_model_with_other_outputs_cannot_be_compared(tmp_path: Path, model: Model, data: Dataset) -> None:
    proto = nets.cnn()
    proto.graph.node[-1].output[0] = "scores"
    proto.graph.output[0].name = "scores"
    onnx.save(proto, tmp_path / "renamed.onnx")
    with pytest.raises(StudioError, match="one has no output 'logits'"):
        compare(model, tmp_path / "renamed.onnx", data, Progress())


def test_a_comparison_can_be_cancelled(model: Model, data: Dataset) -> None:
    with pytest.raises(Cancelled):
        compare(model, model, data, Progress(cancelled=lambda: True))
