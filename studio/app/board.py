"""What a session shows, in one place: the view, who hears of its changes, its jobs and its log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from studio.app.jobs import Failure, Job, LogLine, error_of
from studio.app.jobs.records import Kind
from studio.app.project import Project
from studio.app.view import View
from studio.records.base import replace
from studio.records.task import Progressed

Listener: TypeAlias = Callable[[View, View], None]

LOG_LIMIT = 1000
JOB_LIMIT = 200
FIGURES = {
    "compress",
    "scan",
    "measure",
    "profile",
}  # jobs whose end the log tells; others say more themselves
_UNSAVED = object()  # equals no project's essence


FIGURES = {
    "compress",
    "scan",
    "measure",
    "profile",
}  # jobs whose end the log tells; others say more themselves


class Board:
    """Holds the view; every change replaces it and is told to all listeners, in order.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.view = View()
        self._listeners: list[Listener] = []
        self._unheard: list[tuple[View, View]] = []
        self._saved: object = None
        self._job_ids = 0

    # ------------------------------------------------------------ changes

    def listen(self, callback: Listener) -> Callable[[], None]:
        """Call `callback(old, new)` after every change; returns what ends that."""
        self._listeners.append(callback)

        def unsubscribe() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return unsubscribe

    def silence(self) -> None:
        """Tell nobody any more."""
        self._listeners.clear()

    def change(self, **fields: Any) -> None:
        """Replace some fields of the view."""
        old = self.view
        new = replace(old, **fields)
        if "project" in fields:
            new = replace(new, modified=essence(new.project) != self._saved)
        self.view = new
        # A listener may cause the next change: everyone hears of this one first.
        self._unheard.append((old, new))
        if len(self._unheard) > 1:
            return
        while self._unheard:
            try:
                for listener in tuple(self._listeners):
                    listener(*self._unheard[0])
            finally:
                self._unheard.pop(0)

    def mark_saved(self, project: Project | None) -> None:
        """From now on, 'modified' means other than this project."""
        self._saved = essence(project)

    def mark_unsaved(self) -> None:
        """From now on, whatever project there is counts as modified."""
        self._saved = _UNSAVED

    def say(self, text: str, level: Literal["note", "caution", "error"] = "note") -> None:
        """Add a line to the log."""
        when = time.strftime("%H:%M:%S", time.localtime(self.clock()))
        line = LogLine(when=when, text=text, level=level)
        self.change(log=(*self.view.log, line)[-LOG_LIMIT:])

    # ------------------------------------------------------------ jobs

    def add_job(self, kind: Kind, title: str, version: int | None = None) -> int:
        """A new job that waits; returns its id."""
        self._job_ids += 1
        job = Job(id=self._job_ids, title=title, kind=kind, version=version)
        self.change(jobs=(*self.view.jobs, job)[-JOB_LIMIT:])
        return job.id

    def update_job(self, job_id: int, **changes: Any) -> None:
        """Replace some fields of a job."""
        job = self.view.job(job_id)
        if job is not None:
            updated = replace(job, **changes)
            self.change(jobs=tuple(updated if j.id == job_id else j for j in self.view.jobs))

    def start_job(self, job_id: int, words: str = "") -> None:
        """A job has begun; one that is being cancelled stays that."""
        job = self.view.job(job_id)
        if job is not None and job.state == "waiting":
            self.update_job(job_id, state="running", started=self.clock(), words=words)

    def postpone_job(self, job_id: int) -> None:
        """A running job has given way and waits again."""
        job = self.view.job(job_id)
        if job is not None and job.state == "running":
            self.update_job(job_id, state="waiting", share=0.0, words="Gave way", eta_s=None, started=None)

    def progress(self, job_id: int, news: Progressed) -> None:
        """Show how far a running job is, and estimate what is left."""
        job = self.view.job(job_id)
        if job is None or job.state != "running" or job.started is None:
            return
        elapsed = self.clock() - job.started
        eta = elapsed / news.share - elapsed if news.share > 0.02 and elapsed > 1.0 else None
        self.update_job(job_id, share=news.share, words=news.words or job.words, eta_s=eta)

    def end_job(self, job_id: int, state: Literal["done", "failed", "cancelled"], words: str) -> None:
        """A job is over."""
        job = self.view.job(job_id)
        if job is None or not job.active:
            return
        now = self.clock()
        share = 1.0 if state == "done" else job.share
        self.update_job(
            job_id,
            state=state,
            words=words,
            share=share,
            eta_s=None,
            started=now if job.started is None else job.started,
            ended=now,
        )
        if state == "cancelled":
            self.say(f"{job.title}: cancelled")
        elif state == "done" and job.kind in FIGURES and job.started is not None:
            self.say(f"{job.title}: {words} in {now - job.started:.1f} s")
        live = self.view.live
        if live is not None and live.job == job_id and live.running:
            self.change(live=replace(live, running=False))

    def fail_job(self, job_id: int, failure: Failure) -> None:
        """A job ended with an error."""
        sentence = error_of(failure).sentence
        self.update_job(job_id, error=failure)
        self.end_job(job_id, "failed", sentence)
        self.say(sentence, "error")


def essence(project: Project | None) -> object:
    """What would be lost without saving: decisions, versions, scans (not what can be measured again)."""
    if project is None:
        return None
    versions = tuple((v.id, v.scans) for v in (*project.versions, *project.removed))
    return replace(project.decisions, head=None), versions
