"""The toolbar and the status bar."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QAction, QActionGroup
from PySide6.QtWidgets import QMenu, QPushButton, QSizePolicy, QStatusBar, QToolBar, QToolButton, QWidget

from studio.app.view import View
from studio.base import units
from studio.gui.commands import Actions
from studio.gui.theme import Theme
from studio.gui.widgets import RichButton, button, label, set_role, strong
from studio.records.measure import DataSpec, DataSummary

if TYPE_CHECKING:
    from studio.gui.main_window import MainWindow

THREADS_SHOWN = 16


class ToolBar(QToolBar):
    """What is needed most, the one filled button, and what everything is measured with."""

    def __init__(self, window: MainWindow, actions: Actions, theme: Theme) -> None:
        super().__init__("Toolbar", window)
        self.setObjectName("toolbar")
        self.setMovable(False)
        self.setIconSize(QSize(16, 16))
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.PreventContextMenu)
        self._window, self._actions = window, actions
        self._buttons: dict[str, QPushButton] = {}
        self._add("file.open", "Open…")
        for command in ("edit.undo", "edit.redo"):
            tool = QToolButton()
            tool.setDefaultAction(actions[command])
            tool.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonIconOnly)
            tool.setFocusPolicy(Qt.FocusPolicy.TabFocus)
            tool.setAccessibleName(command.removeprefix("edit.").capitalize())
            self.addWidget(tool)
        self.addSeparator()
        self._add("analyze.scan", "Scan sensitivity")
        self._add("compress.run", "Compress")
        self._add("compress.train", "Fine-tune…")
        self.addSeparator()
        self._add("analyze.compare", "Compare")
        self._add("file.export", "Export ONNX…")
        spacer = QWidget()
        spacer.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        self.addWidget(spacer)
        self.data = RichButton(theme)
        self.data.setToolTip("Samples for calibration and for evaluation (Ctrl+D)")
        self.data.clicked.connect(window.ask_data)
        self.runs = RichButton(theme)
        self.runs.setToolTip("What models are run and timed on")
        self.runs.setMenu(threads_menu(window))
        self.addWidget(self.data)
        self.addWidget(self.runs)

    def button(self, command: str) -> QPushButton:
        """The button of one command."""
        return self._buttons[command]

    def refresh(self, view: View) -> None:
        """Name what compressing would do, and fill the one button that comes next."""
        compress, scan = self._buttons["compress.run"], self._buttons["analyze.scan"]
        project = view.project
        staged, treated = len(project.staged) if project else 0, view.to_treat
        running = any(job.kind == "compress" and job.active for job in view.jobs)
        words = f"Compress {units.counted(treated, 'layer')}" if staged else "Compress"
        compress.setText(f"{words} ▸" if staged else words)
        compress.setAccessibleName(words)
        for key, tool in self._buttons.items():
            action = self._actions[key]
            tool.setEnabled(action.isEnabled() and not (key == "compress.run" and running))
            tool.setToolTip(action.toolTip())
        version = project.current if project else None
        scanning = any(job.kind == "scan" and job.active for job in view.jobs)
        made = version is not None and version.parent is not None
        unknown = version is not None and version.info is not None and not version.scans and not scanning
        set_role(compress, "primary" if treated else "")
        set_role(scan, "primary" if unknown and not staged and not made else "")
        set_role(self._buttons["file.export"], "primary" if made and not staged else "")
        self._show_data(view)
        threads = project.threads if project else 0
        count = (
            f"{threads} thread{'' if threads == 1 else 's'}" if threads else f"all {os.cpu_count()} threads"
        )
        self.runs.set_words(f"Runs on: {strong('CPU')} · {count}", f"Runs on CPU, {count}")
        self.runs.setEnabled(project is not None)

    def _add(self, command: str, words: str) -> None:
        action = self._actions[command]
        made = QPushButton(words)
        made.setAutoDefault(False)
        made.setAccessibleName(words.rstrip("…"))
        made.clicked.connect(lambda _checked=False: action.trigger())
        self._buttons[command] = made
        self.addWidget(made)

    def _show_data(self, view: View) -> None:
        project = view.project
        self.data.setEnabled(project is not None)
        spec = (project.evaluation or project.calibration) if project else None
        summary = (project.evaluation_summary or project.calibration_summary) if project else None
        name, count = data_words(spec, summary)
        self.data.set_words(f"Data: {strong(name)}{count}", f"Data: {name}{count}")


def data_words(spec: DataSpec | None, summary: DataSummary | None) -> tuple[str, str]:
    """A data set's name, and its size behind a dot."""
    if spec is None:
        return "none", ""
    name = "random" if spec.kind == "random" or not spec.path else Path(spec.path).stem
    name = name if len(name) <= 24 else f"{name[:23]}…"
    return name, f" · {summary.samples:,}" if summary else ""


def threads_menu(window: MainWindow) -> QMenu:
    """How many threads the runtime uses."""
    menu = QMenu("&Threads", window)
    menu.setToolTipsVisible(True)
    group = QActionGroup(menu)
    counts = [0, *range(1, min(THREADS_SHOWN, os.cpu_count() or 1) + 1)]
    for count in counts:
        words = (
            f"{count} thread{'' if count == 1 else 's'}" if count else "All threads (the runtime's choice)"
        )
        action = QAction(words, menu)
        action.setCheckable(True)
        action.setData(count)
        action.triggered.connect(lambda _checked=False, count=count: window.session.set_threads(count))
        group.addAction(action)
        menu.addAction(action)

    def show() -> None:
        project = window.session.view.project
        for action in menu.actions():
            action.setChecked(project is not None and action.data() == project.threads)
            action.setEnabled(project is not None)

    menu.aboutToShow.connect(show)
    return menu


class StatusBar(QStatusBar):
    """The model in a few figures; what the graph is coloured by; when the project was saved."""

    def __init__(self, window: MainWindow, theme: Theme, color_menu: QMenu) -> None:
        super().__init__(window)
        self.setSizeGripEnabled(False)
        self._facts = label()
        self._facts.setTextFormat(Qt.TextFormat.PlainText)
        self._saved = label()
        self.color = RichButton(theme)
        self.color.setProperty("role", "caps")
        self.color.setToolTip("What the graph's nodes are coloured by")
        self.color.setMenu(color_menu)
        self.set_color("nothing")
        self.addWidget(self._facts)
        self.findings = button("", window.show_model, role="link", tip="What to mind about this model")
        self.addWidget(self.findings)
        self.addPermanentWidget(self.color)
        self.addPermanentWidget(self._saved)

    def refresh(self, view: View, saved_at: str) -> None:
        """Show the figures of the version in view."""
        project = view.project
        version = project.current if project else None
        info = version.info if version else None
        self.color.setVisible(info is not None)
        count = sum(finding.level != "note" for finding in info.findings) if info else 0
        self.findings.setVisible(count > 0)
        self.findings.setText(f"{count} thing{'' if count == 1 else 's'} to mind")
        self.findings.setAccessibleName(self.findings.text())
        if project is None or version is None:
            self._facts.setText("")
            self._saved.setText("")
            return
        parts = [info.name if info and version.parent is None else version.name]
        if info is not None:
            parts += [f"opset {info.opset}", f"{units.short(info.cost.parameters)} parameters"]
            parts.append(
                f"{units.short(info.cost.macs)} MACs" if info.cost.macs is not None else "MACs unknown"
            )
            sizes = ", ".join(f"{name} = {size}" for name, size in info.input_sizes)
            parts += [f"at {sizes}"] if sizes else []
        self._facts.setText("      ".join(parts))
        self._saved.setText("Not saved" if view.modified else f"Saved {saved_at}" if saved_at else "")

    def set_color(self, words: str) -> None:
        """Name what the graph is coloured by."""
        self.color.set_words(f"Graph coloured by: {escape(words)}", f"Graph coloured by {words}")
