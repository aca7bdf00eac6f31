"""A form from the fields of a record: the window knows no technique by name.

Every field becomes a control by its type and its `Meta` (title, description, bounds, unit,
choices, advanced).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QGridLayout, QWidget

from studio.gui.controls import CONTROLS, Control
from studio.gui.form_fields import Field, fields_of
from studio.gui.widgets import button, label
from studio.records.base import Record

LABEL_WIDTH = 108


class Form(QWidget):
    """Controls for the fields of one kind of record.

    Signals:
        edited: (field name, value) after the user changed a field.
    """

    edited = Signal(str, object)

    def __init__(
        self, kind: type[Record], *, skip: Sequence[str] = (), parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.kind = kind
        self._rows: dict[str, tuple[Field, Control, QWidget]] = {}
        self._values: dict[str, tuple[Any, ...]] = {}  # shown, by field
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(8)
        self._grid.setVerticalSpacing(8)
        self._grid.setColumnMinimumWidth(0, LABEL_WIDTH)
        self._grid.setColumnStretch(1, 1)
        self._more = button(
            "Advanced", self._toggle_advanced, role="link", tip="Show settings that seldom matter"
        )
        self._advanced_shown = False
        fields = [f for f in fields_of(kind) if f.name not in skip]
        for one in [f for f in fields if not f.advanced] + [f for f in fields if f.advanced]:
            self._add(one)
        self._more.setVisible(any(f.advanced for f in fields))
        self._grid.addWidget(self._more, self._grid.rowCount(), 0, 1, 2, Qt.AlignmentFlag.AlignLeft)
        self._show_rows()

    def show_records(self, records: Sequence[Record]) -> None:
        """Show the values of one record, or what several have in common."""
        self._values = {name: tuple(dict.fromkeys(getattr(r, name) for r in records)) for name in self._rows}
        for name, (_, control, _) in self._rows.items():
            control.show(self._values[name])
        self._show_rows()

    def control(self, name: str) -> Control:
        """The control of one field."""
        return self._rows[name][1]

    def _add(self, one: Field) -> None:
        control = CONTROLS[one.kind](one)
        title = label(one.title, "dim", wrap=True)
        title.setToolTip(one.tip)
        title.setBuddy(control.widget)
        control.widget.setAccessibleName(one.title)
        control.widget.setToolTip(one.tip or one.title)
        control.edited.connect(lambda value, name=one.name: self.edited.emit(name, value))
        row = self._grid.rowCount()
        self._grid.addWidget(title, row, 0)
        self._grid.addWidget(control.whole, row, 1)
        self._rows[one.name] = (one, control, title)

    def _show_rows(self) -> None:
        for one, control, title in self._rows.values():
            fits = all(any(v in wanted for v in self._values.get(name, wanted)) for name, wanted in one.when)
            shown = fits and (self._advanced_shown or not one.advanced)
            title.setVisible(shown)
            control.whole.setVisible(shown)

    def _toggle_advanced(self) -> None:
        self._advanced_shown = not self._advanced_shown
        self._more.setText("Fewer settings" if self._advanced_shown else "Advanced")
        self._show_rows()
