"""The treatment of the selected layers: a choice and a form per slot, and what would come of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QComboBox, QGridLayout, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from studio.app.session import Session
from studio.app.view import View
from studio.gui.controls import MIXED, Combo
from studio.gui.forms import LABEL_WIDTH, Form
from studio.gui.inspector.outcome import Outcome
from studio.gui.inspector.sections import Page
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from studio.gui.widgets import EmptyState, button, label, rule, short_name, watch
from studio.records.steps import SETTINGS, AnySettings, Settings, Slot

# The order in which people choose; the chain's own order is records.steps.SLOTS.
# Training is of the whole model and has a dialog of its own.
ORDER: tuple[Slot, ...] = ("quantize", "prune", "factorize", "sparsify")
SLOT_WORDS: dict[Slot, str] = {
    "quantize": "Quantize",
    "prune": "Prune",
    "factorize": "Factorise",
    "sparsify": "Sparsify",
}
NAMES_SHOWN = 3
NAMES_IN_TIP = 30


def techniques_of(slot: Slot) -> tuple[type[Settings], ...]:
    """Every settings record of one slot, in the catalogue's order."""
    return tuple(kind for kind in SETTINGS if kind.slot == slot)


class TreatmentPage(Page):
    """What the selected layers are to get.

    Signals:
        data_asked: the user wants to choose calibration data.
        all_asked: the user wants every layer selected.
    """

    data_asked = Signal()
    all_asked = Signal()

    def __init__(self, session: Session, selection: Selection, theme: Theme) -> None:
        super().__init__("Treatment")
        self._session, self._selection = session, selection
        self._empty = EmptyState(
            "Select layers in the table or in the graph to choose what they get.",
            "Select all layers",
            self.all_asked.emit,
            "Select every layer that can be treated",
        )
        self._heading = label(role="strong")
        self._names = label(role="dim", wrap=True)
        self._names.setTextFormat(Qt.TextFormat.PlainText)
        self._body = QWidget()
        column = QVBoxLayout(self._body)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(8)
        column.addWidget(self._heading)
        column.addWidget(self._names)
        self.slots = {slot: SlotForm(slot, self._edit) for slot in ORDER if techniques_of(slot)}
        for form in self.slots.values():
            column.addWidget(form)
        self._keep = button(
            "Keep as it is",
            lambda: session.clear_treatments(selection.layers),
            role="link",
            tip="Take the treatments of the selected layers away",
        )
        row = QHBoxLayout()
        row.addStretch(1)
        row.addWidget(self._keep)
        column.addLayout(row)
        column.addWidget(rule())
        self.outcome = Outcome(session, selection, theme)
        self.outcome.data_asked.connect(self.data_asked)
        column.addWidget(self.outcome)
        self.column.addWidget(self._empty, 1)
        self.column.addWidget(self._body)
        self.column.addStretch(1)
        watch(self, session, self._view_changed)
        selection.changed.connect(lambda _source: self._show())
        self._show()

    def _view_changed(self, old: View, new: View) -> None:
        before, now = old.project, new.project
        if before is now:
            return
        same = before is not None and now is not None and before.treatments == now.treatments
        if not same or (before and before.head) != (now and now.head):
            self._show()

    def _show(self) -> None:
        layers = self._selection.layers
        project = self._session.view.project
        shown = bool(layers and project)
        self._empty.setVisible(not shown)
        self._body.setVisible(shown)
        if not shown or project is None:
            return
        count = len(layers)
        self._heading.setText("1 layer selected" if count == 1 else f"{count} layers selected")
        names = ", ".join(short_name(name, 40) for name in layers[:NAMES_SHOWN])
        self._names.setToolTip("\n".join(layers[:NAMES_IN_TIP]))
        self._names.setText(f"{names} and {count - NAMES_SHOWN} more" if count > NAMES_SHOWN else names)
        treatments = dict(project.treatments)
        chosen = [treatments[layer] for layer in layers if layer in treatments]
        for slot, form in self.slots.items():
            settings = [treatment.of(slot) for treatment in chosen]
            if len(chosen) < count:
                settings.append(None)
            form.show_settings(settings)
        self._keep.setEnabled(bool(chosen))

    def _edit(self, slot: Slot, change: Callable[[AnySettings | None], AnySettings | None]) -> None:
        """Apply a change to every selected layer's settings of one slot, as one decision."""
        project = self._session.view.project
        if project is None:
            return
        treatments = dict(project.treatments)
        groups: dict[AnySettings | None, list[str]] = {}
        for layer in self._selection.layers:
            treatment = treatments.get(layer)
            groups.setdefault(treatment.of(slot) if treatment else None, []).append(layer)
        self._session.set_treatments(
            slot, [(layers, change(settings)) for settings, layers in groups.items()]
        )


class SlotForm(QWidget):
    """One slot: which technique, and its settings below.

    Args:
        edit: called with the slot and a function from a layer's settings to its new ones.
    """

    def __init__(
        self, slot: Slot, edit: Callable[[Slot, Callable[[AnySettings | None], AnySettings | None]], None]
    ) -> None:
        super().__init__()
        self.slot, self._edit = slot, edit
        self._kinds = techniques_of(slot)
        self.box = Combo()
        self.box.addItem("Keep as it is" if slot == "quantize" else "None", None)
        for kind in self._kinds:
            self.box.addItem(kind.title, kind)
            self.box.setItemData(self.box.count() - 1, kind.summary, Qt.ItemDataRole.ToolTipRole)
        self.box.setPlaceholderText(MIXED)
        self.box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.box.setMinimumContentsLength(10)
        self.box.setAccessibleName(SLOT_WORDS[slot])
        self.box.activated.connect(self._chosen)
        title = QLabel(SLOT_WORDS[slot])
        title.setProperty("role", "dim")
        title.setBuddy(self.box)
        head = QGridLayout()
        head.setHorizontalSpacing(8)
        head.setColumnMinimumWidth(0, LABEL_WIDTH)
        head.setColumnStretch(1, 1)
        head.addWidget(title, 0, 0)
        head.addWidget(self.box, 0, 1)
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(8)
        self._column.addLayout(head)
        self._forms: dict[type[Settings], Form] = {}

    @property
    def form(self) -> Form | None:
        """The form on screen, if a technique is chosen."""
        return next((form for form in self._forms.values() if not form.isHidden()), None)

    def show_settings(self, settings: Sequence[AnySettings | None]) -> None:
        """Show what the selected layers have in this slot."""
        kinds = {type(s) if s is not None else None for s in settings}
        kind = next(iter(kinds)) if len(kinds) == 1 else None
        # The row is found by identity: Qt would compare classes by value and find none.
        rows = [row for row in range(self.box.count()) if self.box.itemData(row) is kind]
        self.box.setCurrentIndex(rows[0] if len(kinds) == 1 else -1)
        self.box.setToolTip(
            kind.summary if kind is not None else f"What to do in the slot '{SLOT_WORDS[self.slot]}'"
        )
        for other, form in self._forms.items():
            form.setVisible(other is kind)
        if kind is not None:
            self._form_of(kind).show_records([s for s in settings if s is not None])

    def _form_of(self, kind: type[Settings]) -> Form:
        if kind not in self._forms:
            form = self._forms[kind] = Form(kind)
            form.edited.connect(self._field_edited)
            self._column.addWidget(form)
        self._forms[kind].setVisible(True)
        return self._forms[kind]

    def _chosen(self, row: int) -> None:
        kind = self.box.itemData(row)
        fresh = kind() if kind is not None else None
        # Layers that have this technique already keep their own settings.
        self._edit(self.slot, lambda now: now if kind is not None and isinstance(now, kind) else fresh)

    def _field_edited(self, name: str, value: object) -> None:
        self._edit(
            self.slot, lambda now: None if now is None else msgspec.structs.replace(now, **{name: value})
        )
