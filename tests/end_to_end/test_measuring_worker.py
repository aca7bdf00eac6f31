"""Measuring, profiling and looking at data through a real worker process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import nets

from studio.base.process import Child
from studio.records.base import decode, encode
from studio.records.measure import DataSpec
from studio.records.task import (
    Answer,
    Ask,
    DataPreview,
    DescribeData,
    Failed,
    FromWorker,
    Measure,
    Measured,
    Measurements,
    News,
    Note,
    Profile,
    Profiled,
    Reply,
    Task,
)


@pytest.fixture(scope="module")
def worker() -> Iterator[Child]:
    child = Child()
    yield child
    child.close()


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(nets.write("cnn", tmp_path))


def ask(worker: Child, task: Task) -> tuple[Answer, list[News]]:
    worker.send(encode(Ask(id=1, task=task)))
    news: list[News] = []
    while (frame := worker.receive()) is not None:
        match decode(frame, FromWorker):  # type: ignore[arg-type]
            case Note(news=item):
                news.append(item)
            case Reply(answer=answer):
                return answer, news
    raise AssertionError(worker.log_tail())


def test_a_model_is_measured_and_its_figures_arrive_one_by_one(worker: Child, model: str) -> None:
    answer, news = ask(worker, Measure(models=(model, model), threads=1))
    assert isinstance(answer, Measurements)
    told = [item.measurement for item in news if isinstance(item, Measured)]
    assert len(told) >= 8  # twice: size, latency, outputs or accuracy, memory, deflated
    assert answer.measurements[1].latency is not None
    assert answer.measurements[1].peak_bytes
    assert told[-1] == answer.measurements[1]


def test_a_model_is_profiled(worker: Child, model: str) -> None:
    answer, _ = ask(worker, Profile(model=model, threads=1))
    assert isinstance(answer, Profiled)
    assert len(answer.layers) == 5


def test_data_are_described_with_pictures(worker: Child, model: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=nets.feed("cnn", 9)["image"], labels=np.arange(9))
    spec = DataSpec(path=str(tmp_path / "d.npz"))
    answer, _ = ask(worker, DescribeData(model=model, spec=spec, folder=str(tmp_path / "pictures")))
    assert isinstance(answer, DataPreview)
    assert (answer.summary.samples, answer.summary.classes) == (9, 9)
    assert len(answer.images) == len(answer.labels) == 8
    assert all(Path(path).is_file() for path in answer.images)


def test_data_that_do_not_fit_are_told_in_words(worker: Child, model: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=np.zeros((4, 1, 16, 16), np.float32))
    answer, _ = ask(worker, DescribeData(model=model, spec=DataSpec(path=str(tmp_path / "d.npz"))))
    assert isinstance(answer, Failed)
    assert not answer.bug
    assert answer.why == "expected N×3×16×16, got 4×1×16×16"
