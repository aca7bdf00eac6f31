"""A form from the fields of a record: the window knows no technique by name.

Every field becomes a control by its type and its `Meta` (title, description, bounds, unit,
choices, advanced). The type hints are read rather than `msgspec.inspect`, which sorts the values
of a Literal and so loses the order that the record gives them.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtGui import QPaintEvent, QWheelEvent
from PySide6.QtWidgets import (
    QAbstractSpinBox,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QGridLayout,
    QHBoxLayout,
    QLineEdit,
    QSlider,
    QSpinBox,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QWidget,
)

from studio.base.errors import StudioError
from studio.base.units import parse_count
from studio.gui.widgets import button, label
from studio.records.base import Record

R = TypeVar("R", bound=Record)
MIXED = "mixed"
LABEL_WIDTH = 108
SLIDER_STEPS = 100


@dataclass(frozen=True)
class Field:
    """One field of a record, as a form needs it.

    Attributes:
        kind: 'bool', 'choice', 'int', 'float', 'share', 'text', 'texts' or 'numbers'.
        choices: (value, words) in the record's order.
        low / high: bounds, None where there is none.
        optional: None is allowed: not set.
        zero: what 0 means, in words.
    """

    name: str
    kind: str
    title: str
    tip: str = ""
    unit: str = ""
    choices: tuple[tuple[Any, str], ...] = ()
    low: float | None = None
    high: float | None = None
    optional: bool = False
    advanced: bool = False
    zero: str = ""
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()


@dataclass
class _Hint:
    base: Any
    optional: bool = False
    metas: list[msgspec.Meta] = field(default_factory=list)


def _unfold(hint: Any) -> _Hint:
    """A type hint without Annotated and None, with what they said."""
    found = _Hint(hint)
    while True:
        origin = get_origin(found.base)
        if origin is Annotated:
            found.base, *metas = get_args(found.base)
            found.metas += [m for m in metas if isinstance(m, msgspec.Meta)]
        elif origin in {Union, types.UnionType} and type(None) in get_args(found.base):
            found.optional = True
            (found.base,) = [a for a in get_args(found.base) if a is not type(None)]
        else:
            return found


@cache
def fields_of(kind: type[Record]) -> tuple[Field, ...]:
    """The fields of a record that a form can show."""
    hints = get_type_hints(kind, include_extras=True)
    made = []
    for name in kind.__struct_fields__:
        hint = _unfold(hints[name])
        extra: dict[str, Any] = {}
        title, tip, low, high = name.replace("_", " ").capitalize(), "", None, None
        for meta in hint.metas:
            extra |= meta.extra_json_schema or {}
            title, tip = meta.title or title, meta.description or tip
            low = next((v for v in (meta.ge, meta.gt, low) if v is not None), None)
            high = next((v for v in (meta.le, meta.lt, high) if v is not None), None)
        control = _kind(hint.base, extra.get("unit", ""), low, high)
        if control is None:
            continue
        words = extra.get("choices", {})
        values = get_args(hint.base) if control == "choice" else ()
        made.append(
            Field(
                name=name,
                kind=control,
                title=title,
                tip=tip,
                unit="" if control == "share" else extra.get("unit", ""),
                choices=tuple((v, str(words.get(v, words.get(str(v), v)))) for v in values),
                low=low,
                high=high,
                optional=hint.optional,
                advanced=bool(extra.get("advanced")),
                zero=extra.get("zero", ""),
                when=tuple((k, tuple(v)) for k, v in extra.get("when", {}).items()),
            )
        )
    return tuple(made)


def _kind(base: Any, unit: str, low: float | None, high: float | None) -> str | None:
    if base is bool:
        return "bool"
    if get_origin(base) is Literal:
        return "choice"
    if base is float:
        return "share" if unit == "share" and low is not None and high is not None else "float"
    if get_origin(base) is tuple:
        item = get_args(base)[0]
        return {str: "texts", float: "numbers", int: "numbers"}.get(item)
    return {int: "int", str: "text"}.get(base)


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
        self._show_rows({})

    def show_records(self, records: Sequence[Record]) -> None:
        """Show the values of one record, or what several have in common."""
        values = {name: tuple(dict.fromkeys(getattr(r, name) for r in records)) for name in self._rows}
        for name, (_, control, _) in self._rows.items():
            control.show(values[name])
        self._show_rows(values)

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

    def _show_rows(self, values: dict[str, tuple[Any, ...]]) -> None:
        for one, control, title in self._rows.values():
            fits = all(any(v in wanted for v in values.get(name, wanted)) for name, wanted in one.when)
            shown = fits and (self._advanced_shown or not one.advanced)
            title.setVisible(shown)
            control.whole.setVisible(shown)

    def _toggle_advanced(self) -> None:
        self._advanced_shown = not self._advanced_shown
        self._more.setText("Fewer settings" if self._advanced_shown else "Advanced")
        self._show_rows({})


# ------------------------------------------------------------------ controls


class Control(QObject):
    """One field's widget. `show` takes the values of all records shown: one = that value, several = mixed.

    Signals:
        edited: the new value, when the user (never `show`) changed it.
    """

    edited = Signal(object)
    widget: QWidget  # takes the focus
    whole: QWidget  # stands in the form

    def __init__(self, one: Field) -> None:
        super().__init__()
        self.field = one
        self._quiet = False

    def show(self, values: tuple[Any, ...]) -> None:
        """Show a value, or 'mixed'."""
        self._quiet = True
        self._put(values[0] if len(values) == 1 else MIXED, mixed=len(values) != 1)
        self._quiet = False

    def _put(self, value: Any, *, mixed: bool) -> None:
        raise NotImplementedError

    def _say(self, value: Any) -> None:
        if not self._quiet:
            self.edited.emit(value)


class _Check(Control):
    def __init__(self, one: Field) -> None:
        super().__init__(one)
        self.widget = self.whole = self._box = QCheckBox()
        self._box.clicked.connect(self._clicked)

    def _put(self, value: Any, *, mixed: bool) -> None:
        state = Qt.CheckState.Checked if value else Qt.CheckState.Unchecked
        self._box.setCheckState(Qt.CheckState.PartiallyChecked if mixed else state)

    def _clicked(self) -> None:
        self._box.setTristate(False)
        self._say(self._box.isChecked())


class Combo(QComboBox):
    """A combo box that elides long words, and that the wheel does not change while a form is scrolled."""

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw what Qt draws, with the words shortened to the room there is."""
        painter, option = QStylePainter(self), QStyleOptionComboBox()
        self.initStyleOption(option)
        if self.currentIndex() < 0:
            option.currentText = self.placeholderText()
        control, field = QStyle.ComplexControl.CC_ComboBox, QStyle.SubControl.SC_ComboBoxEditField
        room = self.style().subControlRect(control, option, field, self).width() - 4
        option.currentText = self.fontMetrics().elidedText(
            option.currentText, Qt.TextElideMode.ElideRight, room
        )
        painter.drawComplexControl(control, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)

    def wheelEvent(self, event: QWheelEvent) -> None:
        """Let the form scroll unless this box has the focus."""
        if self.hasFocus():
            super().wheelEvent(event)
        else:
            event.ignore()


class _Choice(Control):
    def __init__(self, one: Field) -> None:
        super().__init__(one)
        self.widget = self.whole = self._box = Combo()
        self._box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self._box.setMinimumContentsLength(8)
        self._box.setPlaceholderText(MIXED)
        if one.optional:
            self._box.addItem("Not set", None)
        for value, words in one.choices:
            self._box.addItem(words, value)
            self._box.setItemData(self._box.count() - 1, words, Qt.ItemDataRole.ToolTipRole)
        self._box.activated.connect(lambda row: self._say(self._box.itemData(row)))

    def _put(self, value: Any, *, mixed: bool) -> None:
        rows = [row for row in range(self._box.count()) if self._box.itemData(row) == value]
        self._box.setCurrentIndex(-1 if mixed or not rows else rows[0])


class _Whole(Control):
    def __init__(self, one: Field) -> None:
        super().__init__(one)
        self._box = QSpinBox()
        self.widget = self.whole = self._box
        self._low = int(one.low if one.low is not None else -(2**31) + 2)
        self._box.setRange(self._low, int(one.high if one.high is not None else 2**31 - 1))
        _dress(self._box, one)
        self._box.valueChanged.connect(self._changed)

    def _put(self, value: Any, *, mixed: bool) -> None:
        special = mixed or value is None
        self._box.setMinimum(self._low - 1 if special or self.field.optional else self._low)
        self._box.setSpecialValueText(
            MIXED if mixed else "not set" if self.field.optional else self.field.zero
        )
        self._box.setValue(self._low - 1 if special else int(value))

    def _changed(self, value: int) -> None:
        if value >= self._low:
            self._say(value)
        elif self.field.optional:
            self._say(None)


class _Number(Control):
    def __init__(self, one: Field) -> None:
        super().__init__(one)
        self.widget = self.whole = self._line = QLineEdit()
        self._shown = ""
        self._line.editingFinished.connect(self._finished)

    def _put(self, value: Any, *, mixed: bool) -> None:
        unit = f" {self.field.unit}" if self.field.unit and self.field.unit != "share" else ""
        if self.field.unit == "share" and value is not None and not mixed:
            text = f"{value * 100:g} %"
        else:
            text = "" if mixed or value is None else f"{value:.6g}{unit}"
        self._line.setPlaceholderText(MIXED if mixed else "not set" if self.field.optional else "")
        self._line.setText(text)
        self._shown = text

    def _finished(self) -> None:
        text = self._line.text().strip()
        if text == self._shown:
            return
        if not text and self.field.optional:
            self._say(None)
            return
        try:
            plain = text.removesuffix(self.field.unit) if self.field.unit not in {"", "share"} else text
            value = parse_count(plain)
        except StudioError:
            self._line.setText(self._shown)
            return
        low, high = self.field.low, self.field.high
        value = value if low is None else max(low, value)
        self._shown = ""
        self._say(value if high is None else min(high, value))


class _Share(Control):
    """A slider and the share in percent; a move of the mouse is one edit, made when it is let go."""

    def __init__(self, one: Field) -> None:
        super().__init__(one)
        self._low, self._high = float(one.low or 0.0), float(one.high if one.high is not None else 1.0)
        self._slider = QSlider(Qt.Orientation.Horizontal)
        self._slider.setRange(0, SLIDER_STEPS)
        self._box = QDoubleSpinBox()
        self._box.setDecimals(0)
        self._box.setRange(self._low * 100 - 1, self._high * 100)
        _dress(self._box, one)
        self._box.setSuffix(" %")
        self._box.setFixedWidth(72)
        self._box.setSpecialValueText("not set" if one.optional else MIXED)
        self._box.setAccessibleName(f"{one.title} in percent")
        self._box.setToolTip(one.tip)
        self.widget, self.whole = self._slider, QWidget()
        row = QHBoxLayout(self.whole)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._slider, 1)
        row.addWidget(self._box)
        self._slider.valueChanged.connect(self._slid)
        self._slider.sliderReleased.connect(lambda: self._say(self._share_of(self._slider.value())))
        self._box.valueChanged.connect(self._typed)

    def _put(self, value: Any, *, mixed: bool) -> None:
        self._box.setSpecialValueText(MIXED if mixed else "not set")
        if mixed or value is None:
            self._slider.setValue(0)
            self._box.setValue(self._box.minimum())
            return
        self._slider.setValue(round((value - self._low) / (self._high - self._low) * SLIDER_STEPS))
        self._box.setValue(value * 100)

    def _share_of(self, place: int) -> float:
        share = self._low + (self._high - self._low) * place / SLIDER_STEPS
        # An open upper bound ('below 1') cannot be reached by the slider's end.
        return round(min(share, self._high - 0.01 if place == SLIDER_STEPS and self._high >= 1 else share), 4)

    def _slid(self, place: int) -> None:
        if self._quiet:
            return
        share = self._share_of(place)
        quiet, self._quiet = self._quiet, True
        self._box.setValue(share * 100)
        self._quiet = quiet
        if not self._slider.isSliderDown():
            self._say(share)

    def _typed(self, percent: float) -> None:
        if self._quiet:
            return
        if percent < self._low * 100:
            if self.field.optional:
                self._say(None)
            return
        self._quiet = True
        self._slider.setValue(round((percent / 100 - self._low) / (self._high - self._low) * SLIDER_STEPS))
        self._quiet = False
        self._say(round(percent / 100, 4))


class _Text(Control):
    def __init__(self, one: Field) -> None:
        super().__init__(one)
        self.widget = self.whole = self._line = QLineEdit()
        self._shown = ""
        self._line.editingFinished.connect(self._finished)

    def _put(self, value: Any, *, mixed: bool) -> None:
        self._shown = "" if mixed else self._words(value)
        self._line.setText(self._shown)
        self._line.setPlaceholderText(MIXED if mixed else self._example())

    def _finished(self) -> None:
        text = self._line.text().strip()
        if text == self._shown:
            return
        value = self._value(text)
        if value is None:
            self._line.setText(self._shown)
        else:
            self._shown = text
            self._say(value)

    def _example(self) -> str:
        return ""

    def _words(self, value: Any) -> str:
        return str(value)

    def _value(self, text: str) -> Any:
        return text


class _Texts(_Text):
    """Several texts, with commas between."""

    def _example(self) -> str:
        return "none"

    def _words(self, value: Any) -> str:
        return ", ".join(value)

    def _value(self, text: str) -> Any:
        return tuple(part.strip() for part in text.split(",") if part.strip())


class _Numbers(_Text):
    """Several numbers, with commas between."""

    def _words(self, value: Any) -> str:
        return ", ".join(f"{number:g}" for number in value)

    def _value(self, text: str) -> Any:
        try:
            return tuple(float(part) for part in text.replace(";", ",").split(",") if part.strip())
        except ValueError:
            return None


def indent(box: QAbstractSpinBox) -> None:
    """Let a number begin where the text of other fields begins; style sheets cannot."""
    box.lineEdit().setTextMargins(7, 0, 0, 0)


def _dress(box: QAbstractSpinBox, one: Field) -> None:
    box.setKeyboardTracking(False)
    box.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    box.setButtonSymbols(QAbstractSpinBox.ButtonSymbols.UpDownArrows)
    indent(box)
    if one.unit and isinstance(box, QSpinBox | QDoubleSpinBox):
        box.setSuffix(f" {one.unit}")


CONTROLS: dict[str, Callable[[Field], Control]] = {
    "bool": _Check,
    "choice": _Choice,
    "int": _Whole,
    "float": _Number,
    "share": _Share,
    "text": _Text,
    "texts": _Texts,
    "numbers": _Numbers,
}
