"""Jobs: what runs and waits, with progress, time left and cancel; below, what happened."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QScrollArea, QVBoxLayout, QWidget

from studio.app.jobs import Job
from studio.app.session import Session
from studio.app.view import View
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from studio.gui.widgets import Elided, button, label, watch

ACTIVE = ("waiting", "running", "cancelling")
LOG_SHOWN = 200
FINISHED_SHOWN = 1  # a failed job stays in sight until the next one


class JobsPanel(QWidget):
    """The list of jobs and the log.

    Signals:
        details_asked: with the id of a failed job.
    """

    details_asked = Signal(int)

    def __init__(
        self, session: Session, selection: Selection, theme: Theme, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        del selection  # jobs are of the whole project
        self.setObjectName("panel")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self._session = session
        self._rows: dict[int, JobRow] = {}
        self.count = label("", "caps")
        self._jobs = QVBoxLayout()
        self._jobs.setContentsMargins(0, 0, 0, 0)
        self._jobs.setSpacing(10)
        self._idle = label(
            "Nothing is running. What you start will show its progress here.", "dim", wrap=True
        )
        self._log = QLabel()
        self._log.setProperty("role", "small")
        self._log.setWordWrap(True)
        self._log.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._log.setTextFormat(Qt.TextFormat.PlainText)
        self._log.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._log.setAccessibleName("Log")
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(12, 4, 12, 8)
        column.setSpacing(12)
        column.addLayout(self._jobs)
        column.addWidget(self._idle)
        column.addWidget(self._log)
        column.addStretch(1)
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setWidget(inside)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setAccessibleName("Jobs and log")
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(area)
        theme.changed.connect(self.update)
        watch(self, session, lambda _old, new: self._show(new))
        self._show(session.view)

    def sizeHint(self) -> QSize:
        """A quarter of the bottom row."""
        return QSize(320, 200)

    def _show(self, view: View) -> None:
        active = [job for job in view.jobs if job.state in ACTIVE]
        failed = [job for job in view.jobs[-1:] if job.state == "failed"]
        shown = [*active, *failed]
        wanted = {job.id for job in shown}
        for gone in set(self._rows) - wanted:
            ended = self._rows.pop(gone)
            ended.hide()
            ended.deleteLater()
        for place, job in enumerate(shown):
            row = self._rows.get(job.id)
            if row is None:
                row = self._rows[job.id] = JobRow(job.id, self._session, self.details_asked.emit)
                self._jobs.insertWidget(place, row)
            live = view.live
            row.show_job(job, training=live is not None and live.job == job.id and bool(live.training))
        running = sum(job.state != "waiting" for job in active)
        waiting = len(active) - running
        words = [f"{running} RUNNING"] if running else []
        words += [f"{waiting} QUEUED"] if waiting else []
        self.count.setText(" · ".join(words))
        self._idle.setVisible(not shown)
        lines = [f"{line.when} {line.text}" for line in reversed(view.log[-LOG_SHOWN:])]
        text = "\n".join(lines)
        if text != self._log.text():
            self._log.setText(text)


class JobRow(QWidget):
    """One job."""

    def __init__(self, job_id: int, session: Session, details: Callable[[int], object]) -> None:
        super().__init__()
        self._title, self._words = Elided(), Elided(role="small")
        self._left = label("", "dim")
        self._bar = QProgressBar()
        self._bar.setRange(0, 1000)
        self._bar.setTextVisible(False)
        self._finish = button(
            "Finish now",
            lambda: session.finish(job_id),
            role="link",
            tip="End training here and keep the best so far",
        )
        self._pause = button(
            "Pause", lambda: session.pause(job_id, on=True), role="link", tip="Let training stand still"
        )
        self._resume = button(
            "Resume", lambda: session.pause(job_id, on=False), role="link", tip="Go on where it stood"
        )
        self._cancel = button(
            "Cancel", lambda: session.cancel(job_id), role="link", tip="Stop this job (Shift+F5 stops all)"
        )
        self._details = button(
            "Details", lambda: details(job_id), role="link", tip="What happened, with details to copy"
        )
        top = QHBoxLayout()
        top.setSpacing(4)
        top.addWidget(self._title, 1)
        top.addWidget(self._left)
        top.addWidget(self._pause)
        top.addWidget(self._resume)
        top.addWidget(self._finish)
        top.addWidget(self._cancel)
        top.addWidget(self._details)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addLayout(top)
        column.addWidget(self._bar)
        column.addWidget(self._words)

    def show_job(self, job: Job, *, training: bool = False) -> None:
        """Show the job as it is now; training can be ended early, keeping the best so far."""
        going = training and job.state == "running"
        self._finish.setVisible(going)
        self._pause.setVisible(going and not job.paused)
        self._resume.setVisible(going and job.paused)
        self._title.set_text(job.title)
        self._left.setText(left(job))
        self._bar.setValue(round(job.share * 1000))
        self._bar.setAccessibleName(f"Progress of {job.title}")
        self._bar.setVisible(job.state in ACTIVE)
        self._cancel.setVisible(job.state in {"waiting", "running"})
        self._details.setVisible(job.state == "failed")
        words = job.error.what if job.error else job.words
        self._words.set_text(words)
        self._words.setVisible(bool(words))


def left(job: Job) -> str:
    """How far a job is, in words: '64 % · 0:06 left', 'waiting'."""
    match job.state:
        case "waiting":
            return "waiting"
        case "cancelling":
            return "stopping…"
        case "failed":
            return "failed"
        case "running":
            share = f"{job.share * 100:.0f} %"
            if job.paused:
                return f"{share} · paused"
            if job.eta_s is None:
                return share
            minutes, seconds = divmod(max(0, round(job.eta_s)), 60)
            return f"{share} · {minutes}:{seconds:02d} left"
        case _:
            return ""
