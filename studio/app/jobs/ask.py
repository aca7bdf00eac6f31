"""The ask lane: quick read-only questions to one warm worker, the newest of a kind winning.

The worker keeps the model loaded between questions and is started again when it dies. While a
latency is measured (`quiet`), only *light* questions pass (a plan takes milliseconds and medians do
not feel it); heavy ones wait. A *patient* question gives way to every other and is begun anew.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from studio.app.jobs.drive import Driver, Limits, default_limits, failure_of, subject_of
from studio.app.jobs.inbox import Batch, Post
from studio.base.errors import Cancelled, StudioError
from studio.records.task import Answer, Failed, News, Progressed, Stopped, Task

_PATIENCE_S = 5.0  # with a superseded question, before the warm worker is ended for its sake


@dataclass
class _Question:
    task: Task
    then: Callable[[Answer], None]
    key: str
    light: bool
    limits: Limits
    progress: Callable[[Progressed], None]
    patient: bool = False
    dropped: bool = field(default=False)
    postponed: bool = field(default=False)


class AskLane:
    """One thread, one warm worker.

    Args:
        post: runs a call on the owner's thread; every `then` arrives that way.
        command: what to start as the worker; None = this program.
        limits: of every question that brings none of its own.
    """

    def __init__(self, post: Post, command: list[str] | None = None, limits: Limits | None = None) -> None:
        self._post, self._command = post, command
        self._limits = limits or default_limits()
        self._condition = threading.Condition()
        self._waiting: list[_Question] = []
        self._newest: dict[str, _Question] = {}
        self._running: _Question | None = None
        self._driver: Driver | None = None
        self._quiet = 0
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="ask lane", daemon=True)
        self._thread.start()

    def ask(
        self,
        task: Task,
        then: Callable[[Answer], None],
        *,
        key: str = "",
        light: bool = False,
        patient: bool = False,
        limits: Limits | None = None,
        progress: Callable[[Progressed], None] = lambda _news: None,
    ) -> None:
        """Put a question; `then` gets its answer (`Failed` and `Stopped` too) on the owner's thread.

        A question with a `key` supersedes all earlier ones with the same key: they are dropped
        without an answer.
        """
        question = _Question(task, then, key, light, limits or self._limits, progress, patient)
        with self._condition:
            if key:
                self._drop(key)
                self._newest[key] = question
            self._waiting.append(question)
            if not patient:
                self._postpone()
            self._condition.notify_all()

    def drop(self, key: str) -> None:
        """Forget the questions with this key; they get no answer."""
        with self._condition:
            self._drop(key)

    @contextlib.contextmanager
    def quiet(self, stopped: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """While this lasts only light questions are answered; waits for a heavy one that runs.

        Args:
            stopped: True ends the waiting.
        """
        with self._condition:
            self._quiet += 1
            while not (self._closed or stopped() or self._running is None or self._running.light):
                self._condition.wait(timeout=0.1)
        try:
            yield
        finally:
            with self._condition:
                self._quiet -= 1
                self._condition.notify_all()

    @property
    def worker_pid(self) -> int | None:
        """Of the warm worker; None while there is none."""
        driver = self._driver
        return driver.pid if driver is not None and driver.alive else None

    def close(self) -> None:
        """End the lane and its worker."""
        with self._condition:
            self._closed = True
            self._waiting.clear()
            self._condition.notify_all()
        driver = self._driver
        if driver is not None:
            driver.close()
        self._thread.join(timeout=5)

    def _drop(self, key: str) -> None:
        self._waiting = [q for q in self._waiting if q.key != key]
        newest = self._newest.pop(key, None)
        if newest is None:
            return
        newest.dropped = True
        if newest is self._running and self._driver is not None:
            self._driver.cancel(_PATIENCE_S)

    def _postpone(self) -> None:
        running = self._running
        if running is not None and running.patient and not running.dropped and self._driver is not None:
            running.postponed = True
            self._driver.cancel(_PATIENCE_S)

    # ------------------------------------------------------------ the lane's thread

    def _serve(self) -> None:
        self._warm()
        while (question := self._next()) is not None:
            answer = self._answer(question)
            with self._condition:
                self._running = None
                dropped = question.dropped
                again = question.postponed and not dropped and isinstance(answer, Stopped)
                if again:
                    question.postponed = False
                    self._waiting.append(question)
                self._condition.notify_all()
            if not dropped and not again and not self._closed:
                self._post(functools.partial(_deliver, question, answer))

    def _warm(self) -> Driver:
        if self._driver is None or not self._driver.alive:
            if self._driver is not None:
                self._driver.close()
            self._driver = Driver(self._command)
            if self._closed:
                self._driver.close()
        return self._driver

    def _next(self) -> _Question | None:
        with self._condition:
            while not self._closed:
                for question in sorted(self._waiting, key=lambda waiting: waiting.patient):
                    if question.light or not self._quiet:
                        self._waiting.remove(question)
                        self._running = question
                        return question
                self._condition.wait()
        return None

    def _answer(self, question: _Question) -> Answer:
        batch = Batch(self._post, lambda news: _last_progress(news, question))

        def news(item: News) -> None:
            if isinstance(item, Progressed):
                batch.put(item)

        try:
            driver = self._warm()
            if question.dropped:
                return Stopped()
            return driver.ask(question.task, news, question.limits, subject_of(question.task))
        except Cancelled:
            return Stopped()
        except StudioError as error:
            return failure_of(error)
        except OSError as error:
            return Failed(what="The worker process could not be started", why=str(error))


def _deliver(question: _Question, answer: Answer) -> None:
    if not question.dropped:  # superseded while the answer was on its way
        question.then(answer)


def _last_progress(news: object, question: _Question) -> None:
    assert isinstance(news, list)
    if news and not question.dropped:
        question.progress(news[-1])
