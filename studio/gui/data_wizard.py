"""Choosing samples for calibration and for evaluation, with a preview of what the model receives."""

from __future__ import annotations

import msgspec
from PySide6.QtCore import QSize, Qt, QTimer
from PySide6.QtGui import QIcon, QPixmap
from PySide6.QtWidgets import (
    QDialog,
    QFileDialog,
    QFrame,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QRadioButton,
    QTableWidget,
    QTableWidgetItem,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from studio.app.session import Session
from studio.base.errors import StudioError
from studio.gui.controls import Combo
from studio.gui.forms import Form
from studio.gui.inspector.sections import Page
from studio.gui.theme import Theme
from studio.gui.widgets import button, caps, label, set_role
from studio.records.measure import DataSpec, Preprocess
from studio.records.task import Answer, DataPreview, Failed

KINDS = (
    ("auto", "Look at the path"),
    ("npz", "One .npz file: arrays named as the inputs"),
    ("npz_folder", "Folder of .npz files: one feed each"),
    ("npy", ".npy file: one array"),
    ("images", "Folder of pictures, a subfolder a class"),
    ("csv", "CSV table"),
)
PATTERNS = "Data (*.npz *.npy *.csv *.tsv);;All files (*)"
THUMB = 72
REST_MS = 250
INPUT_HEADERS = ("Input", "Type", "Shape", "Min", "Mean", "Max")


class DataWizard(QDialog):
    """Two tabs, calibration and evaluation; nothing is decided before OK."""

    def __init__(self, session: Session, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._session = session
        self.setWindowTitle("Data")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.resize(920, 640)
        project = session.view.project
        self.calibration = DataPage(
            session,
            theme,
            "Samples that ranges are taken from and errors are compensated on, and that training learns from. "
            "Labels serve fine-tuning only.",
            project.calibration if project else None,
        )
        self.evaluation = DataPage(
            session,
            theme,
            "Samples that outputs are compared on, and accuracy where there are labels. Keep them apart from calibration.",
            project.evaluation if project else None,
        )
        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.tabBar().setDrawBase(False)
        self.tabs.setAccessibleName("Calibration and evaluation")
        self.tabs.addTab(self.calibration, "Calibration")
        self.tabs.addTab(self.evaluation, "Evaluation")
        self.tabs.currentChanged.connect(lambda _tab: self._ask())
        ok = button("Use this data", self.accept, role="primary", tip="Take both choices over")
        ok.setDefault(True)
        row = QHBoxLayout()
        row.setContentsMargins(16, 8, 16, 12)
        row.addStretch(1)
        row.addWidget(button("Cancel", self.reject, tip="Leave the data as they were"))
        row.addWidget(ok)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.tabs, 1)
        column.addLayout(row)
        self._ask()

    def accept(self) -> None:
        """Decide both, as one step of the history; data that were found to be of no use are shown instead."""
        for page in (self.calibration, self.evaluation):
            if page.useless:
                self.tabs.setCurrentWidget(page)
                return
        self._session.set_data(calibration=self.calibration.spec, evaluation=self.evaluation.spec)
        super().accept()

    def _ask(self) -> None:
        page = self.tabs.currentWidget()
        if isinstance(page, DataPage):
            page.preview()


class DataPage(QWidget):
    """One data set: at the left where it lies and how samples become feeds, at the right what comes of it."""

    def __init__(self, session: Session, theme: Theme, words: str, spec: DataSpec | None) -> None:
        super().__init__()
        self._session = session
        self._start = spec or DataSpec()
        self._preprocess = self._start.preprocess  # None: as the engine guesses from the model's input
        self._guess = self._start.preprocess
        self._rest = self._start
        self._turn = 0
        self._closed = False
        self.useless = False  # what is chosen cannot be used, as the last preview found
        self.destroyed.connect(self._forget)
        self.column, self._right = self._columns()
        self.column.addWidget(label(words, "dim", wrap=True))
        self.none, self.files, self.random = (
            QRadioButton("None"),
            QRadioButton("File or folder"),
            QRadioButton("Random"),
        )
        self.random.setToolTip("Values drawn at random: enough to time a model, not to judge it")
        self.none.setToolTip("No samples")
        self.files.setToolTip("Samples of your own")
        choice = QHBoxLayout()
        for radio in (self.files, self.random, self.none):
            choice.addWidget(radio)
        choice.addStretch(1)
        self.column.addLayout(choice)
        self.path = QLineEdit(self._start.path)
        self.path.setPlaceholderText(".npz, .npy, .csv, or a folder of pictures or .npz files")
        self.path.setAccessibleName("File or folder with samples")
        self.path.setToolTip("A file or folder with samples")
        self._file = button("File…", self._ask_file, tip="Choose a file with samples")
        self._folder = button("Folder…", self._ask_folder, tip="Choose a folder of pictures or .npz files")
        line = QHBoxLayout()
        line.addWidget(self.path, 1)
        line.addWidget(self._file)
        line.addWidget(self._folder)
        self._line = QWidget()
        self._line.setLayout(line)
        line.setContentsMargins(0, 0, 0, 0)
        self.column.addWidget(self._line)
        self.kind = Combo()
        for value, title in KINDS:
            self.kind.addItem(title, value)
        self.kind.setCurrentIndex(max(0, self.kind.findData(self._start.kind)))
        self.kind.setAccessibleName("Kind of data")
        self.kind.setToolTip("How the files are read")
        self.column.addWidget(self.kind)
        self.form = Form(DataSpec, skip=("path", "kind", "preprocess"))
        self.form.show_records([self._rest])
        self.form.edited.connect(self._edit)
        self.column.addWidget(self.form)
        self._preprocess_title = caps("Preprocessing", theme)
        self.preprocess = Form(Preprocess)
        self.preprocess.show_records([self._preprocess or Preprocess()])
        self.preprocess.edited.connect(self._edit_preprocess)
        self.column.addWidget(self._preprocess_title)
        self.column.addWidget(self.preprocess)
        self._right.addWidget(caps("What the model receives", theme))
        self.words = label(role="dim", wrap=True)
        self._right.addWidget(self.words)
        self.images = QListWidget()
        self.images.setViewMode(QListWidget.ViewMode.IconMode)
        self.images.setIconSize(QSize(THUMB, THUMB))
        self.images.setResizeMode(QListWidget.ResizeMode.Adjust)
        self.images.setMovement(QListWidget.Movement.Static)
        self.images.setFixedHeight(2 * (THUMB + 32))
        self.images.setAccessibleName("Samples as the model receives them")
        self.images.setToolTip("The first samples after preprocessing, with their labels")
        self._right.addWidget(self.images)
        self.inputs = QTableWidget(0, len(INPUT_HEADERS))
        self.inputs.setHorizontalHeaderLabels(list(INPUT_HEADERS))
        self.inputs.horizontalHeader().setDefaultAlignment(
            Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
        )
        self.inputs.verticalHeader().hide()
        self.inputs.setShowGrid(False)
        self.inputs.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
        self.inputs.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.inputs.setAccessibleName("Statistics of every input")
        self.inputs.setToolTip("What goes into each input, over the previewed samples")
        self.inputs.setMinimumHeight(96)
        self._right.addWidget(self.inputs)
        self.rows = label(role="small", wrap=True, selectable=True)
        self.rows.setTextFormat(Qt.TextFormat.PlainText)
        self._right.addWidget(self.rows)
        self._right.addStretch(1)
        self.column.addStretch(1)
        chosen = self.none if spec is None else self.random if spec.kind == "random" else self.files
        chosen.setChecked(True)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REST_MS)
        self._timer.timeout.connect(self.preview)
        for radio in (self.none, self.files, self.random):
            radio.toggled.connect(self._changed)
        self.path.textChanged.connect(self._changed)
        self.kind.activated.connect(self._changed)
        self._show_controls()

    def _columns(self) -> tuple[QVBoxLayout, QVBoxLayout]:
        left, right = Page("Where the samples are"), Page("What the model receives")
        line = QFrame()
        line.setProperty("role", "column")
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(0)
        row.addWidget(left, 1)
        row.addWidget(line)
        row.addWidget(right, 1)
        return left.column, right.column

    @property
    def spec(self) -> DataSpec | None:
        """What was chosen; None = no data."""
        if self.random.isChecked():
            return msgspec.structs.replace(self._rest, path="", kind="random", preprocess=None)
        if self.none.isChecked() or not self.path.text().strip():
            return None
        return msgspec.structs.replace(
            self._rest,
            path=self.path.text().strip(),
            kind=self.kind.currentData(),
            preprocess=self._preprocess if self._pictures() else None,
        )

    def preview(self) -> None:
        """Ask what the model would receive."""
        spec = self.spec
        self.useless = False
        self._turn += 1
        turn = self._turn
        if spec is None:
            self._show_preview(None, "The first samples will be shown here once data are chosen.")
            return
        set_role(self.words, "dim")
        self.words.setText("Reading…")
        self._session.preview_data(spec, lambda answer: self._answered(turn, answer))

    def _forget(self) -> None:
        self._closed = True

    def _pictures(self) -> bool:
        """Whether samples are pictures, by choice or as the last preview found."""
        kind = self.kind.currentData()
        return kind == "images" or (kind == "auto" and self._guess is not None)

    def _changed(self, *_args: object) -> None:
        if self.sender() is self.path:
            self._guess = None
        self.useless = False
        self._show_controls()
        self._timer.start()

    def _show_controls(self) -> None:
        files = self.files.isChecked()
        for part in (self._line, self.kind):
            part.setVisible(files)
        self.form.setVisible(not self.none.isChecked())
        pictures = files and self._pictures()
        self._preprocess_title.setVisible(pictures)
        self.preprocess.setVisible(pictures)

    def _edit(self, name: str, value: object) -> None:
        self._rest = msgspec.structs.replace(self._rest, **{name: value})
        self._timer.start()

    def _edit_preprocess(self, name: str, value: object) -> None:
        self._preprocess = msgspec.structs.replace(
            self._preprocess or self._guess or Preprocess(), **{name: value}
        )
        self._timer.start()

    def _answered(self, turn: int, answer: Answer) -> None:
        if turn != self._turn or self._closed:
            return
        match answer:
            case DataPreview():
                self._guess = answer.summary.spec.preprocess
                if self._guess is not None:
                    self.preprocess.show_records([self._guess])
                self._show_controls()
                self._show_preview(answer, "")
            case Failed():
                self.useless = True
                self._show_preview(None, StudioError(answer.what, answer.why, answer.hint).sentence, "bad")
            case _:
                self._show_preview(None, "")

    def _show_preview(self, found: DataPreview | None, words: str, role: str = "dim") -> None:
        if found is not None:
            summary = found.summary
            lines = [summary.description]
            if summary.labelled:
                lines.append(f"{summary.labelled} of {summary.samples} labelled, {summary.classes} classes")
            lines += list(summary.cautions)
            words = "\n".join(lines)
            role = "caution" if summary.cautions or summary.random else ""
        set_role(self.words, role)
        self.words.setText(words)
        self.images.clear()
        for i, path in enumerate(found.images if found else ()):
            name = found.labels[i] if found and i < len(found.labels) else ""
            picture = QPixmap(path).scaled(
                THUMB, THUMB, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.FastTransformation
            )
            self.images.addItem(QListWidgetItem(QIcon(picture), name or "–"))
        self.images.setVisible(self.images.count() > 0)
        rows = found.inputs if found else ()
        self.inputs.setRowCount(len(rows))
        for place, (name, dtype, shape, low, mean, high) in enumerate(rows):
            texts = (name, dtype, shape, f"{low:.4g}", f"{mean:.4g}", f"{high:.4g}")
            for column, text in enumerate(texts):
                cell = QTableWidgetItem(text)
                if column > 2:
                    cell.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.inputs.setItem(place, column, cell)
        self.inputs.setVisible(bool(rows))
        self.rows.setText("\n".join(found.rows) if found and not found.images else "")

    def _ask_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Samples", self.path.text(), PATTERNS)
        if path:
            self.path.setText(path)

    def _ask_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Folder with samples", self.path.text())
        if path:
            self.path.setText(path)
