"""The table's rows: a sorted and filtered list of layers, without a proxy.

Sorting and filtering rearrange one list of indices in Python; a proxy model would call back into
Python for every comparison and take seconds at 10,000 rows.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, Qt, Signal

from studio.gui.figures import COLUMNS, Column, Figures, Value, column_title, heat, shown_as
from studio.records.model import Layer
from studio.records.plan import Refusal

Index = QModelIndex | QPersistentModelIndex
_NOWHERE = QModelIndex()
_DIGITS = re.compile(r"(\d+)")
_LEFT = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
_RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter


class LayerModel(QAbstractTableModel):
    """Layers as rows, `COLUMNS` as columns.

    Signals:
        moving, moved: around every change of the order. A view drops its selection in between and
            takes it up again by name: Qt would carry thousands of persistent indexes along, in seconds.
        replaced: other layers, or other kinds of figures: columns may want other widths.
    """

    moving = Signal()
    moved = Signal()
    replaced = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._known = Figures()
        self._rows: list[int] = []
        self._row_of: dict[str, int] = {}
        self._shares: dict[str, float] = {}
        self._sort: tuple[int, Qt.SortOrder] = (-1, Qt.SortOrder.AscendingOrder)
        self._kept: set[int] | None = None  # indices that the filter keeps; None = all

    # ------------------------------------------------------------ what it holds

    @property
    def known(self) -> Figures:
        """The figures shown."""
        return self._known

    def set_figures(self, known: Figures) -> None:
        """Show these figures; rows keep their places while the layers are the same and sorting allows."""
        before, same_layers = self._known, known.layers is self._known.layers
        self._known = known
        self._shares = dict(heat(column_named("sensitivity"), known).shares)
        if not same_layers:
            self._kept = None
            self.beginResetModel()
            self._arrange()
            self.endResetModel()
        elif self._sort[0] >= 0:
            self._rearrange()
        if self._rows:
            self.dataChanged.emit(self.index(0, 0), self.index(len(self._rows) - 1, len(COLUMNS) - 1))
        self.headerDataChanged.emit(Qt.Orientation.Horizontal, 0, len(COLUMNS) - 1)
        if not same_layers or (before.scanned, bool(before.times)) != (known.scanned, bool(known.times)):
            self.replaced.emit()

    def keep(self, kept: Iterable[int] | None) -> None:
        """Show only the layers at these indices of `known.layers`; None shows all."""
        self._kept = None if kept is None else set(kept)
        self.beginResetModel()
        self._arrange()
        self.endResetModel()

    def layer(self, row: int) -> Layer:
        """The layer in a row."""
        return self._known.layers[self._rows[row]]

    def text(self, row: int, column: Column) -> str:
        """A cell's words."""
        return shown_as(column, column.value(self.layer(row), self._known), self._known)

    def shown(self) -> list[Layer]:
        """The layers of all rows, in their order."""
        return [self._known.layers[index] for index in self._rows]

    def row_of(self, name: str) -> int:
        """The row of a layer; −1 when the filter hides it."""
        return self._row_of.get(name, -1)

    def share(self, name: str) -> float | None:
        """The length of a layer's sensitivity bar, 0..1; None when it is not known."""
        return self._shares.get(name)

    def csv(self, rows: Sequence[int], columns: Sequence[int]) -> str:
        """Rows and columns as comma-separated text with a header; full figures, not the shortened ones."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([_csv_title(COLUMNS[c], self._known) for c in columns])
        for row in rows:
            layer = self.layer(row)
            writer.writerow([_csv_value(COLUMNS[c].value(layer, self._known)) for c in columns])
        return text.getvalue()

    # ------------------------------------------------------------ Qt's questions

    def rowCount(self, parent: Index = _NOWHERE) -> int:
        """Rows shown."""
        return 0 if parent.isValid() else len(self._rows)

    def columnCount(self, parent: Index = _NOWHERE) -> int:
        """All columns; the view hides some."""
        return 0 if parent.isValid() else len(COLUMNS)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """A cell's words, alignment or tooltip."""
        column, layer = COLUMNS[index.column()], self.layer(index.row())
        if role in {Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.AccessibleTextRole}:
            return self.text(index.row(), column)
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _RIGHT if column.numeric and column.id != "sensitivity" else _LEFT
        if role == Qt.ItemDataRole.ToolTipRole:
            return self._tip(column, layer)
        return None

    def headerData(
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> Any:
        """A column's title, alignment or meaning."""
        if orientation is not Qt.Orientation.Horizontal:
            return None
        column = COLUMNS[section]
        if role == Qt.ItemDataRole.DisplayRole:
            return column_title(column, self._known)
        if role == Qt.ItemDataRole.ToolTipRole:
            return column.tip
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _RIGHT if column.numeric and column.id != "sensitivity" else _LEFT
        return None

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Sort by a column; −1 puts the layers back into the order of the graph."""
        self._sort = (column, order)
        self._rearrange()

    # ------------------------------------------------------------ inside

    def _rearrange(self) -> None:
        self.moving.emit()
        self.layoutAboutToBeChanged.emit()
        self._arrange()
        self.layoutChanged.emit()
        self.moved.emit()

    def _arrange(self) -> None:
        layers = self._known.layers
        rows = range(len(layers)) if self._kept is None else sorted(self._kept)
        section, order = self._sort
        if section < 0:
            self._rows = list(rows)
        else:
            column = COLUMNS[section]
            values = {row: _sortable(column.value(layers[row], self._known)) for row in rows}
            known = [row for row in rows if values[row] is not None]
            descending = order is Qt.SortOrder.DescendingOrder
            known.sort(key=lambda row: values[row], reverse=descending)
            self._rows = known + [row for row in rows if values[row] is None]
        self._row_of = {layers[index].name: row for row, index in enumerate(self._rows)}

    def _tip(self, column: Column, layer: Layer) -> str:
        name = layer.name
        if column.id == "treatment":
            refusals = [refusal for (of, _), refusal in self._known.refused.items() if of == name]
            if refusals:
                return "\n".join(_refusal_tip(refusal) for refusal in refusals)
            return f"Cannot be treated: {layer.untreatable}" if layer.untreatable else "Click ▾ to change"
        if column.id == "sensitivity" and (score := self._known.scores.get(name)) is not None:
            return _sensitivity_tip(score.refused, score.error, self._known.scanned)
        if column.id == "op" and len(layer.operators) > 1:
            return " · ".join(layer.operators)
        if column.id in {"latency", "ms", "kernel"} and (time := self._known.times.get(name)) is not None:
            also = f"\nin one kernel with {', '.join(time.also)}" if time.also else ""
            return f"{time.ms:.3f} ms measured · {time.kernel}{also}"
        if column.id == "size":
            return f"{layer.cost.bytes:,} bytes"
        return column.text(column.value(layer, self._known)) if not column.numeric else ""


def column_named(name: str) -> Column:
    """The column with this id."""
    return next(column for column in COLUMNS if column.id == name)


def _refusal_tip(refusal: Refusal) -> str:
    reason = (
        refusal.reason[0].upper() + refusal.reason[1:] if refusal.better else f"Refused: {refusal.reason}"
    )
    return f"{reason}. {refusal.hint}".strip()


def _sensitivity_tip(refused: str, error: Any, scanned: str) -> str:
    if refused or error is None:
        return f"Refused: {refused}" if refused else "Not known yet"
    words = [f"Only this layer treated with {scanned}: SQNR {error.sqnr_db:.1f} dB"]
    if error.kl is not None:
        words.append(f"KL {error.kl:.2g} nats")
    if error.agreement is not None:
        words.append(f"agreement {error.agreement * 100:.1f} %")
    return " · ".join(words) + f" · {error.samples} samples"


def _sortable(value: Value) -> Any:
    """Numbers as they are; texts with their numbers as numbers ('layer10' after 'layer2')."""
    if isinstance(value, str):
        return [int(part) if part.isdigit() else part for part in _DIGITS.split(value.lower())]
    return value


def _csv_title(column: Column, known: Figures) -> str:
    plain = {
        "size": "Bytes",
        "macs": "MACs",
        "after": "Bytes after (predicted)",
        "activations": "Activation bytes",
    }
    shares = {"latency": "Latency share", "share": "Share of bytes", "sparsity": "Zeros"}
    return plain.get(column.id) or shares.get(column.id) or column_title(column, known)


def _csv_value(value: Value) -> str:
    """Figures in full; texts that a spreadsheet would run as a formula are quoted with an apostrophe."""
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value[:1] in {"=", "+", "-", "@"} else value
    return f"{value:.10g}"
