"""Everything that is measured of models, told as it becomes known."""

from __future__ import annotations

import datetime as dt
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import nets

from studio.base.errors import Cancelled, StudioError
from studio.base.progress import Progress
from studio.engine.footprint import footprint, footprint_in_child
from studio.engine.measure import compressed_bytes, measure
from studio.records.measure import DataSpec
from studio.records.task import Footprint, Measure, Measured, News

NOW = dt.datetime(2030, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str]:
    nets.write("cnn", tmp_path)
    proto = nets.cnn()
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array((array * np.float32(0.99)), tensor.name))
    onnx.save(proto, tmp_path / "other.onnx")
    return str(tmp_path / "cnn.onnx"), str(tmp_path / "other.onnx")


@pytest.fixture
def data(tmp_path: Path) -> DataSpec:
    np.savez(tmp_path / "d.npz", image=nets.feed("cnn", 20)["image"], labels=np.arange(20) % 10)
    return DataSpec(path=str(tmp_path / "d.npz"))


def test_two_models_are_measured_against_the_first(models: tuple[str, str], data: DataSpec) -> None:
    news: list[News] = []
    asked = Measure(models=models, evaluation=data, threads=1)
    first, second = measure(asked, Progress(), news.append, lambda: NOW).measurements
    assert first.when == "2030-01-02T03:04:05+00:00"
    assert first.runtime.startswith("onnxruntime ")
    assert first.error is None
    assert second.error is not None
    assert (second.error.samples, second.error.data) == (20, "evaluation data")
    assert first.accuracy is not None
    assert first.accuracy.samples == 20
    assert first.digest != second.digest
    assert second.latency is not None
    assert second.latency.ratio is not None
    assert first.peak_bytes
    assert first.compressed_bytes == compressed_bytes(Path(models[0])) == _deflated(Path(models[0]))
    told = [item.measurement for item in news if isinstance(item, Measured)]
    assert told[0].latency is None  # size first, the rest as it comes
    assert told[-1] == second


def _deflated(path: Path) -> int:
    return len(zlib.compress(path.read_bytes()))


def test_the_reference_may_be_another_model(models: tuple[str, str], data: DataSpec) -> None:
    asked = Measure(models=models[1:], reference=models[0], evaluation=data, latency=False)
    (only,) = measure(asked, Progress(), lambda _: None).measurements
    assert only.error is not None
    assert only.latency is None


def test_without_data_outputs_are_compared_on_random_samples_and_marked(models: tuple[str, str]) -> None:
    asked = Measure(models=models, latency=False)
    first, second = measure(asked, Progress(), lambda _: None).measurements
    assert second.error is not None
    assert second.error.data == "random inputs"
    assert first.accuracy is second.accuracy is None


def test_progress_only_goes_forward(models: tuple[str, str], data: DataSpec) -> None:
    shares: list[float] = []
    progress = Progress(lambda share, _words: shares.append(share))
    measure(Measure(models=models, evaluation=data, threads=1), progress, lambda _: None)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_measuring_can_be_cancelled(models: tuple[str, str]) -> None:
    with pytest.raises(Cancelled):
        measure(Measure(models=models), Progress(cancelled=lambda: True), lambda _: None)


def test_zeros_are_worth_something_once_compressed(tmp_path: Path) -> None:
    dense, empty = tmp_path / "dense", tmp_path / "empty"
    dense.mkdir()
    empty.mkdir()
    path = nets.write("cnn", dense)
    proto = nets.cnn()
    for tensor in proto.graph.initializer:
        array = np.zeros_like(onnx.numpy_helper.to_array(tensor))
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, empty / "cnn.onnx")
    assert compressed_bytes(empty / "cnn.onnx") < compressed_bytes(path) / 5


def test_external_data_count_too(tmp_path: Path) -> None:
    onnx.save(
        nets.cnn(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    assert compressed_bytes(tmp_path / "m.onnx") > 20_000


def test_memory_is_that_of_loading_and_running(tmp_path: Path) -> None:
    net = nets.Net()
    net.add("MatMul", ["x", net.weight("w", 2000, 4000)], "y")  # 32 MB
    proto = net.build({"x": (1, ["N", 2000])}, {"y": (1, ["N", 4000])})
    onnx.save(proto, tmp_path / "big.onnx")
    small = footprint_in_child(Footprint(model=str(nets.write("cnn", tmp_path))), Progress())
    big = footprint_in_child(Footprint(model=str(tmp_path / "big.onnx")), Progress())
    assert small < 60_000_000
    assert big > small + 25_000_000


def test_memory_of_a_model_that_does_not_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(StudioError):
        footprint_in_child(Footprint(model=str(tmp_path / "no.onnx")), Progress())


def test_the_footprint_task_answers_in_this_process_too(tmp_path: Path) -> None:
    assert footprint(Footprint(model=str(nets.write("cnn", tmp_path))), Progress()).peak_bytes >= 0


def test_labels_that_fit_no_answer_are_told_and_give_no_score(
    models: tuple[str, str], tmp_path: Path
) -> None:
    image = nets.feed("cnn", 20)["image"]
    for labels, words in (
        (np.arange(20) % 11, "0 to 10 in the shape 20"),  # one label too many, in some batches only
        (np.linspace(0, 1, 20), "no whole numbers"),
        (np.full(20, -1), "no sample has a label"),
    ):
        np.savez(tmp_path / "odd.npz", image=image, labels=labels)
        spec = DataSpec(path=str(tmp_path / "odd.npz"), batch=4)
        asked = Measure(models=models, evaluation=spec, latency=False, threads=1)
        for found in measure(asked, Progress(), lambda _: None).measurements:
            assert found.accuracy is None
            assert words in found.unscored


def test_a_model_with_other_inputs_is_not_measured_beside_the_first(
    models: tuple[str, str], tmp_path: Path
) -> None:
    other = nets.write("transformer", tmp_path)
    with pytest.raises(StudioError, match=rf"Cannot measure {other.name} beside cnn.onnx"):
        measure(Measure(models=(models[0], str(other)), threads=1), Progress(), lambda _: None)
