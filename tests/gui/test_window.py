"""The window on a real session with canned workers: every command reaches what it names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QPoint, QPointF, QSettings, Qt, QUrl
from PySide6.QtGui import QDropEvent
from PySide6.QtWidgets import (
    QAbstractButton,
    QApplication,
    QComboBox,
    QLineEdit,
    QMessageBox,
    QSlider,
    QWidget,
)
from pytestqt.qtbot import QtBot

from studio.app.jobs import Job
from studio.app.session import Session
from studio.app.view import View
from studio.base.errors import StudioError
from studio.gui import files
from studio.gui.commands import COMMANDS
from studio.gui.dialogs import Message, install_crash_hook
from studio.gui.main_window import MainWindow
from studio.gui.theme import Theme
from studio.records.measure import DataSpec
from studio.records.steps import QuantizeDynamic, QuantizeWeights
from tests.gui.conftest import THREE, idle
from tests.support.canned import FakeSession


def open_dialogs() -> list[QWidget]:
    return [
        w
        for w in QApplication.topLevelWidgets()
        if w.isVisible() and w.isWindow() and not isinstance(w, MainWindow)
    ]


def test_the_welcome_page_gives_way_to_the_panels_when_a_model_is_open(opened: MainWindow) -> None:
    assert opened.pages.currentWidget() is opened.desk
    assert opened.windowTitle().startswith("net")
    opened.files.close()
    assert opened.pages.currentWidget() is opened.welcome


def test_a_dropped_file_is_opened(window: MainWindow, model: Path, qtbot: QtBot) -> None:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(model))])
    event = QDropEvent(
        QPointF(9, 9),
        Qt.DropAction.CopyAction,
        data,
        Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
    )
    window.dropEvent(event)
    qtbot.waitUntil(lambda: window.session.view.project is not None, timeout=20_000)


def test_a_model_that_cannot_be_read_is_one_clear_message_with_details(
    window: MainWindow, tmp_path: Path, qtbot: QtBot
) -> None:
    path = tmp_path / "fail-net.onnx"
    path.write_bytes(b"")
    window.files.open(path)
    qtbot.waitUntil(lambda: bool(window.findChildren(Message)), timeout=20_000)
    message = window.findChildren(Message)[0]
    message.copy()
    assert "it is broken" in QApplication.clipboard().text()
    message.accept()


def test_a_missing_file_is_a_message_and_not_a_crash(window: MainWindow, tmp_path: Path) -> None:
    window.actions_.guard(lambda: window.files.open(tmp_path / "nowhere.onnx"))()
    assert window.findChildren(Message)


def test_the_filled_button_says_what_it_will_do(opened: MainWindow) -> None:
    compress = opened.toolbar.button("compress.run")
    assert compress.property("role") != "primary"
    opened.session.set_treatment(THREE[:2], "quantize", QuantizeDynamic())
    assert compress.text().startswith("Compress 2 layers")
    assert compress.property("role") == "primary"
    filled = [b for b in opened.toolbar.findChildren(QAbstractButton) if b.property("role") == "primary"]
    assert filled == [compress]


def test_compressing_makes_a_measured_version_and_undo_goes_back(opened: MainWindow, qtbot: QtBot) -> None:
    session = opened.session
    session.set_treatment(THREE, "quantize", QuantizeWeights())
    opened.actions_["compress.run"].trigger()
    qtbot.waitUntil(lambda: idle(opened) and len(session.view.project.versions) == 2, timeout=20_000)
    version = session.view.project.versions[1]
    assert version.measurement is not None
    assert session.view.project.head == version.id
    opened.actions_["edit.undo"].trigger()
    assert session.view.project.head == 0
    assert session.view.project.staged == THREE


def test_every_command_runs_or_says_why_not(
    opened: MainWindow, monkeypatch: pytest.MonkeyPatch, qtbot: QtBot
) -> None:
    monkeypatch.setattr(files.QFileDialog, "getOpenFileName", lambda *_: ("", ""))
    monkeypatch.setattr(files.QFileDialog, "getSaveFileName", lambda *_: ("", ""))
    monkeypatch.setattr(files, "ask_unsaved", lambda *_: QMessageBox.StandardButton.Discard)
    last = {"file.sample", "file.close", "file.quit"}
    for command in COMMANDS:
        if command.id in last:
            continue
        action = opened.actions_[command.id]
        if action.isEnabled():
            action.trigger()
        else:
            assert command.blocked(opened.session.view, opened.selection) in action.toolTip()
        for dialog in open_dialogs():
            dialog.close()
    qtbot.waitUntil(lambda: idle(opened), timeout=20_000)


def test_a_disabled_command_says_why(window: MainWindow) -> None:
    action = window.actions_["compress.run"]
    assert not action.isEnabled()
    assert "Open a model first" in action.toolTip()


def test_shortcuts_are_those_that_people_know() -> None:
    keys = {command.id: command.shortcut for command in COMMANDS}
    expected = {
        "file.open": "Ctrl+O", "file.save": "Ctrl+S", "edit.undo": "Ctrl+Z", "edit.redo": "Ctrl+Shift+Z", "edit.find": "Ctrl+F",
        "compress.run": "F5", "compress.cancel": "Shift+F5", "view.fit": "Space", "view.palette": "Ctrl+Shift+P", "help.show": "F1",
    }  # fmt: skip
    assert {key: keys[key] for key in expected} == expected
    used = [key for key in keys.values() if key]
    assert len(used) == len(set(used))


def test_the_title_marks_unsaved_work_and_closing_asks(
    opened: MainWindow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, qtbot: QtBot
) -> None:
    assert not opened.isWindowModified()
    opened.session.set_treatment(THREE, "quantize", QuantizeWeights())
    assert opened.isWindowModified()
    monkeypatch.setattr(files, "ask_unsaved", lambda *_: QMessageBox.StandardButton.Cancel)
    assert not opened.close()
    assert opened.isVisible()
    target = tmp_path / "work.fwz"
    monkeypatch.setattr(files, "ask_unsaved", lambda *_: QMessageBox.StandardButton.Save)
    monkeypatch.setattr(files.QFileDialog, "getSaveFileName", lambda *_: (str(target), ""))
    opened.close()
    qtbot.waitUntil(lambda: not opened.isVisible(), timeout=20_000)
    assert target.is_file()


def test_both_themes_restyle_everything_without_a_restart(opened: MainWindow, theme: Theme) -> None:
    for mode in ("light", "dark", "light"):
        opened.set_theme(mode)
        assert theme.tokens.panel in QApplication.instance().styleSheet()


def test_the_layout_is_kept_and_can_be_reset(
    opened: MainWindow, session: Session, theme: Theme, tmp_path: Path, qtbot: QtBot
) -> None:
    opened.desk.docks["jobs"].close()
    opened.desk.keep()
    again = MainWindow(session, theme, QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat))
    qtbot.addWidget(again, before_close_func=lambda window: window.leave_unasked())
    assert again.desk.docks["jobs"].isHidden()
    again.actions_["view.reset"].trigger()
    assert not again.desk.docks["jobs"].isHidden()


def test_panels_have_grips_only_while_they_are_arranged(opened: MainWindow) -> None:
    dock = opened.desk.docks["headline"]
    height = dock.titleBarWidget().height()
    opened.actions_["view.arrange"].trigger()
    assert dock.titleBarWidget().sizeHint().height() > height
    opened.actions_["view.arrange"].trigger()
    assert dock.titleBarWidget().maximumHeight() == 0


def test_every_control_has_a_name_and_a_tooltip(opened: MainWindow) -> None:
    opened.selection.set(THREE)
    opened.session.set_treatment(THREE, "quantize", QuantizeWeights())
    kinds = (QAbstractButton, QComboBox, QLineEdit, QSlider)
    nameless = []
    for kind in kinds:
        for control in opened.findChildren(kind):
            own = (
                control.objectName().startswith("qt_")
                or type(control).__name__ in {"QTabBar", "CloseButton"}
                or control.parent().inherits("QTabBar")
            )
            inner = isinstance(control.parent(), QComboBox) or control.parent().inherits("QAbstractSpinBox")
            text = control.text() if isinstance(control, QAbstractButton) else ""
            named = control.accessibleName() or text
            if not own and not inner and control.isVisible() and not (named and control.toolTip()):
                nameless.append(
                    f"{type(control).__name__} in {type(control.parent()).__name__}: '{named}' '{control.toolTip()}'"
                )
    assert not nameless


def test_tab_reaches_the_panels(opened: MainWindow, qtbot: QtBot) -> None:
    opened.activateWindow()
    opened.toolbar.button("file.open").setFocus()
    seen = set()
    for _ in range(80):
        widget = QApplication.focusWidget()
        while widget is not None and widget.parentWidget() is not None:
            seen.add(type(widget).__name__)
            widget = widget.parentWidget()
        opened.focusNextChild()
    assert {"VersionsPanel", "LayerTable", "Inspector", "ToolBar"} <= seen


def test_data_and_threads_stand_on_the_toolbar(opened: MainWindow) -> None:
    assert "none" in opened.toolbar.data.accessibleName()
    opened.session.set_data(evaluation=DataSpec(kind="random"))
    opened.session.set_threads(2)
    assert "random" in opened.toolbar.data.accessibleName()
    assert "2 threads" in opened.toolbar.runs.accessibleName()


def test_versions_can_be_reached_renamed_and_removed_from_their_menu(
    opened: MainWindow, monkeypatch: pytest.MonkeyPatch, qtbot: QtBot
) -> None:
    session = opened.session
    session.set_treatment(THREE, "quantize", QuantizeWeights())
    session.compress()
    qtbot.waitUntil(lambda: idle(opened) and len(session.view.project.versions) == 2, timeout=20_000)
    panel = opened.versions
    qtbot.mouseClick(
        panel.list.viewport(),
        Qt.MouseButton.LeftButton,
        pos=panel.list.visualRect(panel.model.index(0)).center() - QPoint(0, 4),
    )
    assert session.view.project.head == 0
    monkeypatch.setattr(
        "studio.gui.versions_panel.QInputDialog.getText", lambda *_a, **_k: ("Four bits", True)
    )
    panel.ask_name(session.view.project.versions[1])
    assert panel.model.index(1).data() == "Four bits"
    menu = panel.menu_of(session.view.project.versions[1])
    next(action for action in menu.actions() if action.text() == "Re&move").trigger()
    assert panel.model.rowCount() == 1


def test_the_palette_finds_commands_and_layers(opened: MainWindow) -> None:
    from studio.gui.palette import Palette

    palette = Palette(opened.menus.palette_entries(), opened)
    palette.line.setText("export")
    assert "Export ONNX" in palette.list.item(0).text()
    palette.line.setText("body")
    palette.list.setCurrentRow(0)
    palette.line.returnPressed.emit()
    assert opened.selection.layers == ("body",)


def test_what_is_being_opened_is_said_and_can_be_stopped(
    window: MainWindow, tmp_path: Path, qtbot: QtBot
) -> None:
    path = tmp_path / "slow-net.onnx"
    path.write_bytes(b"")
    window.files.open(path)
    assert "Open slow-net.onnx" in window.welcome.opening._words.text()
    assert not window.welcome.opening.isHidden()
    window.actions_["compress.cancel"].trigger()
    qtbot.waitUntil(window.welcome.opening.isHidden, timeout=20_000)
    assert window.session.view.project is None


def test_leaving_while_a_job_runs_asks_first(qapp: QApplication, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Job(id=1, title="Compress 3 layers", kind="compress", state="running")
    desk = files.Files(QWidget(), FakeSession(View(jobs=(running,))))
    left, asked, answer = [], [], False

    def ask(_parent: QWidget, title: str) -> bool:
        asked.append(title)
        return answer

    monkeypatch.setattr(files, "ask_stop", ask)
    assert not desk.leaving(lambda: left.append(1))
    answer = True
    assert desk.leaving(lambda: left.append(1))
    assert asked == ["Compress 3 layers"] * 2
    assert left == [1]


def test_a_bug_is_a_report_to_copy_and_the_window_stays(
    window: MainWindow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    install_crash_hook(lambda: window)
    for _ in range(2):
        error = ZeroDivisionError("by nothing")
        sys.excepthook(ZeroDivisionError, error, None)
    (message,) = window.findChildren(Message)
    message.copy()
    report = QApplication.clipboard().text()
    assert "ZeroDivisionError: by nothing" in report
    assert "PySide6" in report
    assert "by nothing" in capsys.readouterr().err
    message.accept()


def test_space_presses_a_focused_button_and_fits_the_graph_only_there(
    opened: MainWindow, qtbot: QtBot
) -> None:
    opened.activateWindow()
    button = opened.inspector.treatment._empty.button
    button.setFocus()
    with qtbot.waitSignal(opened.inspector.all_asked):
        qtbot.keyClick(button, Qt.Key.Key_Space)


def test_a_preset_is_staged_on_the_selection_or_on_all(opened: MainWindow) -> None:
    opened.actions_["compress.small"].trigger()
    staged = opened.session.view.project.staged
    assert staged
    opened.session.clear_treatments(None)
    opened.selection.set(staged[:1])
    opened.actions_["compress.fast"].trigger()
    assert opened.session.view.project.staged == staged[:1]


def test_a_file_of_samples_is_no_model(window: MainWindow, tmp_path: Path) -> None:
    (tmp_path / "samples.npz").write_bytes(b"PK")
    with pytest.raises(StudioError, match="holds data, not a model"):
        window.files.open(tmp_path / "samples.npz")
