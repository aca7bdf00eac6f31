"""One worker process, one task at a time, under limits of time and memory, and cancellable.

`Driver.ask` blocks its thread on the pipe. A watch thread of the driver looks at the clock and at
the process's memory and ends the process when it breaks a limit or does not stop when asked;
`ask` then raises the reason.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import psutil

from studio.base.errors import Cancelled, StudioError
from studio.base.process import Child
from studio.base.units import file_size
from studio.records.base import decode, encode
from studio.records.task import (
    Answer,
    AnswerBase,
    Ask,
    Cancel,
    Failed,
    Finish,
    FromWorker,
    News,
    Note,
    Stopped,
    Task,
)

A = TypeVar("A", bound=AnswerBase)

TERMINATE_AFTER_S = 1.0  # after a cancel was sent
KILL_AFTER_S = 2.0
_WATCH_EVERY_S = 0.05
_MEMORY_EVERY_S = 0.25


class WorkFailed(StudioError):  # noqa: N818 - reads as what happened
    """The work failed through no fault of what it was given: the worker died or broke a limit."""


@dataclass(frozen=True)
class Limits:
    """What a task may take; 0 = no limit."""

    seconds: float = 0.0
    bytes: int = 0


def default_limits(seconds: float = 60.0, share: float = 0.7) -> Limits:
    """A time limit and a share (0..1) of this machine's memory."""
    return Limits(seconds=seconds, bytes=int(psutil.virtual_memory().total * share))


class Driver:
    """The studio's end of the conversation with one worker process.

    Args:
        command: what to start; None = this program as a worker.
    """

    def __init__(self, command: list[str] | None = None) -> None:
        self._child = Child(command)
        self._lock = threading.Lock()
        self._task_id = 0
        self._stillborn = False  # cancelled before its first task
        self._subject = ""
        self._limits = Limits()
        self._started = 0.0
        self._cancelled_at: float | None = None
        self._patience = TERMINATE_AFTER_S
        self._verdict: StudioError | None = None
        self._running = threading.Event()
        self._closed = False
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._child.alive

    @property
    def pid(self) -> int:
        """Of the worker process."""
        return self._child.pid

    def ask(
        self,
        task: Task,
        news: Callable[[News], None] = lambda _news: None,
        limits: Limits | None = None,
        subject: str = "",
    ) -> Answer:
        """Send a task and block until its answer.

        Args:
            task: the question.
            news: called on this thread for whatever arrives before the answer.
            limits: of time and memory.
            subject: of the sentence when it is ended ('Reading model.onnx').

        Raises:
            Cancelled: `cancel` was called and the worker stopped, or was ended.
            StudioError: the worker failed, died or broke a limit.
        """
        with self._lock:
            if self._stillborn:
                raise Cancelled
            self._task_id += 1
            task_id = self._task_id
            self._subject = subject or "The work"
            self._limits = limits or Limits()
            self._started = time.monotonic()
            self._cancelled_at, self._verdict = None, None
        self._running.set()
        try:
            self._child.send(encode(Ask(id=task_id, task=task)))
            return self._listen(task_id, news)
        finally:
            with self._lock:
                if not self._closed:  # else the watch would sleep for ever
                    self._running.clear()

    def _listen(self, task_id: int, news: Callable[[News], None]) -> Answer:
        while True:
            frame = self._child.receive()
            if frame is None:
                raise self._reason_of_death()
            message: FromWorker = decode(frame, cast("type[FromWorker]", FromWorker))
            if message.id != task_id:
                continue
            if isinstance(message, Note):
                news(message.news)
                continue
            answer: Answer = message.answer
            if isinstance(answer, Stopped):
                raise Cancelled
            return answer

    def cancel(self, patience: float = TERMINATE_AFTER_S) -> None:
        """Ask the running task to stop; after `patience` seconds end the process. From any thread."""
        with self._lock:
            self._stillborn = self._task_id == 0
            if not self._running.is_set() or self._cancelled_at is not None:
                return
            self._cancelled_at, self._patience = time.monotonic(), patience
            task_id = self._task_id
        self._child.hold(on=False)
        self._child.send(encode(Cancel(id=task_id)))

    def finish(self) -> None:
        """Ask the running task to end soon and keep the best so far. From any thread."""
        if self._running.is_set():
            self._child.hold(on=False)
            self._child.send(encode(Finish(id=self._task_id)))

    def pause(self, *, on: bool) -> None:
        """Let the running task stand still, or go on. From any thread."""
        if self._running.is_set() and self._cancelled_at is None:
            self._child.hold(on=on)

    def close(self) -> None:
        """End the process and its family."""
        with self._lock:
            self._closed = True
            self._running.set()  # wakes the watch so that it can end
        self._child.close()

    def _reason_of_death(self) -> Exception:
        # The pipe closes a moment before the process is gone.
        deadline = time.monotonic() + 1.0
        while self._child.alive and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._verdict is not None:
            return self._verdict
        if self._cancelled_at is not None or self._closed:
            return Cancelled()
        return WorkFailed(
            f"{self._subject} failed",
            f"the worker process ended unexpectedly ({self._child.how_it_ended()})",
            "Nothing was changed; try again.",
            self._child.log_tail(),
        )

    # ------------------------------------------------------------ the watch

    def _watch(self) -> None:
        looked = 0.0
        while True:
            self._running.wait()
            if self._closed:
                return
            now = time.monotonic()
            self._watch_cancel(now)
            self._watch_time(now)
            if now - looked >= _MEMORY_EVERY_S:
                looked = now
                self._watch_memory()
            time.sleep(_WATCH_EVERY_S)

    def _watch_cancel(self, now: float) -> None:
        asked = self._cancelled_at
        if asked is None or not self._running.is_set():
            return
        if now - asked >= self._patience + (KILL_AFTER_S - TERMINATE_AFTER_S):
            self._child.kill()
        elif now - asked >= self._patience:
            self._child.terminate()

    def _watch_time(self, now: float) -> None:
        limit = self._limits.seconds
        if limit and self._running.is_set() and now - self._started > limit:
            self._end(f"{self._subject} took more than {limit:g} s and was stopped")

    def _watch_memory(self) -> None:
        limit = self._limits.bytes
        if limit and self._running.is_set() and self._child.resident_bytes() > limit:
            self._end(f"{self._subject} took more than {file_size(limit)} of memory and was stopped")

    def _end(self, sentence: str) -> None:
        if self._verdict is None:
            self._verdict = WorkFailed(sentence, hint="Nothing was changed.")
        self._child.kill()


def expect(answer: Answer, kind: type[A]) -> A:
    """The answer as what it should be.

    Raises:
        StudioError: it is a failure.
    """
    match answer:
        case Failed():
            raise error_of(answer)
        case _ if isinstance(answer, kind):
            return answer
    raise WorkFailed("The worker gave an answer of another kind", type(answer).__name__)


def error_of(failed: Failed) -> StudioError:
    """A failure that crossed the pipe, as the error it was."""
    kind = WorkFailed if failed.bug else StudioError
    return kind(failed.what, failed.why, failed.hint, failed.details)


def failure_of(error: StudioError) -> Failed:
    """An error as a record."""
    return Failed(what=error.what, why=error.why, hint=error.hint, details=error.details)


def run_task(
    task: Task,
    kind: type[A],
    news: Callable[[News], None] = lambda _news: None,
    *,
    limits: Limits | None = None,
    subject: str = "",
    command: list[str] | None = None,
    started: Callable[[Driver], None] = lambda _driver: None,
) -> A:
    """Run one task in a process of its own and wait for its answer.

    Args:
        task: the question.
        kind: of the answer.
        news: called for whatever arrives on the way.
        limits: of time and memory.
        subject: of the sentence when it is ended.
        command: what to start; None = this program as a worker.
        started: given the driver, so that another thread can cancel it.

    Raises:
        Cancelled: it was cancelled.
        StudioError: it failed.
    """
    driver = Driver(command)
    try:
        started(driver)
        return expect(driver.ask(task, news, limits, subject), kind)
    finally:
        driver.close()


def subject_of(task: Task) -> str:
    """What a task does, as the start of a sentence."""
    model = getattr(task, "model", "") or next(iter(getattr(task, "models", ())), "")
    verb = _VERBS.get(type(task).__name__, "Working on")
    return f"{verb} {Path(model).name}" if model else "The work"


_VERBS = {
    "Inspect": "Reading",
    "PreviewSteps": "Planning",
    "Forecast": "Predicting the latency of",
    "DescribeLayer": "Describing a layer of",
    "DescribeData": "Reading the data for",
    "Apply": "Compressing",
    "Measure": "Measuring",
    "Profile": "Profiling",
    "Scan": "Scanning",
    "CheckExport": "Checking",
}
