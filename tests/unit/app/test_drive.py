from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from unit.app.conftest import FAKE

from studio.app.jobs import Driver, Limits, WorkFailed, run_task
from studio.base.errors import Cancelled, StudioError
from studio.records.steps import Recipe
from studio.records.task import Apply, Inspect, Inspected, Progressed


def file(tmp_path: Path, name: str) -> str:
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(b"x")
    return str(path)


def run(model: str, **options: object):
    return run_task(Inspect(model=model), Inspected, command=FAKE, subject="Reading it", **options)


def test_an_answer_comes_back(tmp_path: Path) -> None:
    assert run(file(tmp_path, "net")).info.name == "net"


def test_a_worker_that_dies_is_a_sentence_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match=r"ended unexpectedly \(exit code 3\)") as caught:
        run(file(tmp_path, "die"))
    assert "the last words" in caught.value.details


def test_a_failure_keeps_its_words(tmp_path: Path) -> None:
    with pytest.raises(StudioError) as caught:
        run(file(tmp_path, "fail"))
    assert (caught.value.what, caught.value.hint) == ("Cannot read it", "Mend it.")
    assert not isinstance(caught.value, WorkFailed)


def test_work_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match=r"Reading it took more than 0\.5 s and was stopped"):
        run(file(tmp_path, "hang"), limits=Limits(seconds=0.5))


def test_work_that_takes_too_much_memory_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match="took more than 150 MB of memory"):
        run(file(tmp_path, "eat"), limits=Limits(bytes=150_000_000))


def cancelled_run(model: str) -> list[int]:
    """Cancel once the worker is at work; returns the ids of its whole family."""
    family: list[int] = []

    def cancel(driver: Driver) -> None:
        def later() -> None:
            time.sleep(1.0)
            worker = psutil.Process(driver.pid)
            family.extend(p.pid for p in (worker, *worker.children(recursive=True)))
            driver.cancel()

        threading.Thread(target=later).start()

    with pytest.raises(Cancelled):
        run(model, started=cancel)
    return family


@pytest.mark.parametrize("name", ["slow", "hang", "child"])
def test_a_cancelled_worker_ends_with_its_whole_family(tmp_path: Path, name: str) -> None:
    family = cancelled_run(file(tmp_path, name))
    assert len(family) == (2 if name == "child" else 1)
    _, alive = psutil.wait_procs([psutil.Process(p) for p in family if psutil.pid_exists(p)], timeout=10)
    assert not alive


def test_a_cancel_before_the_task_began_is_heard(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        run(file(tmp_path, "slow"), started=lambda driver: driver.cancel())


def test_a_late_cancel_does_not_stop_the_next_task(tmp_path: Path) -> None:
    driver = Driver(FAKE)
    try:
        task = Inspect(model=file(tmp_path, "net"))
        driver.ask(task)
        driver.cancel()
        assert isinstance(driver.ask(task), Inspected)
    finally:
        driver.close()


def test_news_arrive_before_the_answer(tmp_path: Path) -> None:
    heard = []
    run_task(Inspect(model=file(tmp_path, "chatter")), Inspected, heard.append, command=FAKE)
    assert len(heard) == 10_000
    assert all(isinstance(news, Progressed) for news in heard)


def test_no_thread_stays_behind_workers_that_are_closed_while_they_work(tmp_path: Path) -> None:
    before = set(threading.enumerate())

    def ask(driver: Driver) -> None:
        with contextlib.suppress(Cancelled):
            driver.ask(Inspect(model=file(tmp_path, "hang")))

    drivers = [Driver(FAKE) for _ in range(6)]
    for driver in drivers:
        threading.Thread(target=ask, args=[driver]).start()
    time.sleep(0.2)  # now they work
    for driver in drivers:
        driver.close()
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in left)


def test_an_answer_of_another_kind_is_an_error(tmp_path: Path) -> None:
    task = Apply(model=file(tmp_path, "net"), recipe=Recipe(steps=()), output=str(tmp_path / "out.onnx"))
    with pytest.raises(WorkFailed, match="another kind"):
        run_task(task, Inspected, command=FAKE)


def test_a_worker_that_cannot_start_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match="ended unexpectedly"):
        run_task(Inspect(model="x"), Inspected, command=[sys.executable, "-c", "raise SystemExit(5)"])
