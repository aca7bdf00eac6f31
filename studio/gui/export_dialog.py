"""Export: where to, what was written and checked, and how to repeat it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtGui import QFontDatabase, QGuiApplication
from PySide6.QtWidgets import (
    QDialog,
    QFileDialog,
    QHBoxLayout,
    QLineEdit,
    QPlainTextEdit,
    QProgressBar,
    QVBoxLayout,
    QWidget,
)

from studio.app import recipe, report
from studio.app.export import Exported
from studio.app.project import Version
from studio.app.session import Session
from studio.app.view import View
from studio.base.errors import StudioError
from studio.base.resources import resource
from studio.gui.theme import Theme
from studio.gui.widgets import button, caps, label, set_role, watch


class ExportDialog(QDialog):
    """Writes one version as an ONNX file and says what the check found."""

    def __init__(self, session: Session, version: Version, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._session, self._version = session, version
        self._job = 0
        self.exported: Exported | None = None
        self.setWindowTitle("Export ONNX")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setMinimumWidth(600)
        self.path = QLineEdit(str(self._suggestion()))
        self.path.setAccessibleName("File to write")
        self.path.setToolTip("Where the ONNX file goes; large weights get a file beside it")
        self._browse = button("Browse…", self._ask_path, tip="Choose the file to write")
        self._bar = QProgressBar()
        self._bar.setRange(0, 1000)
        self._bar.setTextVisible(False)
        self._bar.setAccessibleName("Progress of the export")
        self._bar.hide()
        self.words = label(wrap=True, selectable=True)
        self.words.setTextFormat(Qt.TextFormat.PlainText)
        self.recipe = self._text(
            "Recipe", "The steps from the original to this version; save it as a .yaml file"
        )
        self.command = self._text("Command line", "Repeats this without a window")
        self.command.setMaximumHeight(72)
        self.file_words = label(role="dim", wrap=True)
        self.file_words.setTextFormat(Qt.TextFormat.PlainText)
        self._write = button("Export", self._start, role="primary", tip="Write the file and check it")
        self._write.setDefault(True)
        self._close = button("Close", self.reject, tip="Close this window")
        column = QVBoxLayout(self)
        column.setContentsMargins(20, 20, 20, 16)
        column.setSpacing(8)
        column.addWidget(label(f"Export {version.name}", "strong"))
        line = QHBoxLayout()
        line.addWidget(self.path, 1)
        line.addWidget(self._browse)
        column.addLayout(line)
        column.addWidget(self._bar)
        column.addWidget(self.words)
        for title, text in (("Recipe", self.recipe), ("Command line", self.command)):
            head = QHBoxLayout()
            head.addWidget(caps(title, theme))
            head.addStretch(1)
            head.addWidget(button("Copy", partial(_copy, text), role="link", tip=f"Copy the {title.lower()}"))
            if title == "Recipe":
                head.addWidget(
                    button("Save…", self._save_recipe, role="link", tip="Save the recipe as a file")
                )
            column.addLayout(head)
            column.addWidget(text)
        column.addWidget(self.file_words)
        row = QHBoxLayout()
        row.addWidget(
            button(
                "Save report…",
                self._save_report,
                role="link",
                tip="One HTML page: what was done, what it cost, how it was measured",
            )
        )
        row.addStretch(1)
        row.addWidget(self._close)
        row.addWidget(self._write)
        column.addLayout(row)
        self.path.textChanged.connect(lambda _text: self._show_repeat())
        watch(self, session, self._view_changed)
        self._show_repeat()

    def _suggestion(self) -> Path:
        project = self._session.view.project
        original = project.original if project else None
        folder = Path(original.file).parent if original else Path.home()
        if folder == resource("sample"):
            folder = Path.home()  # the studio's own files are not where a result belongs
        name = project.name if project else "model"
        suffix = "".join(c if c.isalnum() else "-" for c in self._version.name.lower()).strip("-")
        while "--" in suffix:
            suffix = suffix.replace("--", "-")
        return folder / f"{name}-{suffix}.onnx"

    def _text(self, name: str, tip: str) -> QPlainTextEdit:
        made = QPlainTextEdit()
        made.setReadOnly(True)
        made.setAccessibleName(name)
        made.setToolTip(tip)
        made.setMinimumHeight(52)
        made.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        return made

    def _show_repeat(self) -> None:
        project = self._session.view.project
        original = project.original if project else None
        if project is None or original is None:
            return
        steps, file = project.recipe_of(self._version), self._recipe_file()
        if not steps.steps:
            for text in (self.recipe, self.command):
                text.setPlaceholderText("Nothing was done to the original.")
            self.file_words.hide()
            return
        self.recipe.setPlainText(recipe.to_yaml(steps))
        command = recipe.command(
            steps,
            original.file,
            self.path.text(),
            calibration=project.calibration,
            evaluation=project.evaluation,
            recipe_file=file,
        )
        self.command.setPlainText(command)
        self.file_words.setText(f"It reads {Path(file).name}: save the recipe under that name.")
        self.file_words.setVisible(" --recipe " in command)

    def _recipe_file(self) -> str:
        """Where the recipe goes unless the user says otherwise: beside the model."""
        path = Path(self.path.text())
        return str(path.with_suffix(".yaml") if path.name else path / "recipe.yaml")

    def _ask_path(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Export ONNX", self.path.text(), "ONNX models (*.onnx)")
        if path:
            self.path.setText(path if Path(path).suffix else f"{path}.onnx")

    def _save_recipe(self) -> None:
        start = self._recipe_file()
        path, _ = QFileDialog.getSaveFileName(self, "Save recipe", start, "Recipes (*.yaml *.yml)")
        if path:
            try:
                Path(path).write_text(self.recipe.toPlainText(), encoding="utf-8")
            except OSError as error:
                self._say(f"The recipe could not be saved: {error.strerror}.", "bad")

    def _save_report(self) -> None:
        project = self._session.view.project
        if project is None:
            return
        start = str(Path(self.path.text()).with_suffix(".html"))
        path, _ = QFileDialog.getSaveFileName(self, "Save report", start, "Web pages (*.html)")
        if not path:
            return
        try:
            version = project.version(self._version.id)
            page = report.to_html(report.of_version(project, version, output=self.path.text()))
            Path(path).write_text(page, encoding="utf-8")
            self._say(f"The report is in {path}.", "")
        except StudioError as error:
            self._say(error.sentence, "bad")
        except OSError as error:
            self._say(f"The report could not be saved: {error.strerror}.", "bad")

    def _start(self) -> None:
        self._say("", "")
        try:
            self._job = self._session.export(self._version.id, self.path.text(), self._done)
        except StudioError as error:
            self._say(error.sentence, "bad")
            return
        self._busy(running=True)

    def _done(self, exported: Exported) -> None:
        self.exported = exported
        self._busy(running=False)
        self._say("\n".join(exported.words), "good" if exported.sound else "caution")
        self._write.setText("Export again")
        set_role(self._write, "")
        self._close.setFocus()

    def _view_changed(self, _old: View, new: View) -> None:
        job = new.job(self._job) if self._job else None
        if job is None:
            return
        self._bar.setValue(round(job.share * 1000))
        if job.state == "running" and job.words:
            self._say(job.words, "dim")
        if job.state in {"failed", "cancelled"}:
            self._job = 0
            self._busy(running=False)
            self._say(job.words, "bad" if job.state == "failed" else "dim")

    def _busy(self, *, running: bool) -> None:
        self._bar.setVisible(running)
        self._write.setEnabled(not running)
        self.path.setReadOnly(running)
        self._browse.setEnabled(not running)

    def _say(self, words: str, role: str) -> None:
        self.words.setText(words)
        set_role(self.words, role)


def _copy(text: QPlainTextEdit) -> None:
    QGuiApplication.clipboard().setText(text.toPlainText())
