"""The layer table on canned records."""

from __future__ import annotations

import msgspec
import pytest
from PySide6.QtCore import QModelIndex, QPoint, QSettings, Qt
from PySide6.QtGui import QColor, QGuiApplication
from PySide6.QtWidgets import QMenu
from pytestqt.qtbot import QtBot

from studio.app.view import View
from studio.gui.figures import COLUMNS
from studio.gui.layer_table import LayerTable
from studio.gui.selection import Selection
from studio.gui.theme import Theme, contrast
from studio.records.steps import QuantizeStatic
from tests.support.canned import FakeSession, busy_view, layer, plan_of, project_of, resnet_layers

SECTION = {column.id: i for i, column in enumerate(COLUMNS)}


@pytest.fixture
def table(fake_session: FakeSession, selection: Selection, theme: Theme, qtbot: QtBot) -> LayerTable:
    fake_session.show_view(busy_view())
    table = LayerTable(fake_session, selection, theme)  # type: ignore[arg-type]
    qtbot.addWidget(table)
    table.resize(1000, 500)
    table.show()
    qtbot.waitExposed(table)
    return table


def names(table: LayerTable) -> list[str]:
    return [one.name for one in table.shown()]


def cell(table: LayerTable, name: str, column: str) -> str:
    model = table.view.model()
    return str(model.index(names(table).index(name), SECTION[column]).data())


def press(table: LayerTable, name: str, qtbot: QtBot, *keys: Qt.KeyboardModifier) -> None:
    view = table.view
    index = view.model().index(names(table).index(name), SECTION["op"])
    view.scrollTo(index)
    modifiers = Qt.KeyboardModifier.NoModifier
    for key in keys:
        modifiers |= key
    place = view.visualRect(index).center()
    qtbot.mouseClick(view.viewport(), Qt.MouseButton.LeftButton, modifiers, place)


def test_an_empty_table_says_what_will_appear(selection: Selection, theme: Theme, qtbot: QtBot) -> None:
    table = LayerTable(FakeSession(), selection, theme)  # type: ignore[arg-type]
    qtbot.addWidget(table)
    assert not table.filter.isEnabled()
    assert not table.shown()


def test_rows_show_the_figures_of_the_design(table: LayerTable) -> None:
    assert cell(table, "layer3.0.conv2", "weight") == "256×256×3×3"
    assert cell(table, "layer3.0.conv2", "params") == "590 k"
    assert cell(table, "layer3.0.conv2", "size") == "2.36"
    assert cell(table, "layer3.0.conv2", "treatment") == "INT8"
    assert cell(table, "conv1", "treatment") == "keep fp32"
    header = table.view.horizontalHeader().model()
    assert header.headerData(SECTION["sensitivity"], Qt.Orientation.Horizontal) == "Sensitivity (INT8)"


def test_sorting_puts_unknown_values_last_both_ways(table: LayerTable, fake_session: FakeSession) -> None:
    project = fake_session.view.project
    assert project is not None
    version = project.versions[0]
    some = msgspec.structs.replace(version.scans[0], layers=version.scans[0].layers[:3])
    fake_session.show(scan_live=some, plans=())
    for order in (Qt.SortOrder.AscendingOrder, Qt.SortOrder.DescendingOrder):
        table.view.sortByColumn(SECTION["sensitivity"], order)
        assert set(names(table)[:3]) == {one.layer for one in some.layers}


def test_names_sort_by_their_numbers(
    fake_session: FakeSession, selection: Selection, theme: Theme, qtbot: QtBot
) -> None:
    layers = tuple(layer(f"block{i}.conv") for i in (1, 10, 2))
    fake_session.show_view(View(project=project_of(layers)))
    table = LayerTable(fake_session, selection, theme)  # type: ignore[arg-type]
    qtbot.addWidget(table)
    table.view.sortByColumn(SECTION["layer"], Qt.SortOrder.AscendingOrder)
    assert names(table) == ["block1.conv", "block2.conv", "block10.conv"]
    table.view.sortByColumn(-1, Qt.SortOrder.AscendingOrder)
    assert names(table) == ["block1.conv", "block10.conv", "block2.conv"]


def test_the_selection_stays_with_its_layers_when_rows_move(table: LayerTable, selection: Selection) -> None:
    chosen = ("layer3.0.conv2", "layer3.1.conv1")
    selection.set(chosen)
    for column in ("params", "sensitivity", "layer"):
        table.view.sortByColumn(SECTION[column], Qt.SortOrder.DescendingOrder)
        assert sorted(table.view.selected_names()) == sorted(chosen)
        assert selection.layers == chosen


def test_clicks_select_layers_for_everyone(table: LayerTable, selection: Selection, qtbot: QtBot) -> None:
    press(table, "layer1.0.conv1", qtbot)
    assert selection.layers == ("layer1.0.conv1",)
    press(table, "layer2.0.conv1", qtbot, Qt.KeyboardModifier.ControlModifier)
    assert set(selection.layers) == {"layer1.0.conv1", "layer2.0.conv1"}
    assert selection.current == "layer2.0.conv1"
    press(table, "layer3.0.conv1", qtbot, Qt.KeyboardModifier.ShiftModifier)
    assert len(selection.layers) > 3


def test_layers_selected_elsewhere_are_selected_here_and_seen(
    table: LayerTable, selection: Selection
) -> None:
    table.resize(1000, 200)
    selection.set(("fc",))
    assert table.view.selected_names() == ["fc"]
    row = names(table).index("fc")
    assert (
        table.view.viewport()
        .rect()
        .contains(table.view.visualRect(table.view.model().index(row, 0)).center())
    )


def test_a_filter_hides_rows_and_keeps_what_is_selected(
    table: LayerTable, selection: Selection, qtbot: QtBot
) -> None:
    selection.set(("conv1", "fc"))
    table.filter.setText("op:conv size>1MB")
    assert "fc" not in names(table)
    assert set(selection.layers) == {"conv1", "fc"}
    press(table, "layer4.0.conv2", qtbot, Qt.KeyboardModifier.ControlModifier)
    assert set(selection.layers) == {"conv1", "fc", "layer4.0.conv2"}
    table.filter.clear()
    assert set(table.view.selected_names()) == {"conv1", "fc", "layer4.0.conv2"}


def test_everything_that_matches_can_be_selected(
    table: LayerTable, selection: Selection, qtbot: QtBot
) -> None:
    table.focus_filter()
    qtbot.keyClicks(table.filter, "downsample")
    qtbot.keyClick(table.filter, Qt.Key.Key_Return)
    assert selection.layers == ("layer2.0.downsample.0", "layer3.0.downsample.0", "layer4.0.downsample.0")


def test_a_filter_that_makes_no_sense_is_explained_and_changes_nothing(table: LayerTable) -> None:
    before = names(table)
    table.filter.setText("colour>3")
    assert names(table) == before
    assert "colour" in table.summary_words()


def test_the_summary_follows_the_selection(table: LayerTable, selection: Selection) -> None:
    assert table.summary_words().startswith("21 layers · ")
    selection.set(("layer3.0.conv2", "layer3.1.conv1"))
    assert table.summary_words().startswith("2 of 21 selected · 4.72 MB · ")


def test_scan_results_arrive_while_the_scan_runs(
    table: LayerTable, fake_session: FakeSession, qtbot: QtBot
) -> None:
    project = project_of(resnet_layers(), known=False)
    fake_session.show_view(View(project=project))
    assert cell(table, "conv1", "sensitivity") == "–"
    scan = project_of(resnet_layers()).versions[0].scans[0]
    fake_session.show(scan_live=msgspec.structs.replace(scan, layers=scan.layers[:1], complete=False))
    qtbot.waitUntil(lambda: cell(table, "conv1", "sensitivity") == "0.5")
    assert cell(table, "fc", "sensitivity") == "–"


def test_a_plan_shows_sizes_after(table: LayerTable, fake_session: FakeSession) -> None:
    project = project_of(resnet_layers()).with_treatment(("fc",), "quantize", QuantizeStatic())
    fake_session.show_view(View(project=project))
    assert cell(table, "fc", "after") == cell(table, "fc", "size")
    fake_session.show(plans=(plan_of(project, ("fc",)),))
    assert float(cell(table, "fc", "after")) < float(cell(table, "fc", "size")) / 3


def test_the_treatment_menu_treats_the_whole_selection(
    table: LayerTable, fake_session: FakeSession, selection: Selection, qtbot: QtBot
) -> None:
    selection.set(("layer3.0.conv2", "layer3.1.conv1"))
    view = table.view
    index = view.model().index(names(table).index("layer3.0.conv2"), SECTION["treatment"])
    view.scrollTo(index)
    caret = view.visualRect(index).topRight() + QPoint(-8, 12)
    qtbot.mouseClick(view.viewport(), Qt.MouseButton.LeftButton, pos=caret)
    menu = next(m for m in table.findChildren(QMenu) if m.isVisible())
    words = [action.text() for action in menu.actions()]
    assert "Half precision · FP16" in words
    assert "Keep as it is" in words
    next(action for action in menu.actions() if action.text().endswith("· W4")).trigger()
    menu.close()
    call, (layers, slot, settings) = fake_session.asked[-1]
    assert (call, layers, slot, settings.chip) == (
        "set_treatment",
        ("layer3.0.conv2", "layer3.1.conv1"),
        "quantize",
        "W4",
    )
    assert set(selection.layers) == {"layer3.0.conv2", "layer3.1.conv1"}
    assert cell(table, "layer3.1.conv1", "treatment") == "W4"


def test_layers_that_cannot_be_treated_say_why(
    fake_session: FakeSession, selection: Selection, theme: Theme, qtbot: QtBot
) -> None:
    fake_session.show_view(View(project=project_of((layer("a", untreatable="its weights are strings"),))))
    table = LayerTable(fake_session, selection, theme)  # type: ignore[arg-type]
    qtbot.addWidget(table)
    table.resize(1000, 200)
    table.show()
    press(table, "a", qtbot)
    qtbot.keyClick(table.view, Qt.Key.Key_Return)
    menu = next(m for m in table.findChildren(QMenu) if m.isVisible())
    assert menu.actions()[0].text() == "Cannot be treated: its weights are strings"
    menu.close()


def test_selected_rows_are_copied_as_csv_in_full_figures(
    table: LayerTable, selection: Selection, qtbot: QtBot
) -> None:
    selection.set(("conv1", "fc"))
    qtbot.keyClick(table.view, Qt.Key.Key_C, Qt.KeyboardModifier.ControlModifier)
    lines = QGuiApplication.clipboard().text().splitlines()
    assert lines[0].startswith("Layer,Op,Weight,Params,Bytes,MACs,")
    assert lines[1].startswith("conv1,Conv,64×3×7×7,9408,37632,")
    assert len(lines) == 3


def test_a_name_that_looks_like_a_formula_is_not_one_in_a_spreadsheet(
    fake_session: FakeSession, selection: Selection, theme: Theme, qtbot: QtBot
) -> None:
    fake_session.show_view(View(project=project_of((layer("=1+1"),))))
    table = LayerTable(fake_session, selection, theme)  # type: ignore[arg-type]
    qtbot.addWidget(table)
    table.copy_csv(everything=True)
    assert "'=1+1," in QGuiApplication.clipboard().text()


def test_columns_can_be_chosen_and_are_remembered(
    table: LayerTable,
    fake_session: FakeSession,
    selection: Selection,
    theme: Theme,
    qtbot: QtBot,
    tmp_path: object,
) -> None:
    settings = QSettings(f"{tmp_path}/table.ini", QSettings.Format.IniFormat)
    table.view.show_column(SECTION["kernel"], True)
    table.view.show_column(SECTION["macs"], False)
    table.save_layout(settings)
    other = LayerTable(fake_session, selection, theme)  # type: ignore[arg-type]
    qtbot.addWidget(other)
    other.restore_layout(settings)
    assert other.view.shown_columns() == table.view.shown_columns()
    assert SECTION["kernel"] in other.view.shown_columns()
    other.view.reset_columns()
    assert SECTION["macs"] in other.view.shown_columns()


def test_columns_fill_the_width_and_shrink_with_it(table: LayerTable, qtbot: QtBot) -> None:
    for width in (1400, 1000, 800):
        table.resize(width, 400)
        qtbot.waitUntil(lambda w=width: abs(table.width() - w) < 2)
        total = sum(table.view.columnWidth(s) for s in table.view.shown_columns())
        assert total <= table.view.viewport().width() + 2 or width == 800


@pytest.mark.parametrize("mode", ["dark", "light"])
def test_words_keep_their_contrast_over_every_ground(theme: Theme, mode: str) -> None:
    theme.set_mode(mode)  # type: ignore[arg-type]
    tokens = theme.tokens
    for share in range(0, 101, 5):
        ground = theme.heat(share / 100)
        assert contrast(theme.ink_over(ground), ground) >= 4.5
    for ground, ink in tokens.chips.values():
        assert contrast(QColor(ink), QColor(ground)) >= 4.5
    assert contrast(QColor(tokens.on_selection), QColor(tokens.selection)) >= 4.5
    assert contrast(QColor(tokens.dim), QColor(tokens.panel)) >= 4.5


def test_a_tooltip_says_how_a_figure_came_about(table: LayerTable) -> None:
    model = table.view.model()
    row = names(table).index("conv1")
    tip = model.index(row, SECTION["sensitivity"]).data(Qt.ItemDataRole.ToolTipRole)
    assert "SQNR" in tip
    assert "64 samples" in tip
    assert "measured" in model.index(row, SECTION["latency"]).data(Qt.ItemDataRole.ToolTipRole)


def test_keys_move_and_extend_the_selection(table: LayerTable, selection: Selection, qtbot: QtBot) -> None:
    press(table, "conv1", qtbot)
    qtbot.keyClick(table.view, Qt.Key.Key_Down)
    assert selection.layers == ("layer1.0.conv1",)
    qtbot.keyClick(table.view, Qt.Key.Key_Down, Qt.KeyboardModifier.ShiftModifier)
    assert selection.layers == ("layer1.0.conv1", "layer1.0.conv2")
    assert table.view.selectionModel().isRowSelected(1, QModelIndex())
    table.view.clearSelection()
    assert selection.layers == ()
