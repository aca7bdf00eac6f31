"""The menu bar, and what the palette and the help page list: all from the commands."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtGui import QAction, QActionGroup, QFont, QKeySequence
from PySide6.QtWidgets import QMenu

from studio.gui.bars import threads_menu
from studio.gui.commands import COMMANDS, MENUS, Actions, Menu
from studio.gui.figures import COLOR_COLUMNS
from studio.gui.palette import Entry
from studio.gui.theme import MODES, Mode

if TYPE_CHECKING:
    from studio.gui.main_window import MainWindow

THEME_WORDS: dict[Mode, str] = {"system": "Follow the system", "light": "Light", "dark": "Dark"}


class Menus:
    """The menus of one window.

    Attributes:
        color: what the graph is coloured by; the status bar opens the same menu.
    """

    def __init__(self, window: MainWindow, actions: Actions) -> None:
        self._window, self._actions = window, actions
        self.color, self._theme = self._color_menu(), self._theme_menu()
        self._recent = QMenu("Open &recent", window)
        self._recent.setToolTipsVisible(True)
        self._recent.aboutToShow.connect(self._fill_recent)
        bar = window.menuBar()
        bar.setAccessibleName("Menus")
        name = bar.addAction("Featherweight", window.show_about)
        name.setFont(window.theme.font(weight=QFont.Weight.DemiBold))
        for menu in MENUS:
            self._fill(bar.addMenu(f"&{menu}"), menu)

    def palette_entries(self) -> list[Entry]:
        """Every command, panel, colour and layer by name."""
        window = self._window
        view = window.session.view
        entries = [
            Entry(
                f"{command.menu}: {_plain(self._actions[command.id].text())}",
                self._keys(command.id),
                self._actions[command.id].trigger,
                command.blocked(view, window.selection),
            )
            for command in COMMANDS
        ]
        for menu, words in ((self.color, "View: Colour graph by"), (self._theme, "View: Theme")):
            entries += [Entry(f"{words} {_plain(a.text()).lower()}", "", a.trigger) for a in menu.actions()]
        for dock in window.desk.docks.values():
            entries.append(Entry(f"View: {dock.windowTitle()} panel", "", dock.toggleViewAction().trigger))
        version = view.project.current if view.project else None
        for layer in version.layers if version else ():
            entries.append(
                Entry(
                    f"Layer: {layer.name}",
                    layer.op,
                    partial(window.selection.set, (layer.name,), self),
                )
            )
        return entries

    def shortcuts(self) -> list[tuple[str, str]]:
        """Every shortcut, as (what it does, keys)."""
        return [(f"{_plain(c.title)}: {c.tip.lower()}", keys) for c in COMMANDS if (keys := self._keys(c.id))]

    def check_color(self, column: str) -> None:
        """Tick the column that the graph is coloured by."""
        for action in self.color.actions():
            action.setChecked(action.data() == column)

    def _fill(self, menu: QMenu, name: Menu) -> None:
        menu.setToolTipsVisible(True)
        if name == "View":
            for dock in self._window.desk.docks.values():
                menu.addAction(dock.toggleViewAction())
        for group in self._actions.of_menu(name):
            if not menu.isEmpty():
                menu.addSeparator()
            for action in group:
                menu.addAction(action)
                if action.objectName() == "file.sample":
                    menu.addMenu(self._recent)
        match name:
            case "View":
                menu.addMenu(self.color)
                menu.addMenu(self._theme)
            case "Model":
                menu.addMenu(threads_menu(self._window))
            case _:
                pass

    def _fill_recent(self) -> None:
        window = self._window
        self._recent.clear()
        for path in window.session.recent:
            action = self._recent.addAction(Path(path).name)
            action.setToolTip(path)
            action.triggered.connect(self._actions.guard(partial(window.files.open, path)))
        if self._recent.isEmpty():
            self._recent.addAction("Nothing opened yet").setEnabled(False)

    def _color_menu(self) -> QMenu:
        menu = QMenu("&Colour graph by", self._window)
        menu.setToolTipsVisible(True)
        group = QActionGroup(menu)
        for column in COLOR_COLUMNS:
            action = _choice(menu, group, column.label)
            action.setData(column.id)
            action.setToolTip(column.tip)
            action.triggered.connect(lambda _checked=False, key=column.id: self._window.color_by(key))
        none = _choice(menu, group, "No colours")
        none.setData("none")
        none.triggered.connect(lambda _checked=False: self._window.color_by("none"))
        return menu

    def _theme_menu(self) -> QMenu:
        menu = QMenu("&Theme", self._window)
        group = QActionGroup(menu)
        for mode in MODES:
            action = _choice(menu, group, THEME_WORDS[mode])
            action.setChecked(self._window.theme.mode == mode)
            action.triggered.connect(lambda _checked=False, mode=mode: self._window.set_theme(mode))
        return menu

    def _keys(self, command: str) -> str:
        return self._actions[command].shortcut().toString(QKeySequence.SequenceFormat.NativeText)


def _choice(menu: QMenu, group: QActionGroup, words: str) -> QAction:
    action = QAction(words, menu)
    action.setCheckable(True)
    group.addAction(action)
    menu.addAction(action)
    return action


def _plain(words: str) -> str:
    return words.replace("&", "").rstrip("…")
