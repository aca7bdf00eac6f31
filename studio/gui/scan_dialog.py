"""Which treatment to scan every layer with, and which layers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QHBoxLayout, QRadioButton, QVBoxLayout, QWidget

from studio.app.session import Session
from studio.gui.forms import Combo, Form
from studio.gui.widgets import button, label
from studio.records.steps import SETTINGS, AnySettings, Settings

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
        self._settings: dict[type[Settings], Settings] = {kind: kind() for kind in SCANNABLE}
        self.box = Combo()
        for kind in SCANNABLE:
            self.box.addItem(kind.title, kind)
        self.box.setAccessibleName("Treatment to scan with")
        self.box.currentIndexChanged.connect(lambda _row: self._show())
        self._summary = label(role="dim", wrap=True)
        self._forms: dict[type[Settings], Form] = {}
        self._form_place = QVBoxLayout()
        self.all_layers = QRadioButton("All layers")
        self.chosen_layers = QRadioButton(f"The {len(self._selected)} selected layers")
        for radio in (self.all_layers, self.chosen_layers):
            radio.setToolTip("Which layers are treated, one at a time")
        self.chosen_layers.setEnabled(bool(self._selected))
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
        column.addWidget(self.box)
        column.addWidget(self._summary)
        column.addLayout(self._form_place)
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
        preferred = [
            row
            for row, kind in enumerate(SCANNABLE)
            if kind.needs == "calibration" and kind.slot == "quantize"
        ]
        project = session.view.project
        if preferred and project and project.calibration is not None:
            self.box.setCurrentIndex(preferred[0])
        self._show()

    @property
    def settings(self) -> AnySettings:
        """What was chosen."""
        return self._settings[self._kind]  # type: ignore[return-value]  # SETTINGS lists the members of AnySettings

    @property
    def _kind(self) -> type[Settings]:
        return SCANNABLE[max(0, self.box.currentIndex())]

    def _show(self) -> None:
        kind = self._kind
        self._summary.setText(kind.summary)
        for other, form in self._forms.items():
            form.setVisible(other is kind)
        if kind not in self._forms:
            form = self._forms[kind] = Form(kind)
            form.edited.connect(lambda name, value, kind=kind: self._edit(kind, name, value))
            form.show_records([self._settings[kind]])
            self._form_place.addWidget(form)
        project = self._session.view.project
        version = project.current if project else None
        total = len(version.layers) if version else 0
        self.all_layers.setText(f"All {total} layers")
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

    def _edit(self, kind: type[Settings], name: str, value: object) -> None:
        self._settings[kind] = msgspec.structs.replace(self._settings[kind], **{name: value})
        self._forms[kind].show_records([self._settings[kind]])

    def _start(self) -> None:
        layers = self._selected if self.chosen_layers.isChecked() else ("*",)
        self.accept()
        self._session.scan(self.settings, layers)
