"""Training the whole model: after what is staged, or alone, as a step of the next version."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QHBoxLayout, QVBoxLayout, QWidget

from studio.app.session import Session
from studio.gui.technique_chooser import TechniqueChooser
from studio.gui.widgets import button, label
from studio.records.steps import SETTINGS, Settings

TRAINABLE: tuple[type[Settings], ...] = tuple(kind for kind in SETTINGS if kind.slot == "train")


class TrainDialog(QDialog):
    """Asks how to train, and what with.

    Args:
        compress: carries out what is staged.
    """

    def __init__(self, session: Session, compress: Callable[[], object], parent: QWidget) -> None:
        super().__init__(parent)
        self._session, self._compress = session, compress
        self.setWindowTitle("Fine-tune")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setMinimumWidth(440)
        self.chooser = TechniqueChooser(TRAINABLE, "How to train")
        self._data = label(role="dim", wrap=True)
        self._order = label(role="dim", wrap=True)
        self.stage = button(
            "Stage only", self._stage, tip="Make it part of the next compression, to start later"
        )
        self.start = button(
            "Train now", self._start, role="primary", tip="Start in the background; it can be cancelled"
        )
        self.start.setDefault(True)
        column = QVBoxLayout(self)
        column.setContentsMargins(20, 20, 20, 16)
        column.setSpacing(12)
        column.addWidget(self.chooser)
        column.addWidget(self._data)
        column.addWidget(self._order)
        row = QHBoxLayout()
        row.addStretch(1)
        row.addWidget(button("Cancel", self.reject, tip="Close without training"))
        row.addWidget(self.stage)
        row.addWidget(self.start)
        column.addLayout(row)
        summary = session.view.project.calibration_summary if session.view.project else None
        unlabelled = [kind for kind in TRAINABLE if kind.needs != "labels"]
        if unlabelled and not (summary and summary.labelled):
            self.chooser.choose(unlabelled[0])
        self.chooser.changed.connect(self._show)
        self._show()

    def _show(self) -> None:
        project = self._session.view.project
        summary = project.calibration_summary if project else None
        needs = self.chooser.kind.needs
        words, ready = "Trains on random values: no calibration data is chosen.", needs == "nothing"
        if summary is not None:
            labels = f", {summary.labelled} with labels" if summary.labelled else ", without labels"
            words, ready = f"Trains on the calibration data: {summary.description}{labels}.", True
            if needs == "labels" and not summary.labelled:
                words, ready = (
                    f"Needs labels, and {summary.description} has none. Distilling needs none.",
                    False,
                )
        elif needs != "nothing":
            words = "Needs samples: choose calibration data with Data at the upper right."
        self._data.setText(words)
        staged = (
            [step.settings for step in project.steps() if step.settings.slot != "train"] if project else []
        )
        before = [s.chip for s in staged if s.slot != "quantize"]
        after = [s.chip for s in staged if s.slot == "quantize"]
        lines = []
        if before:
            lines.append(f"Staged before it: {', '.join(before)}.")
        if after:
            lines.append(f"Staged after it: {', '.join(after)}.")
        self._order.setText(" ".join(lines))
        self._order.setVisible(bool(lines))
        self.start.setEnabled(ready)
        self.stage.setEnabled(ready)

    def _stage(self) -> None:
        project = self._session.view.project
        version = project.current if project else None
        if version is not None:
            names = [layer.name for layer in version.layers if not layer.untreatable]
            self._session.set_treatment(names, "train", self.chooser.settings)
        self.accept()

    def _start(self) -> None:
        self._stage()
        self._compress()
