"""Asks for the details of the current layer, a moment after the selection came to rest."""

from __future__ import annotations

from PySide6.QtCore import QObject, QTimer, Signal

from studio.app.session import Session
from studio.app.view import View
from studio.gui.selection import Selection
from studio.records.steps import AnySettings
from studio.records.task import Answer, LayerDetail

REST_MS = 60


class DetailSource(QObject):
    """The details of the current layer as its staged treatment would leave it.

    Signals:
        changed: `detail`, `asking` or `trouble` is another.
    """

    changed = Signal()

    def __init__(self, session: Session, selection: Selection, parent: QObject) -> None:
        super().__init__(parent)
        self._session, self._selection = session, selection
        self.detail: LayerDetail | None = None
        self.asking = False
        self.trouble = ""
        self._asked: tuple[object, ...] | None = None
        self._turn = 0
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REST_MS)
        self._timer.timeout.connect(self._ask)
        selection.changed.connect(lambda _source: self._timer.start())
        unsubscribe = session.listen(self._view_changed)
        self.destroyed.connect(unsubscribe)

    @property
    def one_of_several(self) -> str:
        """The current layer's name where others are selected, too; '' where it goes without saying."""
        return self._selection.current if len(self._selection.layers) > 1 else ""

    @property
    def settings(self) -> AnySettings | None:
        """The staged settings that change the weights' number, grid or zeros, if any."""
        project = self._session.view.project
        if project is None:
            return None
        treatment = project.treatment_of(self._selection.current)
        return treatment.of("factorize") or treatment.of("quantize") or treatment.of("sparsify")

    @property
    def held_up(self) -> bool:
        """Whether the answer waits for a measurement, which nothing may disturb."""
        return any(
            job.kind in {"measure", "profile"} and job.state == "running" for job in self._session.view.jobs
        )

    def _view_changed(self, old: View, new: View) -> None:
        if old.project is not new.project:
            self._timer.start()

    def _ask(self) -> None:
        layer, project = self._selection.current, self._session.view.project
        current = project.current if project else None
        if project is None or current is None or not layer:
            self._asked, self.detail, self.asking, self.trouble = None, None, False, ""
            self.changed.emit()
            return
        question = (current.digest, layer, self.settings, project.calibration)
        if question == self._asked:
            return
        same_layer = self._asked is not None and self._asked[:2] == question[:2]
        self._asked = question
        self._turn += 1
        turn = self._turn
        self.asking = True
        if not same_layer:  # a newer grid replaces the old one without a flicker
            self.detail = None
        self.changed.emit()
        self._session.describe_layer(layer, self.settings, lambda answer: self._answered(turn, answer))

    def _answered(self, turn: int, answer: Answer) -> None:
        if turn != self._turn:
            return
        self.asking = False
        self.detail = answer if isinstance(answer, LayerDetail) else None
        self.trouble = "" if self.detail else getattr(answer, "why", "") or getattr(answer, "what", "")
        self.changed.emit()
