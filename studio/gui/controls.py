"""One control for each kind of field in a form; all can show 'mixed'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtGui import QPaintEvent, QWheelEvent
from PySide6.QtWidgets import (
    QAbstractSpinBox,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
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
from studio.gui.form_fields import Field

MIXED = "mixed"


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
            unsaid = mixed or value is None or (self.field.zero and value == 0)
            text = "" if unsaid else f"{value:.6g}{unit}"
        self._line.setPlaceholderText(
            MIXED if mixed else "not set" if self.field.optional else self.field.zero
        )
        self._line.setText(text)
        self._shown = text

    def _finished(self) -> None:
        text = self._line.text().strip()
        if text == self._shown:
            return
        if not text and (self.field.optional or self.field.zero):
            self._say(None if self.field.optional else 0.0)
            return
        try:
            plain = text.removesuffix(self.field.unit) if self.field.unit not in {"", "share"} else text
            value = parse_count(plain)
            if self.field.above and self.field.low is not None and value <= self.field.low:
                raise StudioError("Too small")
        except StudioError:
            self._line.setText(self._shown)
            return
        low, high = self.field.low, self.field.high
        value = value if low is None else max(low, value)
        self._shown = ""
        self._say(value if high is None else min(high, value))


class _Share(Control):
    """A slider and the share in whole percent; a move of the mouse is one edit, made when it is let go."""

    def __init__(self, one: Field) -> None:
        super().__init__(one)
        low, high = round((one.low or 0.0) * 100), round((1.0 if one.high is None else one.high) * 100)
        self._low = low
        self._slider = QSlider(Qt.Orientation.Horizontal)
        self._slider.setRange(low, high)
        self._box = QDoubleSpinBox()
        self._box.setDecimals(0)
        self._box.setRange(low - 1, high)
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
        self._slider.sliderReleased.connect(lambda: self._say(self._slider.value() / 100))
        self._box.valueChanged.connect(self._typed)

    def _put(self, value: Any, *, mixed: bool) -> None:
        self._box.setSpecialValueText(MIXED if mixed else "not set")
        if mixed or value is None:
            self._slider.setValue(self._low)
            self._box.setValue(self._box.minimum())
            return
        self._slider.setValue(round(value * 100))
        self._box.setValue(value * 100)

    def _slid(self, percent: int) -> None:
        if self._quiet:
            return
        quiet, self._quiet = self._quiet, True
        self._box.setValue(percent)
        self._quiet = quiet
        if not self._slider.isSliderDown():
            self._say(percent / 100)

    def _typed(self, percent: float) -> None:
        if self._quiet:
            return
        if percent < self._low:
            if self.field.optional:
                self._say(None)
            return
        self._quiet = True
        self._slider.setValue(round(percent))
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
