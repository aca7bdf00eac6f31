"""The do lane: deeds, one at a time, each task of a deed in a fresh process that may be killed.

A deed is a function that runs on the lane's thread; through its `Run` it drives tasks, says how
far it is, learns that it should stop, and gets a scratch folder that is gone afterwards, so that
a cancelled deed leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from studio.app.jobs.ask import AskLane
from studio.app.jobs.drive import Driver, Limits, default_limits, failure_of, run_task, subject_of
from studio.app.jobs.inbox import Batch, Post
from studio.app.jobs.records import Failure
from studio.base.errors import Cancelled, StudioError
from studio.records.task import AnswerBase, News, Progressed, Task

A = TypeVar("A", bound=AnswerBase)


@dataclass
class Deed:
    """One entry of the queue; its callbacks are called on the owner's thread.

    Attributes:
        id: the job's.
        work: what to do; runs on the lane's thread; its result goes to `done`.
        quiet: figures are measured: the ask lane answers only light questions meanwhile.
        background: gives way to deeds that somebody waits for, even when it runs: it is stopped,
            `postponed`, and begun again later.
    """

    id: int
    work: Callable[[Run], Any]
    started: Callable[[], None]
    news: Callable[[Sequence[News]], None]
    done: Callable[[Any], None]
    failed: Callable[[Failure], None]
    cancelled: Callable[[], None]
    postponed: Callable[[], None] = lambda: None
    quiet: bool = False
    background: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    again: bool = False  # stopped only to give way


class Run:
    """What a deed's work may use: processes, progress, a scratch folder."""

    def __init__(self, deed: Deed, lane: DoLane, put: Callable[[News], None], folder: Path) -> None:
        self._deed, self._lane, self._put = deed, lane, put
        self.folder = folder

    def check(self) -> None:
        """Raise `Cancelled` when the deed was asked to stop."""
        if self._deed.stop.is_set():
            raise Cancelled

    def say(self, share: float, words: str = "") -> None:
        """How far the deed is, 0..1.

        Raises:
            Cancelled: it was asked to stop.
        """
        self.check()
        self._put(Progressed(share=share, words=words))

    def task(self, task: Task, kind: type[A], low: float = 0.0, high: float = 1.0) -> A:
        """Run a task in a fresh process; its share done is mapped to `low`..`high` of the deed.

        Raises:
            Cancelled: the deed was asked to stop.
            StudioError: the task failed.
        """
        self.check()

        def news(item: News) -> None:
            if isinstance(item, Progressed):
                item = Progressed(share=low + (high - low) * item.share, words=item.words)
            self._put(item)

        try:
            return run_task(
                task,
                kind,
                news,
                limits=self._lane.limits,
                subject=subject_of(task),
                command=self._lane.command,
                started=self._started,
            )
        finally:
            self._lane.driver = None

    def _started(self, driver: Driver) -> None:
        self._lane.driver = driver
        self.check()


class DoLane:
    """One thread and a queue.

    Args:
        post: runs a call on the owner's thread.
        scratch: where deeds get their folders.
        ask: the lane to keep quiet while a deed measures.
        command: what to start as the worker; None = this program.
        limits: of every task; by default memory only.
    """

    def __init__(
        self,
        post: Post,
        scratch: Path,
        ask: AskLane | None = None,
        command: list[str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._post, self._scratch, self._ask = post, scratch, ask
        self.command, self.limits = command, limits or default_limits(seconds=0, share=0.85)
        self.driver: Driver | None = None
        self._condition = threading.Condition()
        self._waiting: list[Deed] = []
        self._running: Deed | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="do lane", daemon=True)
        self._thread.start()

    def submit(self, deed: Deed) -> None:
        """Put a deed into the queue: before those in the background, unless it is one."""
        with self._condition:
            place = len(self._waiting)
            if not deed.background:
                place = sum(not waiting.background for waiting in self._waiting)
            self._waiting.insert(place, deed)
            running = self._running
            give_way = running is not None and running.background and not deed.background
            if running is not None and give_way and not running.stop.is_set():
                running.again = True
                self._stop(running)
            self._condition.notify_all()

    def cancel(self, deed_id: int) -> bool:
        """Ask a deed to stop; True when it had not begun and is gone already."""
        with self._condition:
            for deed in self._waiting:
                if deed.id == deed_id:
                    self._waiting.remove(deed)
                    return True
            running = self._running
            if running is not None and running.id == deed_id:
                running.again = False
                self._stop(running)
        return False

    def finish(self, deed_id: int) -> None:
        """Ask a running deed to end soon and keep the best so far."""
        with self._condition:
            running, driver = self._running, self.driver
        if running is not None and running.id == deed_id and driver is not None:
            driver.finish()

    def pause(self, deed_id: int, *, on: bool) -> None:
        """Let a running deed stand still, or go on."""
        with self._condition:
            running, driver = self._running, self.driver
        if running is not None and running.id == deed_id and driver is not None:
            driver.pause(on=on)

    def close(self) -> None:
        """Stop everything at once."""
        with self._condition:
            self._closed = True
            self._waiting.clear()
            running = self._running
            self._condition.notify_all()
        if running is not None:
            running.stop.set()
        driver = self.driver
        if driver is not None:
            driver.close()
        self._thread.join(timeout=5)

    def _stop(self, deed: Deed) -> None:
        deed.stop.set()
        driver = self.driver
        if driver is not None:
            driver.cancel()

    # ------------------------------------------------------------ the lane's thread

    def _serve(self) -> None:
        while (deed := self._next()) is not None:
            outcome = self._perform(deed)
            with self._condition:
                self._running = None
                if outcome is deed.cancelled and deed.again:
                    deed.again = False
                    deed.stop.clear()
                    self._waiting.append(deed)
                    outcome = deed.postponed
            if not self._closed:
                self._post(outcome)

    def _next(self) -> Deed | None:
        with self._condition:
            self._condition.wait_for(lambda: self._closed or bool(self._waiting))
            if self._closed:
                return None
            self._running = self._waiting.pop(0)
            return self._running

    def _perform(self, deed: Deed) -> Callable[[], None]:
        self._post(deed.started)
        folder = Path(tempfile.mkdtemp(prefix=f"job-{deed.id}-", dir=self._scratch))
        batch = Batch(self._post, deed.news)
        silence = self._ask.quiet(deed.stop.is_set) if deed.quiet and self._ask else contextlib.nullcontext()
        try:
            with silence:
                result = deed.work(Run(deed, self, batch.put, folder))
        except Cancelled:
            return deed.cancelled
        except StudioError as error:
            if deed.stop.is_set():
                return deed.cancelled
            return functools.partial(deed.failed, failure_of(error))
        except OSError as error:
            reason = StudioError("The work failed", error.strerror or str(error))
            return functools.partial(deed.failed, failure_of(reason))
        except Exception as error:  # noqa: BLE001 - the lane's door: the queue must go on, and somebody must hear of it
            return functools.partial(deed.failed, _bug(error))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return lambda: deed.done(result)


def _bug(error: Exception) -> Failure:
    return Failure(
        what="Something went wrong that should not have",
        why=f"{type(error).__name__}: {error}",
        hint="Please report it with the details.",
        details="".join(traceback.format_exception(error)),
        bug=True,
    )
