"""The door: one answer a task whatever happens, news on the way, and an end when nobody listens."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import models

from studio.base.errors import StudioError
from studio.base.process import Child
from studio.base.progress import Progress
from studio.engine import worker
from studio.records import task as t
from studio.records.base import decode, encode
from studio.records.steps import Fp16, Step


class Worker:
    """A real worker process, asked one task at a time."""

    def __init__(self) -> None:
        self.child = Child()
        self.count = 0

    def ask(self, task: t.Task) -> t.Answer:
        self.count += 1
        assert self.child.send(encode(t.Ask(id=self.count, task=task)))
        while (frame := self.child.receive()) is not None:
            message: t.FromWorker = decode(frame, t.FromWorker)  # type: ignore[arg-type]
            assert message.id == self.count
            if isinstance(message, t.Reply):
                return message.answer
        raise AssertionError(f"{self.child.how_it_ended()}: {self.child.log_tail()}")


@pytest.fixture(scope="module")
def running() -> Iterator[Worker]:
    one = Worker()
    yield one
    one.child.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return models.write(models.dense(32), tmp_path / "m.onnx")


def test_a_task_is_answered(running: Worker, path: Path) -> None:
    answer = running.ask(t.Inspect(model=str(path)))
    assert isinstance(answer, t.Inspected)
    assert [x.name for x in answer.info.layers] == ["product"]


def test_an_error_for_users_is_an_answer_and_the_worker_goes_on(
    running: Worker, path: Path, tmp_path: Path
) -> None:
    answer = running.ask(t.Inspect(model=str(tmp_path / "missing.onnx")))
    assert isinstance(answer, t.Failed)
    assert not answer.bug
    assert "no such file" in answer.why
    assert isinstance(running.ask(t.Inspect(model=str(path))), t.Inspected)


def test_a_file_that_changed_is_read_anew(running: Worker, path: Path) -> None:
    first = running.ask(t.Inspect(model=str(path)))
    models.write(models.dense(48), path)
    second = running.ask(t.Inspect(model=str(path)))
    assert isinstance(first, t.Inspected)
    assert isinstance(second, t.Inspected)
    assert (first.info.cost.parameters, second.info.cost.parameters) == (32 * 32, 48 * 48)


def test_a_layer_is_described(running: Worker, path: Path) -> None:
    answer = running.ask(t.DescribeLayer(model=str(path), layer="product", settings=Fp16()))
    assert isinstance(answer, t.LayerDetail)
    assert answer.weights is not None
    assert sum(answer.weights.counts) == 32 * 32
    assert len(answer.channels) == 32
    assert answer.sqnr_db is not None
    assert answer.sqnr_db > 60


def test_steps_are_previewed(running: Worker, path: Path) -> None:
    answer = running.ask(t.PreviewSteps(model=str(path), steps=(Step(settings=Fp16()),)))
    assert isinstance(answer, t.Previewed)
    assert answer.plans[0].after.bytes < answer.plans[0].before.bytes


def test_a_worker_ends_when_its_input_ends(path: Path) -> None:
    one = Worker()
    one.ask(t.Inspect(model=str(path)))
    one.child._stdin.close()
    until = time.monotonic() + 10
    while one.child.alive and time.monotonic() < until:
        time.sleep(0.01)
    assert not one.child.alive
    one.child.close()


def test_a_worker_ends_when_it_cannot_understand() -> None:
    one = Worker()
    one.child.send(b"this is no record")
    assert one.child.receive() is None
    one.child.close()


def test_listing_and_describing_import_no_torch(path: Path) -> None:
    import subprocess

    code = (
        "import sys; from studio.records import task as t; from studio.engine.worker import perform\n"
        "from studio.base.progress import Progress\n"
        f"perform(t.Inspect(model={str(path)!r}), Progress(), print)\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------ without a process


class Sink:
    """A stream that keeps frames."""

    def __init__(self) -> None:
        self.notes = 0

    def write(self, data: bytes) -> int:
        self.notes += 1
        return len(data)

    def flush(self) -> None:
        pass


def answer(
    monkeypatch: pytest.MonkeyPatch, perform: object, cancelled: set[int] | None = None
) -> tuple[t.Answer, Sink]:
    monkeypatch.setattr(worker, "perform", perform)
    sink = Sink()
    ask = t.Ask(id=7, task=t.Inspect(model="m"))
    return worker._answer(ask, sink, cancelled or set(), set()), sink  # type: ignore[arg-type]


def test_a_bug_is_told_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> t.Answer:
        raise KeyError("nobody thought of this")

    failed, _sink = answer(monkeypatch, broken)
    assert isinstance(failed, t.Failed)
    assert failed.bug
    assert "nobody thought of this" in failed.details


def test_too_little_memory_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object) -> t.Answer:
        raise MemoryError

    failed, _sink = answer(monkeypatch, greedy)
    assert isinstance(failed, t.Failed)
    assert not failed.bug
    assert "memory" in failed.what


def test_an_error_keeps_all_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object) -> t.Answer:
        raise StudioError("what", "why", "hint", "details")

    failed, _sink = answer(monkeypatch, refusing)
    assert failed == t.Failed(what="what", why="why", hint="hint", details="details")


def test_cancelling_stops_at_the_next_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    def working(_task: t.Task, progress: Progress, *_: object) -> t.Answer:
        progress.tick(0.5)
        raise AssertionError("it went on")

    stopped, _sink = answer(monkeypatch, working, {7})
    assert stopped == t.Stopped()


def test_only_the_task_that_was_meant_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    def working(_task: t.Task, progress: Progress, *_: object) -> t.Answer:
        progress.tick(0.5)
        return t.Stopped()

    stopped, sink = answer(monkeypatch, working, {6})
    assert stopped == t.Stopped()
    assert sink.notes == 1


def test_a_task_hears_that_enough_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bool] = []

    def working(_task: t.Task, _progress: Progress, _news: object, enough: Callable[[], bool]) -> t.Answer:
        heard.append(enough())
        return t.Stopped()

    monkeypatch.setattr(worker, "perform", working)
    for finished in (set(), {7}):
        worker._answer(t.Ask(id=7, task=t.Inspect(model="m")), Sink(), set(), finished)  # type: ignore[arg-type]
    assert heard == [False, True]


def test_news_of_progress_do_not_come_in_floods(monkeypatch: pytest.MonkeyPatch) -> None:
    def working(_task: t.Task, progress: Progress, *_: object) -> t.Answer:
        for share in range(1000):
            progress.tick(share / 1000)
        return t.Stopped()

    stopped, sink = answer(monkeypatch, working)
    assert stopped == t.Stopped()
    assert 1 <= sink.notes < 20
