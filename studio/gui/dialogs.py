"""Messages to the user: errors with details to copy, crashes, help, about, questions."""

from __future__ import annotations

import platform
import sys
import traceback
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import cast

from PySide6.QtCore import Qt
from PySide6.QtGui import (
    QFont,
    QGuiApplication,
    QTextBlockFormat,
    QTextCharFormat,
    QTextCursor,
    QTextDocument,
    QTextFormat,
    QTextTable,
)
from PySide6.QtWidgets import (
    QApplication,
    QDialog,
    QHBoxLayout,
    QMessageBox,
    QPlainTextEdit,
    QTextBrowser,
    QVBoxLayout,
    QWidget,
)

from studio.base.errors import StudioError
from studio.base.resources import resource
from studio.gui.theme import BODY_PX, FIGURE_PX
from studio.gui.widgets import button, label
from studio.records.task import Failed


class Message(QDialog):
    """What happened, why, what to do next; the details can be opened and copied.

    Args:
        what: one sentence, strong.
        why, hint: shown below where there are any.
        details: long text, folded away.
        actions: more buttons, as (words, what they do); the dialog closes first.
    """

    def __init__(
        self,
        parent: QWidget | None,
        title: str,
        what: str,
        why: str = "",
        hint: str = "",
        details: str = "",
        actions: tuple[tuple[str, Callable[[], object]], ...] = (),
    ) -> None:
        super().__init__(parent)
        self.setWindowTitle(title)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setMinimumWidth(460)
        column = QVBoxLayout(self)
        column.setContentsMargins(20, 20, 20, 16)
        column.setSpacing(12)
        for words, role in ((what, "strong"), (_sentence(why), ""), (_sentence(hint), "dim")):
            if words:
                part = label(words, role, selectable=True)
                part.setWordWrap(True)
                part.setTextFormat(Qt.TextFormat.PlainText)
                column.addWidget(part)
        self.details = QPlainTextEdit(details)
        self.details.setReadOnly(True)
        self.details.setAccessibleName("Details")
        self.details.setToolTip("Select and copy what you need")
        self.details.setMinimumHeight(180)
        self.details.hide()
        column.addWidget(self.details)
        row = QHBoxLayout()
        self._report = "\n".join(part for part in (what, why, hint, details) if part)
        if details:
            self._toggle = button("Details", self._toggle_details, tip="Show what the machine said")
            row.addWidget(self._toggle)
        row.addWidget(button("Copy", self.copy, tip="Copy everything, to ask for help with it"))
        row.addStretch(1)
        for words, run in actions:
            row.addWidget(button(words, partial(self._do, run), tip=words))
        close = button("Close", self.accept, role="primary", tip="Close this message")
        close.setDefault(True)
        row.addWidget(close)
        column.addLayout(row)
        close.setFocus()

    def copy(self) -> None:
        """Put the whole report on the clipboard."""
        QGuiApplication.clipboard().setText(self._report)

    def _toggle_details(self) -> None:
        self.details.setVisible(self.details.isHidden())
        self._toggle.setText("Hide details" if not self.details.isHidden() else "Details")
        self.adjustSize()

    def _do(self, run: Callable[[], object]) -> None:
        self.accept()
        run()


def _sentence(words: str) -> str:
    return "" if not words else words[:1].upper() + words[1:].rstrip(".") + "."


def show_error(parent: QWidget, error: StudioError | Failed) -> Message:
    """Show an error that the user can act on; returns the open dialog."""
    title = "Unexpected error" if isinstance(error, Failed) and error.bug else "Featherweight"
    message = Message(parent, title, error.what, error.why, error.hint, error.details)
    message.open()
    return message


def machine_report() -> str:
    """Versions of everything that matters for a report, one a line."""
    lines = [
        f"Featherweight {_version('featherweight-studio')}",
        f"Python {platform.python_version()}, {platform.platform()}",
    ]
    lines += [
        f"{name} {_version(name)}"
        for name in ("PySide6", "onnx", "onnxruntime", "torch", "netron", "pyqtgraph")
    ]
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def install_crash_hook(parent: Callable[[], QWidget | None]) -> None:
    """Show a dialog with a report to copy for everything that nobody caught; the window stays."""
    shown: list[str] = []

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        text = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write(text)
        if QApplication.instance() is None or text in shown:
            return  # the same crash again (a repaint, a timer) needs no second dialog
        shown.append(text)
        Message(
            parent(),
            "Unexpected error",
            "Something went wrong inside Featherweight",
            f"{kind.__name__}: {error}",
            "Your project is kept and you can go on. Please report this: the details can be copied.",
            f"{text}\n{machine_report()}",
        ).open()

    sys.excepthook = hook


def ask_unsaved(parent: QWidget, name: str) -> QMessageBox.StandardButton:
    """Ask what to do with unsaved work: Save, Discard or Cancel."""
    box = QMessageBox(parent)
    box.setWindowTitle("Unsaved changes")
    box.setText(f"Save the changes to {name}?")
    box.setInformativeText("Versions, treatments and scans that were not saved are lost otherwise.")
    buttons = QMessageBox.StandardButton
    box.setStandardButtons(buttons.Save | buttons.Discard | buttons.Cancel)
    box.setDefaultButton(buttons.Save)
    return QMessageBox.StandardButton(box.exec())


def ask_stop(parent: QWidget, title: str) -> bool:
    """Ask whether a running job may be stopped."""
    box = QMessageBox(parent)
    box.setWindowTitle("A job is running")
    box.setText(f"Stop '{title}'?")
    box.setInformativeText("What it has done so far is lost.")
    box.setStandardButtons(QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.Cancel)
    box.setDefaultButton(QMessageBox.StandardButton.Cancel)
    box.button(QMessageBox.StandardButton.Yes).setText("Stop it")
    return box.exec() == QMessageBox.StandardButton.Yes


def ask_agreement(parent: QWidget, questions: tuple[str, ...]) -> bool:
    """Ask for a yes to what a plan wants agreed."""
    box = QMessageBox(parent)
    box.setWindowTitle("Before compressing")
    box.setText("\n\n".join(questions))
    box.setStandardButtons(QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.Cancel)
    box.setDefaultButton(QMessageBox.StandardButton.Cancel)
    return box.exec() == QMessageBox.StandardButton.Yes


class TextDialog(QDialog):
    """A text to read, in Markdown."""

    def __init__(self, parent: QWidget, title: str, text: str) -> None:
        super().__init__(parent)
        self.setWindowTitle(title)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.resize(640, 560)
        self.browser = QTextBrowser()
        self.browser.setMarkdown(text)
        _set_type(self.browser.document())
        self.browser.setAccessibleName(title)
        self.browser.setOpenLinks(False)
        self.browser.document().setDocumentMargin(12)
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 12, 12, 12)
        column.addWidget(self.browser)
        row = QHBoxLayout()
        row.addWidget(
            button(
                "Copy",
                lambda: QGuiApplication.clipboard().setText(self.browser.toPlainText()),
                tip="Copy the text",
            )
        )
        row.addStretch(1)
        close = button("Close", self.accept, tip="Close this window")
        close.setDefault(True)
        row.addWidget(close)
        column.addLayout(row)


def _set_type(document: QTextDocument) -> None:
    """Headings in the window's sizes, with air above; tables without boxes."""
    block = document.begin()
    while block.isValid():
        level = block.blockFormat().headingLevel()
        cursor = QTextCursor(block)
        if level:
            cursor.select(QTextCursor.SelectionType.BlockUnderCursor)
            letters = QTextCharFormat()
            letters.setProperty(QTextFormat.Property.FontPixelSize, FIGURE_PX if level == 1 else BODY_PX)
            letters.setProperty(QTextFormat.Property.FontSizeAdjustment, 0)
            letters.setFontWeight(QFont.Weight.DemiBold)
            cursor.mergeCharFormat(letters)
        table = cast("QTextTable | None", cursor.currentTable())  # the stubs leave None out
        if table is not None:
            look = table.format()
            look.setBorder(0)
            look.setCellPadding(3)
            table.setFormat(look)
        else:
            shape = QTextBlockFormat()
            shape.setTopMargin(16 if level > 1 else 4)
            shape.setBottomMargin(4)
            QTextCursor(block).mergeBlockFormat(shape)
        block = block.next()


def help_text(shortcuts: list[tuple[str, str]]) -> str:
    """The help page: the bundled text, then every shortcut."""
    text = resource("help/help.md").read_text(encoding="utf-8")
    rows = "\n".join(f"| {keys} | {words} |" for words, keys in shortcuts)
    return f"{text}\n\n## Shortcuts\n\n| Keys | What they do |\n|---|---|\n{rows}\n"


def about_text() -> str:
    """Name, licences, versions."""
    return (
        "# Featherweight\n\nA desktop studio for compressing neural networks.\n\n"
        "Apache License 2.0. Inter is © The Inter Project Authors (SIL Open Font License). "
        "The icons are Phosphor (MIT). The graph view is Netron by Lutz Roeder (MIT). Qt is used under the LGPL.\n\n"
        "```\n" + machine_report() + "\n```\n"
    )
