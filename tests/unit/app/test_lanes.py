from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from unit.app.conftest import FAKE

from studio.app.jobs import AskLane, Deed, DoLane, Inbox, Limits, Run
from studio.app.jobs.inbox import Batch
from studio.base.errors import Cancelled, StudioError
from studio.records.task import Answer, Failed, Inspect, Inspected, News, Progressed

Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def ask(inbox: Inbox) -> Iterator[AskLane]:
    lane = AskLane(inbox.post, FAKE)
    yield lane
    lane.close()


@pytest.fixture
def do(inbox: Inbox, tmp_path: Path) -> Iterator[DoLane]:
    lane = DoLane(inbox.post, tmp_path, None, FAKE)
    yield lane
    lane.close()


def inspect(tmp_path: Path, name: str) -> Inspect:
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(b"x")
    return Inspect(model=str(path))


class Outcome:
    """Collects what a deed's callbacks say."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.result: Any = None
        self.news: list[News] = []
        self.failure: Failed | None = None

    def deed(self, number: int, work: Callable[[Run], Any], **options: Any) -> Deed:
        def say(word: str) -> Callable[..., None]:
            return lambda *_: self.heard.append(f"{word} {number}")

        def done(result: Any) -> None:
            self.result = result
            self.heard.append(f"done {number}")

        def failed(failure: Failed) -> None:
            self.failure = failure
            self.heard.append(f"failed {number}")

        return Deed(
            number,
            work,
            say("started"),
            self.news.extend,
            done,
            failed,
            say("cancelled"),
            say("postponed"),
            **options,
        )


# ---------------------------------------------------------------- the ask lane


def test_the_worker_stays_warm_between_questions(ask: AskLane, tmp_path: Path, until: Until) -> None:
    answers: list[Answer] = []
    ask.ask(inspect(tmp_path, "net"), answers.append)
    until(lambda: len(answers) == 1)
    pid = ask.worker_pid
    ask.ask(inspect(tmp_path, "net"), answers.append)
    until(lambda: len(answers) == 2)
    assert ask.worker_pid == pid is not None


def test_a_dead_worker_is_replaced(ask: AskLane, tmp_path: Path, until: Until) -> None:
    answers: list[Answer] = []
    ask.ask(inspect(tmp_path, "die"), answers.append)
    ask.ask(inspect(tmp_path, "net"), answers.append)
    until(lambda: len(answers) == 2)
    assert isinstance(answers[0], Failed)
    assert isinstance(answers[1], Inspected)


def test_a_question_that_hangs_is_ended_and_the_next_is_answered(
    ask: AskLane, tmp_path: Path, until: Until
) -> None:
    answers: list[Answer] = []
    ask.ask(inspect(tmp_path, "hang"), answers.append, limits=Limits(seconds=0.3))
    ask.ask(inspect(tmp_path, "net"), answers.append)
    until(lambda: len(answers) == 2)
    assert isinstance(answers[0], Failed)
    assert "took more than 0.3 s" in answers[0].what
    assert isinstance(answers[1], Inspected)


def test_only_the_newest_of_a_kind_is_answered(ask: AskLane, tmp_path: Path, until: Until) -> None:
    answers: list[str] = []
    ask.ask(inspect(tmp_path, "slow"), lambda _a: answers.append("first"), key="preview")
    for number in range(20):
        ask.ask(inspect(tmp_path, "net"), lambda _a, n=number: answers.append(str(n)), key="preview")
    ask.ask(inspect(tmp_path, "net"), lambda _a: answers.append("other"), key="other")
    until(lambda: "other" in answers)
    assert answers == ["19", "other"]


def test_a_dropped_question_gets_no_answer(ask: AskLane, tmp_path: Path, until: Until) -> None:
    answers: list[str] = []
    ask.ask(inspect(tmp_path, "slow"), lambda _a: answers.append("dropped"), key="a")
    ask.drop("a")
    ask.ask(inspect(tmp_path, "net"), lambda _a: answers.append("kept"))
    until(lambda: bool(answers))
    assert answers == ["kept"]


def test_while_it_is_quiet_only_light_questions_pass(
    ask: AskLane, tmp_path: Path, inbox: Inbox, until: Until
) -> None:
    answers: list[str] = []
    with ask.quiet():
        ask.ask(inspect(tmp_path, "net"), lambda _a: answers.append("heavy"))
        ask.ask(inspect(tmp_path, "net"), lambda _a: answers.append("light"), light=True)
        until(lambda: bool(answers))
        assert answers == ["light"]
    until(lambda: len(answers) == 2)
    assert answers == ["light", "heavy"]


def test_a_patient_question_gives_way_and_is_begun_anew(ask: AskLane, tmp_path: Path, until: Until) -> None:
    heard: list[str] = []
    slow = inspect(tmp_path, "slow")
    ask.ask(
        slow,
        lambda _a: heard.append("answer"),
        key="p",
        patient=True,
        progress=lambda _n: heard.append("works"),
    )
    until(lambda: "works" in heard)
    ask.ask(inspect(tmp_path, "net"), lambda _a: heard.append("hurried"))
    until(lambda: "hurried" in heard and heard[-1] == "works")
    ask.drop("p")
    assert "answer" not in heard


# ---------------------------------------------------------------- the do lane


def test_a_deed_reports_and_ends(do: DoLane, tmp_path: Path, until: Until) -> None:
    outcome = Outcome()
    task = inspect(tmp_path, "net")
    do.submit(outcome.deed(1, lambda run: run.task(task, Inspected).info.name))
    until(lambda: "done 1" in outcome.heard)
    assert outcome.heard == ["started 1", "done 1"]
    assert outcome.result == "net"


def test_deeds_run_one_at_a_time_and_those_in_the_background_wait(do: DoLane, until: Until) -> None:
    outcome, gate = Outcome(), threading.Event()
    do.submit(outcome.deed(1, lambda _run: gate.wait(30)))
    until(lambda: "started 1" in outcome.heard)
    do.submit(outcome.deed(2, lambda _run: None, background=True))
    do.submit(outcome.deed(3, lambda _run: None))
    gate.set()
    until(lambda: "done 2" in outcome.heard)
    assert outcome.heard == ["started 1", "done 1", "started 3", "done 3", "started 2", "done 2"]


def test_a_deed_in_the_background_gives_way_and_begins_again(
    do: DoLane, tmp_path: Path, until: Until
) -> None:
    outcome, tries = Outcome(), []
    slow, quick = inspect(tmp_path, "slow"), inspect(tmp_path, "net")

    def work(run: Run) -> str:
        tries.append(run.folder)
        return run.task(slow if len(tries) == 1 else quick, Inspected).info.name

    do.submit(outcome.deed(1, work, background=True))
    until(lambda: bool(outcome.news))
    do.submit(outcome.deed(2, lambda _run: None))
    until(lambda: "done 1" in outcome.heard)
    assert outcome.heard == ["started 1", "postponed 1", "started 2", "done 2", "started 1", "done 1"]
    assert len(tries) == 2


def test_a_deed_that_gave_way_can_still_be_cancelled(do: DoLane, tmp_path: Path, until: Until) -> None:
    outcome, gate = Outcome(), threading.Event()
    slow = inspect(tmp_path, "slow")
    do.submit(outcome.deed(1, lambda run: run.task(slow, Inspected), background=True))
    until(lambda: bool(outcome.news))
    do.submit(outcome.deed(2, lambda _run: gate.wait(30)))
    until(lambda: "started 2" in outcome.heard)
    assert do.cancel(1)
    gate.set()
    until(lambda: "done 2" in outcome.heard)
    assert "done 1" not in outcome.heard


def test_a_bug_in_a_deed_is_told_and_the_lane_goes_on(do: DoLane, until: Until) -> None:
    outcome = Outcome()
    do.submit(outcome.deed(1, lambda _run: 1 // 0))
    do.submit(outcome.deed(2, lambda _run: None))
    until(lambda: "done 2" in outcome.heard)
    assert outcome.failure is not None
    assert outcome.failure.bug
    assert "ZeroDivisionError" in outcome.failure.details


def test_a_waiting_deed_is_cancelled_at_once(do: DoLane, until: Until) -> None:
    outcome, gate = Outcome(), threading.Event()
    do.submit(outcome.deed(1, lambda _run: gate.wait(30)))
    do.submit(outcome.deed(2, lambda _run: None))
    until(lambda: "started 1" in outcome.heard)
    assert do.cancel(2)
    gate.set()
    until(lambda: "done 1" in outcome.heard)
    assert "started 2" not in outcome.heard


@pytest.mark.parametrize("name", ["slow", "hang"])
def test_a_cancelled_deed_leaves_nothing_behind(do: DoLane, tmp_path: Path, until: Until, name: str) -> None:
    outcome = Outcome()
    task = inspect(tmp_path, name)

    def work(run: Run) -> None:
        (run.folder / "half").write_bytes(b"half")
        run.task(task, Inspected)

    do.submit(outcome.deed(1, work))
    until(lambda: "started 1" in outcome.heard and do.driver is not None)
    assert not do.cancel(1)
    until(lambda: "cancelled 1" in outcome.heard)
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.onnx"]


def test_a_deed_that_stands_still_can_be_cancelled(do: DoLane, tmp_path: Path, until: Until) -> None:
    outcome = Outcome()
    task = inspect(tmp_path, "slow")
    do.submit(outcome.deed(1, lambda run: run.task(task, Inspected)))
    until(lambda: do.driver is not None)
    assert do.driver is not None
    worker = psutil.Process(do.driver.pid)

    def paused() -> bool:
        do.pause(1, on=True)  # nothing stands still before its task is sent
        return worker.status() == psutil.STATUS_STOPPED

    until(paused)
    assert not do.cancel(1)
    until(lambda: "cancelled 1" in outcome.heard)


def test_a_deed_that_fails_says_why_and_the_lane_goes_on(do: DoLane, tmp_path: Path, until: Until) -> None:
    outcome = Outcome()

    def full(_run: Run) -> None:
        raise OSError(28, "No space left on device")

    def broken(_run: Run) -> None:
        raise StudioError("Cannot", "because")

    do.submit(outcome.deed(1, full))
    until(lambda: "failed 1" in outcome.heard)
    assert outcome.failure is not None
    assert "No space left" in outcome.failure.why
    do.submit(outcome.deed(2, broken))
    do.submit(outcome.deed(3, lambda _run: "fine"))
    until(lambda: "done 3" in outcome.heard)
    assert outcome.failure.what == "Cannot"


def test_a_flood_of_progress_arrives_as_few_calls(tmp_path: Path, until: Until, inbox: Inbox) -> None:
    calls: list[Callable[[], None]] = []
    delivered: list[Sequence[News]] = []
    batch = Batch(calls.append, delivered.append)
    for i in range(1000):
        batch.put(Progressed(share=i / 1000))
    assert len(calls) == 1
    calls[0]()
    assert delivered == [[Progressed(share=0.999)]]


def test_saying_how_far_it_is_hears_of_a_cancel(do: DoLane, until: Until) -> None:
    outcome, begun = Outcome(), threading.Event()

    def work(run: Run) -> None:
        for i in range(100_000):
            run.say(i / 100_000)
            begun.set()
            time.sleep(0.001)

    do.submit(outcome.deed(1, work))
    begun.wait(30)
    do.cancel(1)
    until(lambda: "cancelled 1" in outcome.heard)


def test_cancelled_is_raised_for_a_task_after_the_stop(do: DoLane, tmp_path: Path, until: Until) -> None:
    outcome, begun, gate = Outcome(), threading.Event(), threading.Event()

    def work(run: Run) -> None:
        begun.set()
        gate.wait(30)
        with pytest.raises(Cancelled):
            run.task(inspect(tmp_path, "net"), Inspected)
        run.check()

    do.submit(outcome.deed(1, work))
    begun.wait(30)
    do.cancel(1)
    gate.set()
    until(lambda: "cancelled 1" in outcome.heard)
