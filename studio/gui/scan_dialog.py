"""Which treatment to scan every layer with, and which layers."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QHBoxLayout, QRadioButton, QVBoxLayout, QWidget

from studio.app.session import Session
from studio.gui.technique_chooser import TechniqueChooser
from studio.gui.widgets import button, label
from studio.records.steps import SETTINGS, Settings

# What can be done to one layer alone; training is of a whole model.
SCANNABLE: tuple[type[Settings], ...] = tuple(kind for kind in SETTINGS if kind.slot != "train")


class ScanDialog(QDialog):
    """Asks for a technique with its settings, and for all or the selected layers."""

    def __init__(self, session: Session, selected: Sequence[str], parent: QWidget) -> None:
        super().__init__(parent)
        self._session, self._selected = session, tuple(selected)
        self.setWindowTitle("Scan sensitivity")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setMinimumWidth(440)
        self.chooser = TechniqueChooser(SCANNABLE, "Treatment to scan with")
        self.all_layers = QRadioButton("All layers")
        chosen = len(self._selected)
        self.chosen_layers = QRadioButton(
            "The selected layer" if chosen == 1 else f"The {chosen} selected layers"
        )
        for radio in (self.all_layers, self.chosen_layers):
            radio.setToolTip("Which layers are treated, one at a time")
        self.chosen_layers.setVisible(chosen > 0)
        self.all_layers.setChecked(True)
        self._data = label(role="dim", wrap=True)
        column = QVBoxLayout(self)
        column.setContentsMargins(20, 20, 20, 16)
        column.setSpacing(12)
        column.addWidget(
            label(
                "Every layer is treated alone, and the model's output is compared with the untreated one's.",
                "",
                wrap=True,
            )
        )
        column.addWidget(self.chooser)
        column.addWidget(self.all_layers)
        column.addWidget(self.chosen_layers)
        column.addWidget(self._data)
        row = QHBoxLayout()
        row.addStretch(1)
        row.addWidget(button("Cancel", self.reject, tip="Close without scanning"))
        self.start = button(
            "", self._start, role="primary", tip="Scan in the background; it can be cancelled"
        )
        self.start.setDefault(True)
        row.addWidget(self.start)
        column.addLayout(row)
        for radio in (self.all_layers, self.chosen_layers):
            radio.toggled.connect(lambda _on: self._show())
        preferred = [kind for kind in SCANNABLE if kind.needs == "calibration" and kind.slot == "quantize"]
        project = session.view.project
        if preferred and project and project.calibration is not None:
            self.chooser.choose(preferred[0])
        self.chooser.changed.connect(self._show)
        self._show()

    def _show(self) -> None:
        kind = self.chooser.kind
        project = self._session.view.project
        version = project.current if project else None
        total = len(version.layers) if version else 0
        self.all_layers.setText("The one layer" if total == 1 else f"All {total:,} layers")
        count = len(self._selected) if self.chosen_layers.isChecked() else total
        self.start.setText(f"Scan {count} layer{'' if count == 1 else 's'}")
        self.start.setAccessibleName(self.start.text())
        summary = project.calibration_summary if project else None
        words = (
            f"Compared on {summary.description}."
            if summary
            else "No calibration data is chosen: random inputs are used."
        )
        if project and project.calibration is None and kind.needs == "calibration":
            words = "This treatment needs calibration data: choose some with Data at the upper right."
        self._data.setText(words)
        self.start.setEnabled(not (project and project.calibration is None and kind.needs == "calibration"))

    def _start(self) -> None:
        layers = self._selected if self.chosen_layers.isChecked() else ("*",)
        self.accept()
        self._session.scan(self.chooser.settings, layers)
