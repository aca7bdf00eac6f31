"""The welcome page: a drop zone, the sample, recent files, and work that a crash left unsaved."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QProgressBar, QVBoxLayout, QWidget

from studio.app.home import Recoverable
from studio.app.jobs import Job
from studio.app.session import Session
from studio.app.view import View
from studio.gui.theme import Theme
from studio.gui.widgets import Elided, button, caps, clear, label

RECENT_SHOWN = 6
WIDTH = 560


class Welcome(QWidget):
    """What the window shows while no model is open.

    Signals:
        open_asked: the user wants to choose a file.
        sample_asked: the user wants the bundled sample.
        path_chosen: one of the recent files.
    """

    open_asked = Signal()
    sample_asked = Signal()
    path_chosen = Signal(str)
    recovery_chosen = Signal(object)
    recovery_refused = Signal(object)

    def __init__(self, session: Session, theme: Theme) -> None:
        super().__init__()
        self._session, self._theme = session, theme
        self.setAccessibleName("Welcome")
        self.zone = DropZone(theme)
        self.zone.clicked.connect(self.open_asked)
        self.opening = Opening(session)
        self._recent, self._recovered = QVBoxLayout(), QVBoxLayout()
        for column in (self._recent, self._recovered):
            column.setSpacing(2)
        inside = QWidget()
        inside.setFixedWidth(WIDTH)
        column = QVBoxLayout(inside)
        column.setSpacing(20)
        title = label("Featherweight", "figure")
        column.addWidget(title)
        column.addWidget(
            label(
                "See what every layer of a trained network costs, choose what to compress, and measure what it does.",
                "dim",
                wrap=True,
            )
        )
        column.addLayout(self._recovered)
        column.addWidget(self.zone)
        column.addWidget(self.opening)
        row = QHBoxLayout()
        self.sample = button(
            "Open the sample",
            self.sample_asked.emit,
            role="primary",
            tip="A small network for pictures of clothes, with the data to compress and measure it",
        )
        self.open = button("Open…", self.open_asked.emit, tip="Open an ONNX model or a project (Ctrl+O)")
        row.addWidget(self.sample)
        row.addWidget(self.open)
        row.addStretch(1)
        column.addLayout(row)
        column.addLayout(self._recent)
        outer = QVBoxLayout(self)
        outer.addStretch(2)
        outer.addWidget(inside, 0, Qt.AlignmentFlag.AlignHCenter)
        outer.addStretch(3)
        self._shown: tuple[str, ...] | None = None
        self.refresh(session.view)

    def refresh(self, view: View) -> None:
        """Show the recent files as they are now, and what is being opened."""
        self.opening.show_job(next((job for job in view.jobs if job.kind == "open" and job.active), None))
        paths = self._session.recent[:RECENT_SHOWN]
        if paths == self._shown:
            return
        self._shown = paths
        clear(self._recent)
        if paths:
            self._recent.addWidget(caps("Recent", self._theme))
        for path in paths:
            self._recent.addWidget(self._recent_row(path))

    def show_recoverable(self, found: tuple[Recoverable, ...]) -> None:
        """Offer what a crash left unsaved."""
        clear(self._recovered)
        for one in found:
            row = QHBoxLayout()
            when = datetime.fromtimestamp(one.when).astimezone().strftime("%d %B, %H:%M")
            row.addWidget(label(f"Unsaved work on {one.name} from {when}", "caution"), 1)
            row.addWidget(button("Recover", partial(self.recovery_chosen.emit, one), tip="Open it as it was"))
            row.addWidget(
                button("Discard", partial(self.recovery_refused.emit, one), tip="Remove it for good")
            )
            self._recovered.addLayout(row)

    def _recent_row(self, path: str) -> QWidget:
        row = QWidget()
        line = QHBoxLayout(row)
        line.setContentsMargins(0, 0, 0, 0)
        name = button(Path(path).name, lambda: self.path_chosen.emit(path), role="link", tip=path)
        folder = Elided(str(Path(path).parent), "dim")
        line.addWidget(name)
        line.addWidget(folder, 1)
        return row


class Opening(QWidget):
    """What is being opened, how far it is, and the button that stops it."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session, self._job = session, 0
        self._words = label(role="dim")
        self._bar = QProgressBar()
        self._bar.setTextVisible(False)
        self._bar.setAccessibleName("Progress of opening")
        cancel = button("Cancel", lambda: session.cancel(self._job), role="link", tip="Stop opening")
        line = QHBoxLayout()
        line.addWidget(self._words, 1)
        line.addWidget(cancel)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(line)
        column.addWidget(self._bar)

    def show_job(self, job: Job | None) -> None:
        """Show a job; None hides this."""
        self.setVisible(job is not None)
        if job is not None:
            self._job = job.id
            self._words.setText(f"{job.title}: {job.words.lower()}" if job.words else job.title)
            self._bar.setRange(0, 1000 if job.share else 0)  # without a share: it moves to and fro
            self._bar.setValue(round(job.share * 1000))


class DropZone(QFrame):
    """Where a file can be dropped; a click or Enter chooses one.

    The window takes the drops themselves: they are welcome everywhere.
    """

    clicked = Signal()

    def __init__(self, theme: Theme) -> None:
        super().__init__()
        self.setObjectName("dropZone")
        self.setFixedHeight(132)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAccessibleName("Drop an ONNX model here, or press Enter to choose one")
        self.setToolTip("Drop a model anywhere in the window, or click to choose one")
        self._icon = label()
        self._icon.setAlignment(Qt.AlignmentFlag.AlignCenter)
        words = label("Drop an ONNX model here", "strong")
        words.setAlignment(Qt.AlignmentFlag.AlignCenter)
        column = QVBoxLayout(self)
        column.addStretch(1)
        column.addWidget(self._icon)
        column.addWidget(words)
        column.addStretch(1)
        self._theme = theme
        theme.changed.connect(self._recolor)
        self._recolor()

    def set_hover(self, hover: bool) -> None:
        """Show that a file hangs over the window."""
        self.setProperty("hover", hover)
        self.style().unpolish(self)
        self.style().polish(self)

    def mouseReleaseEvent(self, event: object) -> None:
        """A click chooses a file."""
        del event
        self.clicked.emit()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Enter and Space do as a click does."""
        if event.key() in {Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space}:
            self.clicked.emit()
        else:
            super().keyPressEvent(event)

    def _recolor(self) -> None:
        self._icon.setPixmap(self._theme.icon("ph.download-simple", "dim").pixmap(28, 28))
