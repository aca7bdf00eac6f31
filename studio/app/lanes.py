"""A session's lanes: questions and deeds on their way, and the jobs that show them.

Answers and results that belong to a project that has been closed meanwhile are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from studio.app.board import Board
from studio.app.jobs import AskLane, Deed, DoLane, Failure, Limits, Run
from studio.app.jobs.inbox import Post
from studio.app.jobs.records import Kind
from studio.records.task import Answer, News, Progressed, Task

T = TypeVar("T")


class Lanes:
    """Questions (`ask`), deeds (`do`), and work on files (`file`), which must not wait for deeds.

    Args:
        board: shows the jobs.
        post: runs a call on the owner's thread.
        scratch: where deeds get their folders.
        command: what to start as a worker; None = this program.
        limits: of a question.
    """

    def __init__(
        self, board: Board, post: Post, scratch: Path, command: list[str] | None, limits: Limits | None
    ) -> None:
        self._board = board
        self._ask = AskLane(post, command, limits)
        self._do = DoLane(post, scratch, self._ask, command)
        self._files = DoLane(post, scratch, None, command)
        self._page = 0  # counts projects; answers for an earlier one are dropped
        self._deeds: dict[int, DoLane] = {}
        self._questions: dict[int, str] = {}  # job -> key, of questions that are jobs

    # ------------------------------------------------------------ questions

    def ask(
        self,
        task: Task,
        then: Callable[[Answer], None],
        *,
        key: str,
        light: bool = False,
        patient: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """Put a question; a later one with the same key supersedes it, and a patient one gives way to all others."""
        page = self._page

        def now(answer: Answer) -> None:
            if page == self._page:
                then(answer)

        self._ask.ask(task, now, key=key, light=light, patient=patient, limits=limits)

    def ask_as_job(self, job: int, task: Task, then: Callable[[Answer], None]) -> None:
        """Put a question that is shown as a job and can be cancelled."""
        key = f"job {job}"
        self._questions[job] = key
        self._board.start_job(job)
        # Somebody waits for it: it passes even while a latency is measured.
        self._ask.ask(task, then, key=key, light=True, progress=lambda news: self._board.progress(job, news))

    def forget(self, *keys: str) -> None:
        """Drop the questions with these keys."""
        for key in keys:
            self._ask.drop(key)

    # ------------------------------------------------------------ deeds

    def do(
        self,
        job: int,
        work: Callable[[Run], T],
        done: Callable[[T], None],
        news: Callable[[Sequence[News]], None] = lambda _news: None,
        *,
        ended: Callable[[], None] = lambda: None,
        quiet: bool = False,
        background: bool = False,
    ) -> int:
        """Queue a deed; returns the job.

        Args:
            job: that shows it.
            work: what to do, on the lane's thread.
            done: gets its result, on the owner's thread; ends the job.
            news: gets what the workers tell.
            ended: called when it was cancelled or failed.
            quiet: figures are measured; heavy questions wait meanwhile.
            background: gives way to deeds that somebody waits for.
        """
        self._submit(self._do, job, work, done, news, ended=ended, quiet=quiet, background=background)
        return job

    def file(self, kind: Kind, title: str, work: Callable[[Run], T], done: Callable[[T], None]) -> int:
        """Queue work on files; returns the job. It ends the job itself."""
        job = self._board.add_job(kind, title)

        def finished(result: T) -> None:
            self._board.end_job(job, "done", "Done")
            done(result)

        self._submit(self._files, job, work, finished, lambda _news: None)
        return job

    def file_quietly(
        self, work: Callable[[], None], failed: Callable[[Failure], None] = lambda _failure: None
    ) -> None:
        """Queue quick work on files, in order with the others, that is no job to show."""
        self._files.submit(
            Deed(
                id=0,
                work=lambda _run: work(),
                started=lambda: None,
                news=lambda _news: None,
                done=lambda _result: None,
                failed=failed,
                cancelled=lambda: None,
            )
        )

    def _submit(
        self,
        lane: DoLane,
        job: int,
        work: Callable[[Run], T],
        done: Callable[[T], None],
        news: Callable[[Sequence[News]], None],
        *,
        ended: Callable[[], None] = lambda: None,
        quiet: bool = False,
        background: bool = False,
    ) -> None:
        page, board = self._page, self._board
        self._deeds[job] = lane

        def on_news(items: Sequence[News]) -> None:
            for item in items:
                if isinstance(item, Progressed):
                    board.progress(job, item)
            if page == self._page:
                news(items)

        def on_done(result: T) -> None:
            if page == self._page:
                done(result)
            else:
                board.end_job(job, "cancelled", "Its project was closed")

        def on_failed(failure: Failure) -> None:
            board.fail_job(job, failure)
            if page == self._page:
                ended()

        def on_cancelled() -> None:
            board.end_job(job, "cancelled", "Cancelled")
            if page == self._page:
                ended()

        lane.submit(
            Deed(
                id=job,
                work=work,
                started=lambda: board.start_job(job),
                news=on_news,
                done=on_done,
                failed=on_failed,
                cancelled=on_cancelled,
                postponed=lambda: board.postpone_job(job),
                quiet=quiet,
                background=background,
            )
        )

    # ------------------------------------------------------------ ending

    def cancel(self, job_id: int) -> None:
        """Ask a job to stop; shown at once."""
        job = self._board.view.job(job_id)
        if job is None or not job.active:
            return
        if job_id in self._questions:
            self._ask.drop(self._questions.pop(job_id))
            self._board.end_job(job_id, "cancelled", "Cancelled")
        elif self._deeds[job_id].cancel(job_id):
            self._board.end_job(job_id, "cancelled", "Cancelled before it began")
        else:
            self._board.update_job(job_id, state="cancelling", words="Stopping", paused=False)

    def finish(self, job_id: int) -> None:
        """Ask a running job to end soon and keep the best so far."""
        job = self._board.view.job(job_id)
        if job is not None and job.state == "running" and job_id in self._deeds:
            self._deeds[job_id].finish(job_id)
            self._board.update_job(job_id, words="Finishing with the best so far", paused=False)

    def pause(self, job_id: int, *, on: bool) -> None:
        """Let a running job stand still, or go on."""
        job = self._board.view.job(job_id)
        if job is not None and job.state == "running" and job_id in self._deeds:
            self._deeds[job_id].pause(job_id, on=on)
            self._board.update_job(job_id, paused=on, eta_s=None)

    def cancel_all(self) -> None:
        """Ask all jobs to stop."""
        for job in self._board.view.jobs:
            self.cancel(job.id)

    def turn_page(self) -> None:
        """Another project is shown: stop the jobs of the one before and drop what they still bring."""
        self.cancel_all()
        self._page += 1

    def close(self) -> None:
        """End all workers."""
        for lane in (self._do, self._files, self._ask):
            lane.close()
