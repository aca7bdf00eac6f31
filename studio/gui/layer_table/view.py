"""The table view: column widths that fill the room, selection by layer, keys and mouse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from PySide6.QtCore import QItemSelection, QItemSelectionModel, QModelIndex, QPoint, QSettings, Qt, Signal
from PySide6.QtGui import QFontMetrics, QKeyEvent, QKeySequence, QMouseEvent, QResizeEvent
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableView, QWidget

from studio.gui.figures import COLUMNS
from studio.gui.layer_table.delegate import CARET_WIDTH, PADDING, ROW_HEIGHT, LayerDelegate
from studio.gui.layer_table.model import LayerModel
from studio.gui.theme import SMALL_PX, Theme

_LEAST, _MOST = 44, 340  # pixels of a column
_NAME = 114  # a name or a bar is not cut below this
_SORT_SIGN = 1
_SAMPLE = 150  # rows looked at for the width of a column
_BY_CONTENT = {"layer", "op", "weight", "kernel", "output", "precision"}
_GROWING = {"layer": 3, "treatment": 3, "sensitivity": 2}  # shares of the room left over
_SHRINKING = {
    "layer": 0.55,
    "treatment": 0.88,
    "sensitivity": 0.65,
    "kernel": 0.6,
}  # least share of the width
_TREATMENT = next(i for i, column in enumerate(COLUMNS) if column.id == "treatment")


class LayerView(QTableView):
    """Shows a `LayerModel`.

    Signals:
        treatment_asked: the caret of a treatment was clicked, or Enter pressed: (row, global place).
        copy_asked: Ctrl+C.
        chosen: the user changed the selected rows; whether rows were added to those hidden by a filter.
    """

    treatment_asked = Signal(int, QPoint)
    copy_asked = Signal()
    chosen = Signal(bool)

    def __init__(self, model: LayerModel, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._layers = model
        self._fixed: set[int] = set()  # columns whose width the user chose
        self._header_metrics = QFontMetrics(theme.font(SMALL_PX))
        self._wanted: dict[int, int] = {}  # widths that the rows would like
        self._fitting = self._restoring = False
        self.setModel(model)
        self.setItemDelegate(LayerDelegate(theme, self))
        self.setAccessibleName("Layers")
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setTabKeyNavigation(False)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setMouseTracking(True)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        rows = self.verticalHeader()
        rows.hide()
        rows.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        rows.setDefaultSectionSize(ROW_HEIGHT)
        self._set_up_header(self.horizontalHeader())
        for header in (rows, self.horizontalHeader()):
            # A header asks its selection about every section at every painting: seconds with scattered rows.
            header.setSelectionModel(QItemSelectionModel(model, header))
        self.selectionModel().selectionChanged.connect(self._selection_changed)
        model.moving.connect(self.selectionModel().reset)
        model.replaced.connect(self._content_changed)

    # ------------------------------------------------------------ selection

    def selected_names(self) -> list[str]:
        """Layers of the selected rows, in the order of the rows."""
        rows = {i.row() for i in self.selectionModel().selectedRows()}
        return [self._layers.layer(row).name for row in sorted(rows)]

    def show_selection(self, names: Iterable[str], current: str, *, scroll: bool) -> None:
        """Select these layers' rows, without saying so."""
        rows = sorted(row for row in map(self._layers.row_of, names) if row >= 0)
        chosen = QItemSelection()
        last = len(COLUMNS) - 1
        for first, end in _runs(rows):
            chosen.select(self._layers.index(first, 0), self._layers.index(end, last))
        row = self._layers.row_of(current)
        self._restoring = True
        flags = QItemSelectionModel.SelectionFlag
        self.selectionModel().reset()  # clearing thousands of scattered ranges one by one takes a second
        self.selectionModel().select(chosen, flags.Select)
        if row >= 0:
            place = self._layers.index(row, max(0, self.currentIndex().column()))
            self.selectionModel().setCurrentIndex(place, flags.NoUpdate)
            if scroll:
                self.scrollTo(place)
        self._restoring = False
        self.viewport().update()

    def _selection_changed(self, _selected: QItemSelection, _deselected: QItemSelection) -> None:
        if not self._restoring:
            from PySide6.QtWidgets import QApplication

            adding = bool(QApplication.keyboardModifiers() & Qt.KeyboardModifier.ControlModifier)
            self.chosen.emit(adding)

    # ------------------------------------------------------------ columns

    def show_column(self, section: int, shown: bool) -> None:
        """Show or hide a column."""
        self.setColumnHidden(section, not shown)
        self.fit_columns()

    def shown_columns(self) -> list[int]:
        """Columns on screen, from left to right."""
        header = self.horizontalHeader()
        order = (header.logicalIndex(place) for place in range(header.count()))
        return [section for section in order if not self.isColumnHidden(section)]

    def reset_columns(self) -> None:
        """The columns and widths to begin with."""
        header = self.horizontalHeader()
        self._fixed.clear()
        for section, column in enumerate(COLUMNS):
            header.moveSection(header.visualIndex(section), section)
            self.setColumnHidden(section, not column.shown)
        self.fit_columns()

    def save(self, settings: QSettings) -> None:
        """Keep columns, order and widths."""
        settings.setValue("layer_table/columns", ",".join(COLUMNS[s].id for s in self.shown_columns()))
        widths = (f"{COLUMNS[s].id}={self.columnWidth(s)}" for s in sorted(self._fixed))
        settings.setValue("layer_table/widths", ",".join(widths))

    def restore(self, settings: QSettings) -> None:
        """Take up what `save` kept; names that are not known any more are skipped."""
        places = {column.id: section for section, column in enumerate(COLUMNS)}
        names = str(settings.value("layer_table/columns", "") or "").split(",")
        sections = [places[name] for name in names if name in places]
        if sections:
            header = self.horizontalHeader()
            for section in range(len(COLUMNS)):
                self.setColumnHidden(section, section not in sections)
            for place, section in enumerate(sections):
                header.moveSection(header.visualIndex(section), place)
        for entry in str(settings.value("layer_table/widths", "") or "").split(","):
            name, _, width = entry.partition("=")
            if name in places and width.isdigit():
                self._fixed.add(places[name])
                self.setColumnWidth(places[name], int(width))
        self.fit_columns()

    def fit_columns(self) -> None:
        """Share the room among the columns whose width the user did not choose.

        Figures always have room. Names, bars and treatments get what they would like, or less where it
        is narrow, or more where it is wide.
        """
        shown = self.shown_columns()
        free = [s for s in shown if s not in self._fixed]
        room = self.viewport().width() - sum(self.columnWidth(s) for s in shown if s in self._fixed)
        wanted = {s: self._wanted_width(s) for s in free}
        least = {
            s: min(w, max(_NAME, int(w * _SHRINKING.get(COLUMNS[s].id, 1.0)))) for s, w in wanted.items()
        }
        spare = room - sum(wanted.values())
        if spare >= 0:
            shares = {s: _GROWING.get(COLUMNS[s].id, 0.5) for s in free}
            total = sum(shares.values()) or 1
            widths = {s: wanted[s] + int(spare * shares[s] / total) for s in free}
        else:
            part = min(1.0, -spare / (sum(wanted.values()) - sum(least.values()) or 1))
            widths = {s: int(wanted[s] - (wanted[s] - least[s]) * part) for s in free}
        self._fitting = True
        for section, width in widths.items():
            self.setColumnWidth(section, width)
        self._fitting = False

    def _wanted_width(self, section: int) -> int:
        """The width of the widest words of a column, as far as a look at some hundred rows tells."""
        if section not in self._wanted:
            column = COLUMNS[section]
            title = str(self._layers.headerData(section, Qt.Orientation.Horizontal))
            wanted = self._header_metrics.horizontalAdvance(title) + 2 * PADDING + _SORT_SIGN
            if column.id in _BY_CONTENT or column.numeric:
                rows = range(0, self._layers.rowCount(), max(1, self._layers.rowCount() // _SAMPLE))
                metrics = self.fontMetrics()
                words = (self._layers.text(row, column) for row in rows)
                wanted = max(
                    wanted, max((metrics.horizontalAdvance(w) for w in words), default=0) + 2 * PADDING
                )
            barred = column.id == "sensitivity" and bool(self._layers.known.scanned)
            if barred or not (column.numeric or column.id in _BY_CONTENT):
                wanted = max(wanted, column.width)
            self._wanted[section] = min(wanted, _MOST)
        return self._wanted[section]

    def _content_changed(self) -> None:
        self._wanted.clear()
        self.fit_columns()

    def _set_up_header(self, header: QHeaderView) -> None:
        header.setSectionsMovable(True)
        header.setSectionsClickable(True)
        header.setHighlightSections(False)
        header.setMinimumSectionSize(_LEAST)
        header.setSortIndicatorClearable(True)
        header.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        header.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        header.setAccessibleName("Columns")
        header.sectionResized.connect(self._section_resized)
        self.setSortingEnabled(True)
        for section, column in enumerate(COLUMNS):
            self.setColumnHidden(section, not column.shown)

    def _section_resized(self, section: int, _old: int, new: int) -> None:
        if not self._fitting and not self._restoring and new > 0 and self.isVisible():
            self._fixed.add(section)

    # ------------------------------------------------------------ Qt's events

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Share the new room."""
        super().resizeEvent(event)
        self.fit_columns()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """A press on the caret of a treatment asks for its menu and leaves the selection alone."""
        index = self.indexAt(event.position().toPoint())
        if event.button() is Qt.MouseButton.LeftButton and self._on_caret(index, event.position().toPoint()):
            if not self.selectionModel().isRowSelected(index.row(), QModelIndex()):
                super().mousePressEvent(event)
            corner = self.viewport().mapToGlobal(self.visualRect(index).bottomLeft())
            self.treatment_asked.emit(index.row(), corner)
            return
        super().mousePressEvent(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Enter and F2 open the treatment's menu, Ctrl+C copies."""
        keys: dict[Any, Callable[[], None]] = dict.fromkeys(
            (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_F2), self._ask_treatment
        )
        if event.matches(QKeySequence.StandardKey.Copy):
            self.copy_asked.emit()
        elif event.key() in keys and self.currentIndex().isValid():
            keys[event.key()]()
        else:
            super().keyPressEvent(event)

    def _ask_treatment(self) -> None:
        place = self._layers.index(self.currentIndex().row(), _TREATMENT)
        self.scrollTo(place)
        corner = self.viewport().mapToGlobal(self.visualRect(place).bottomLeft())
        self.treatment_asked.emit(place.row(), corner)

    def _on_caret(self, index: QModelIndex, place: QPoint) -> bool:
        if not index.isValid() or index.column() != _TREATMENT:
            return False
        return place.x() >= self.visualRect(index).right() - CARET_WIDTH


def _runs(rows: list[int]) -> list[tuple[int, int]]:
    """Sorted rows as (first, last) of each unbroken run."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and row == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], row)
        else:
            runs.append((row, row))
    return runs
