"""Forms from records: every technique's settings, shown and edited, mixed values included."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QLineEdit, QSlider, QSpinBox
from pytestqt.qtbot import QtBot

from studio.gui.controls import MIXED
from studio.gui.form_fields import fields_of
from studio.gui.forms import Form
from studio.records.base import Record
from studio.records.measure import DataSpec, Preprocess
from studio.records.steps import SETTINGS, PruneChannels, QuantizeWeights, Settings, Sparsify


class Example(Record, frozen=True, kw_only=True):
    flag: Annotated[bool, Meta(title="Flag")] = True
    word: Annotated[Literal["z", "a"], Meta(extra_json_schema={"choices": {"z": "Last letter"}})] = "z"
    count: Annotated[int, Meta(ge=1, le=9)] = 3
    share: Annotated[float, Meta(ge=0, lt=1, extra_json_schema={"unit": "share"})] = 0.5
    number: float = 0.25
    budget: Annotated[float, Meta(gt=0, le=1, extra_json_schema={"unit": "share"})] | None = None
    name: str = ""
    names: tuple[str, ...] = ()
    means: tuple[float, ...] = (0.5, 0.25)
    time: Annotated[float, Meta(gt=0, extra_json_schema={"unit": "min"})] = 3
    rate: Annotated[float, Meta(ge=0, extra_json_schema={"zero": "automatic"})] = 0.0
    rare: Annotated[int, Meta(extra_json_schema={"advanced": True})] = 0


@pytest.fixture
def form(qtbot: QtBot) -> Form:
    form = Form(Example)
    qtbot.addWidget(form)
    form.show_records([Example()])
    form.show()
    return form


def test_the_choices_keep_the_order_of_the_record() -> None:
    (word,) = [f for f in fields_of(Example) if f.name == "word"]
    assert word.choices == (("z", "Last letter"), ("a", "a"))


@pytest.mark.parametrize("kind", [*SETTINGS, DataSpec, Preprocess], ids=lambda kind: kind.__name__)
def test_every_record_of_settings_has_a_form_that_shows_its_defaults(
    kind: type[Record], qtbot: QtBot
) -> None:
    form = Form(kind, skip=("path", "kind", "preprocess"))
    qtbot.addWidget(form)
    edits = []
    form.edited.connect(lambda name, value: edits.append((name, value)))
    form.show_records([kind()])
    assert edits == []
    if issubclass(kind, Settings):
        assert {f.name for f in fields_of(kind)} == set(kind.__struct_fields__)


def test_each_control_says_what_was_edited(form: Form) -> None:
    edits: list[tuple[str, object]] = []
    form.edited.connect(lambda name, value: edits.append((name, value)))

    def control(name: str, kind: type) -> object:
        widget = form.control(name).widget
        assert isinstance(widget, kind)
        return widget

    control("flag", QCheckBox).click()
    word = control("word", QComboBox)
    word.setCurrentIndex(1)
    word.activated.emit(1)
    control("count", QSpinBox).setValue(7)
    control("share", QSlider).setValue(30)
    for name, text in (("number", "1.5"), ("name", "x"), ("names", "conv*, fc"), ("means", "0.1, 0.2")):
        line = control(name, QLineEdit)
        line.setText(text)
        line.editingFinished.emit()
    assert edits == [
        ("flag", False), ("word", "a"), ("count", 7), ("share", 0.3), ("number", 1.5), ("name", "x"), ("names", ("conv*", "fc")),
        ("means", (0.1, 0.2)),
    ]  # fmt: skip


def test_what_is_edited_is_always_allowed(form: Form) -> None:
    record = Example()

    def edit(name: str, value: object) -> None:
        nonlocal record
        record = msgspec.convert({**msgspec.to_builtins(record), name: value}, Example)

    form.edited.connect(edit)
    slider, box = form.control("share").widget, form.control("share").whole.findChild(QDoubleSpinBox)
    for place in (0, 50, 100):
        slider.setValue(place)
    assert record.share == 0.99  # 1 itself is excluded
    box.setValue(100)
    assert record.share == 0.99
    form.control("budget").widget.setValue(100)
    assert record.budget == 1
    time = form.control("time").widget
    time.setText("0")
    time.editingFinished.emit()
    assert (record.time, time.text()) == (3, "3 min")
    number = form.control("number").widget
    number.setText("not a number")
    number.editingFinished.emit()
    assert number.text() == "0.25"


def test_an_optional_share_can_be_set_and_taken_back(form: Form) -> None:
    edits = []
    form.edited.connect(lambda name, value: edits.append((name, value)))
    box = form.control("budget").whole.findChild(QDoubleSpinBox)
    assert box.text() == "not set"
    box.setValue(70)
    box.setValue(box.minimum())
    assert edits == [("budget", 0.7), ("budget", None)]


def test_values_that_differ_are_shown_as_mixed(form: Form) -> None:
    form.show_records(
        [Example(), Example(flag=False, word="a", count=5, share=0.1, number=1, name="n", means=(1.0,))]
    )
    assert form.control("flag").widget.checkState() == Qt.CheckState.PartiallyChecked
    assert form.control("word").widget.currentIndex() == -1
    assert form.control("count").widget.text() == MIXED
    for name in ("number", "name", "means"):
        assert form.control(name).widget.placeholderText() == MIXED
    assert form.control("share").whole.findChild(QDoubleSpinBox).text() == MIXED


def test_what_seldom_matters_is_folded_away(form: Form) -> None:
    assert form.control("rare").widget.isHidden()
    form._toggle_advanced()
    assert not form.control("rare").widget.isHidden()


def test_settings_that_need_another_stay_away_until_it_is_chosen(qtbot: QtBot) -> None:
    form = Form(QuantizeWeights)
    qtbot.addWidget(form)
    form.show_records([QuantizeWeights()])
    form._more.click()
    assert not form.control("scale_inputs").whole.isHidden()
    assert form.control("zeros").whole.isHidden()
    form.show_records([QuantizeWeights(symmetric=False)])
    assert not form.control("zeros").whole.isHidden()
    assert not form.control("solver").whole.isHidden()


def test_a_number_that_is_chosen_automatically_says_so_and_can_be_left_to_it_again(form: Form) -> None:
    edits = []
    form.edited.connect(lambda name, value: edits.append((name, value)))
    rate = form.control("rate").widget
    assert (rate.text(), rate.placeholderText()) == ("", "automatic")
    for text, value in (("0.01", 0.01), ("", 0.0)):
        rate.setText(text)
        rate.editingFinished.emit()
        form.show_records([Example(rate=value)])
    assert edits == [("rate", 0.01), ("rate", 0.0)]


def test_what_has_no_effect_is_not_on_offer(qtbot: QtBot) -> None:
    for free, bound in (
        (Sparsify(), Sparsify(pattern="2:4")),
        (PruneChannels(), PruneChannels(macs=0.7)),
    ):
        form = Form(type(free))
        qtbot.addWidget(form)
        for settings, hidden in ((free, False), (bound, True)):
            form.show_records([settings])
            assert form.control("ratio").whole.isHidden() == hidden
