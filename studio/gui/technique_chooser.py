"""A choice among techniques, its summary and its form: what the scan and the training dialogs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec
from PySide6.QtCore import Signal
from PySide6.QtWidgets import QVBoxLayout, QWidget

from studio.gui.controls import Combo
from studio.gui.forms import Form
from studio.gui.widgets import label
from studio.records.steps import AnySettings, Settings


class TechniqueChooser(QWidget):
    """One technique of several, with its settings.

    Signals:
        changed: another technique was chosen, or a setting edited.
    """

    changed = Signal()

    def __init__(self, kinds: Sequence[type[Settings]], name: str) -> None:
        super().__init__()
        self._kinds = tuple(kinds)
        self._settings: dict[type[Settings], Settings] = {kind: kind() for kind in self._kinds}
        self._forms: dict[type[Settings], Form] = {}
        self.box = Combo()
        for kind in self._kinds:
            self.box.addItem(kind.title, kind)
        self.box.setAccessibleName(name)
        self._summary = label(role="dim", wrap=True)
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(12)
        self._column.addWidget(self.box)
        self._column.addWidget(self._summary)
        self.box.currentIndexChanged.connect(lambda _row: self._show())
        self._show()

    @property
    def kind(self) -> type[Settings]:
        """The technique that is chosen."""
        return self._kinds[max(0, self.box.currentIndex())]

    @property
    def settings(self) -> AnySettings:
        """What was chosen."""
        return cast("AnySettings", self._settings[self.kind])

    def choose(self, kind: type[Settings]) -> None:
        """Choose a technique."""
        self.box.setCurrentIndex(self._kinds.index(kind))

    def _show(self) -> None:
        kind = self.kind
        self.box.setToolTip(kind.summary)
        self._summary.setText(kind.summary)
        for other, form in self._forms.items():
            form.setVisible(other is kind)
        if kind not in self._forms:
            form = self._forms[kind] = Form(kind)
            form.edited.connect(lambda name, value: self._edit(kind, name, value))
            form.show_records([self._settings[kind]])
            self._column.addWidget(form)
        self.changed.emit()

    def _edit(self, kind: type[Settings], name: str, value: object) -> None:
        self._settings[kind] = msgspec.structs.replace(self._settings[kind], **{name: value})
        self._forms[kind].show_records([self._settings[kind]])
        self.changed.emit()
