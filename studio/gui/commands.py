"""Every command as data: menus, toolbar, shortcuts and the command palette come from this one list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from PySide6.QtCore import QObject, Qt
from PySide6.QtGui import QAction, QKeySequence
from PySide6.QtWidgets import QWidget

from studio.app.view import View
from studio.base.errors import StudioError
from studio.gui.dialogs import show_error
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from studio.records.presets import SUMMARIES, TITLES, Preset

if TYPE_CHECKING:
    from studio.gui.main_window import MainWindow

Menu = Literal["File", "Edit", "View", "Model", "Analyze", "Compress", "Window", "Help"]
MENUS: tuple[Menu, ...] = ("File", "Edit", "View", "Model", "Analyze", "Compress", "Window", "Help")


def always(_view: View, _selection: Selection) -> str:
    """Nothing stands in the way."""
    return ""


def needs_model(view: View, _selection: Selection) -> str:
    """A model must be open."""
    return "" if view.project and view.project.current else "Open a model first"


def needs_listing(view: View, selection: Selection) -> str:
    """A model must be open and its layers listed."""
    if words := needs_model(view, selection):
        return words
    return (
        ""
        if view.project and view.project.current and view.project.current.info
        else "The model is still being read"
    )


def needs_selection(view: View, selection: Selection) -> str:
    """Layers must be selected."""
    return needs_listing(view, selection) or ("" if selection.layers else "Select layers first")


def needs_staged(view: View, selection: Selection) -> str:
    """Treatments must be staged."""
    if words := needs_listing(view, selection):
        return words
    return "" if view.project and view.project.treatments else "Choose a treatment for some layers first"


def needs_two_versions(view: View, _selection: Selection) -> str:
    """There must be something to compare."""
    return "" if view.project and len(view.project.versions) > 1 else "There is only one version"


def needs_undo(view: View, _selection: Selection) -> str:
    """There must be something to undo."""
    return "" if view.can_undo else "Nothing to undo"


def needs_redo(view: View, _selection: Selection) -> str:
    """There must be something to redo."""
    return "" if view.can_redo else "Nothing to redo"


def needs_job(view: View, _selection: Selection) -> str:
    """Something must be running or waiting."""
    active = any(job.state in {"waiting", "running"} for job in view.jobs)
    return "" if active else "Nothing is running"


@dataclass(frozen=True)
class Command:
    """One thing the user can ask for.

    Attributes:
        id: stable, 'menu.verb'.
        title: of the menu entry; '…' at the end when it asks before it acts.
        menu: where it stands; commands of one `group` stand together.
        run: does it.
        blocked: why it cannot be done now, in words; '' when it can.
        icon: a Phosphor glyph.
        checked: for switches: whether it is on.
        within: key of the dock that must have the focus for the shortcut to work; '' = the window.
    """

    id: str
    title: str
    menu: Menu
    run: Callable[[MainWindow], object]
    tip: str = ""
    shortcut: str = ""
    blocked: Callable[[View, Selection], str] = always
    icon: str = ""
    group: int = 0
    checked: Callable[[MainWindow], bool] | None = None
    within: str = ""


def _stage(preset: Preset) -> Callable[[MainWindow], object]:
    return lambda w: w.session.stage_preset(preset, w.selection.layers)


COMMANDS: tuple[Command, ...] = (
    Command("file.open", "&Open…", "File", lambda w: w.files.ask_open(), "Open an ONNX model or a project", "Ctrl+O", icon="ph.folder-open"),
    Command("file.sample", "Open the &sample", "File", lambda w: w.files.open_sample(), "Open the bundled model with its data", icon="ph.gift"),
    Command("file.save", "&Save project", "File", lambda w: w.files.save(), "Save versions, treatments and measurements", "Ctrl+S", needs_model, "ph.floppy-disk", 1),
    Command("file.save_as", "Save project &as…", "File", lambda w: w.files.save_as(), "Save the project under another name", "Ctrl+Shift+S", needs_model, group=1),
    Command("file.export", "&Export ONNX…", "File", lambda w: w.export(), "Write this version as an ONNX file, checked", "Ctrl+E", needs_model, "ph.export", 2),
    Command("file.close", "&Close model", "File", lambda w: w.files.close(), "Back to the welcome page", "Ctrl+W", needs_model, group=3),
    Command("file.quit", "&Quit", "File", lambda w: w.close(), "Close the window", "Ctrl+Q", group=3),
    Command("edit.undo", "&Undo", "Edit", lambda w: w.session.undo(), "Take back the last decision", "Ctrl+Z", needs_undo, "ph.arrow-counter-clockwise"),
    Command("edit.redo", "&Redo", "Edit", lambda w: w.session.redo(), "Do again what was undone", "Ctrl+Shift+Z", needs_redo, "ph.arrow-clockwise"),
    Command("edit.find", "&Find layers", "Edit", lambda w: w.find_layers(), "Filter the table by name, operator or rule", "Ctrl+F", needs_listing, "ph.magnifying-glass", 1),
    Command("edit.all", "Select &all layers", "Edit", lambda w: w.select_all(), "Select every layer that can be treated", "", needs_listing, group=1),
    Command("edit.none", "Select &nothing", "Edit", lambda w: w.selection.clear(w), "Clear the selection", "Ctrl+Shift+A", needs_selection, group=1),
    Command("view.fit", "&Fit graph", "View", lambda w: w.fit_graph(), "Show the whole graph", "Space", needs_listing, "ph.corners-out", 1, within="graph"),
    Command("view.zoom_in", "Zoom &in", "View", lambda w: w.zoom_graph(larger=True), "Draw the graph larger", "Ctrl++", needs_listing, "ph.plus", 1),
    Command("view.zoom_out", "Zoom &out", "View", lambda w: w.zoom_graph(larger=False), "Draw the graph smaller", "Ctrl+-", needs_listing, "ph.minus", 1),
    Command("view.arrange", "&Arrange panels", "View", lambda w: w.toggle_arranging(), "Show grips to drag, float, tab and hide panels", group=2, checked=lambda w: w.arranging),
    Command("view.reset", "&Reset layout", "View", lambda w: w.desk.reset(), "Put all panels back where they started", group=2),
    Command("view.palette", "Command &palette…", "View", lambda w: w.show_palette(), "Every command by name", "Ctrl+Shift+P", icon="ph.command", group=4),
    Command("model.report", "&About this model…", "Model", lambda w: w.show_model(), "Preflight: opset, inputs, what cannot be treated and why", "", needs_listing, "ph.info"),
    Command("model.sizes", "&Input sizes…", "Model", lambda w: w.ask_sizes(), "The sizes of dynamic dimensions that costs are counted at", "", needs_listing, group=1),
    Command("model.data", "&Data…", "Model", lambda w: w.ask_data(), "Samples for calibration and for evaluation", "Ctrl+D", needs_listing, "ph.database", 1),
    Command("analyze.scan", "&Scan sensitivity…", "Analyze", lambda w: w.ask_scan(), "Treat every layer alone and see what it does to the output", "F6", needs_listing, "ph.chart-bar"),
    Command("analyze.profile", "&Time every layer", "Analyze", lambda w: w.profile(), "Measure the layers' times with the runtime's profiler", "F7", needs_listing, "ph.timer"),
    Command("analyze.measure", "&Measure this version", "Analyze", lambda w: w.measure(), "Latency, size, memory and accuracy, against the original", "F8", needs_listing, "ph.gauge"),
    Command("analyze.compare", "&Compare versions…", "Analyze", lambda w: w.compare(), "Two versions side by side, layer by layer", "Ctrl+K", needs_two_versions, "ph.columns", 1),
    Command("compress.run", "&Compress", "Compress", lambda w: w.compress(), "Carry out what is staged, in the background", "F5", needs_staged, "ph.play"),
    *(
        Command(f"compress.{preset}", f"Stage {title}", "Compress", _stage(preset), f"{SUMMARIES[preset]} For the selected layers, or all", "", needs_listing, group=1)
        for preset, title in TITLES.items()
    ),
    Command("compress.train", "Fine-&tune…", "Compress", lambda w: w.ask_training(), "Train the model to win back what compressing lost", "Ctrl+T", needs_listing, "ph.graduation-cap"),
    Command("compress.cancel", "Ca&ncel", "Compress", lambda w: w.session.cancel_all(), "Stop everything that runs or waits", "Shift+F5", needs_job, "ph.stop"),
    Command("compress.keep", "&Keep the selection as it is", "Compress", lambda w: w.session.clear_treatments(w.selection.layers), "Take the treatments of the selected layers away", "Ctrl+Backspace", needs_selection, group=2),
    Command("compress.clear", "Clear a&ll treatments", "Compress", lambda w: w.session.clear_treatments(None), "Take every staged treatment away", "", needs_staged, group=2),
    Command("window.full", "&Full screen", "Window", lambda w: w.toggle_full_screen(), "Fill the whole screen", "F11", checked=lambda w: w.isFullScreen()),
    Command("help.show", "Featherweight &help", "Help", lambda w: w.show_help(), "First steps, shortcuts and words", "F1", icon="ph.question"),
    Command("help.about", "&About Featherweight", "Help", lambda w: w.show_about(), "Version, licences and the machine", group=1),
)  # fmt: skip


class Actions(QObject):
    """The commands as Qt actions of one window, enabled as the view and the selection allow."""

    def __init__(self, window: MainWindow, selection: Selection, theme: Theme) -> None:
        super().__init__(window)
        self._window, self._selection, self._theme = window, selection, theme
        self._commands = {command.id: command for command in COMMANDS}
        self._actions = {command.id: self._make(command) for command in COMMANDS}
        theme.changed.connect(self._recolor)
        selection.changed.connect(lambda _source: self.refresh(window.session.view))
        self._recolor()

    def __getitem__(self, command_id: str) -> QAction:
        return self._actions[command_id]

    def of_menu(self, menu: Menu) -> list[list[QAction]]:
        """The actions of one menu in their groups."""
        groups: dict[int, list[QAction]] = {}
        for command in COMMANDS:
            if command.menu == menu:
                groups.setdefault(command.group, []).append(self._actions[command.id])
        return [groups[key] for key in sorted(groups)]

    def all(self) -> list[tuple[str, QAction]]:
        """Every command as (menu, action), for the palette."""
        return [(command.menu, self._actions[command.id]) for command in COMMANDS]

    def refresh(self, view: View) -> None:
        """Enable what can be done now; a disabled action's tooltip says why."""
        for key, command in self._commands.items():
            action = self._actions[key]
            reason = command.blocked(view, self._selection)
            action.setEnabled(not reason)
            keys = action.shortcut().toString(QKeySequence.SequenceFormat.NativeText)
            tip = f"{command.tip} ({keys})" if keys else command.tip
            action.setToolTip(f"{tip}\n{reason}" if reason else tip)
            if command.checked is not None:
                action.setChecked(command.checked(self._window))
        undo, redo = self._actions["edit.undo"], self._actions["edit.redo"]
        undo.setText(f"&Undo {view.undo_text}".rstrip())
        redo.setText(f"&Redo {view.redo_text}".rstrip())

    def guard(self, run: Callable[[], object]) -> Callable[..., None]:
        """A call that shows an error the user can act on instead of raising it."""

        def guarded(*_args: object) -> None:
            try:
                run()
            except StudioError as error:
                show_error(self._window, error)

        return guarded

    def _make(self, command: Command) -> QAction:
        action = QAction(command.title, self._window)
        action.setObjectName(command.id)
        action.setStatusTip(command.tip)
        action.setCheckable(command.checked is not None)
        if command.shortcut:
            action.setShortcut(QKeySequence(command.shortcut))
        action.triggered.connect(self.guard(lambda: command.run(self._window)))
        if not command.within:
            self._window.addAction(action)
        return action

    def place(self, docks: Mapping[str, QWidget]) -> None:
        """Give the docks the shortcuts that work within them only (Space must still press buttons)."""
        for command in COMMANDS:
            if command.within:
                action = self._actions[command.id]
                action.setShortcutContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
                docks[command.within].addAction(action)

    def _recolor(self) -> None:
        for key, command in self._commands.items():
            if command.icon:
                self._actions[key].setIcon(self._theme.icon(command.icon))
