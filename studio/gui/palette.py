"""The command palette (Ctrl+Shift+P): every command by name, and every layer to jump to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from PySide6.QtCore import QEvent, QModelIndex, QObject, QPersistentModelIndex, QSize, Qt
from PySide6.QtGui import QKeyEvent, QPainter, QPalette
from PySide6.QtWidgets import (
    QDialog,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

Index = QModelIndex | QPersistentModelIndex
SHOWN = 60  # entries at most; typing narrows


@dataclass(frozen=True)
class Entry:
    """One line of the palette: its words, what stands right of them, and what choosing it does."""

    words: str
    aside: str
    run: Callable[[], object]
    blocked: str = ""


def matches(query: str, words: str) -> tuple[int, int] | None:
    """How well `query` fits `words` (smaller is better); None when it does not.

    Every word of the query must occur; earlier and at the start of a word is better, and so are
    short entries. Without spaces, letters in order ('sclay' in 'Scan layers') fit last.
    """
    text, wanted = words.lower(), query.lower().split()
    places = [text.find(word) for word in wanted]
    if all(place >= 0 for place in places):
        return sum(places) + sum(10 for p in places if p and text[p - 1].isalnum()), len(text)
    position = -1
    for letter in "".join(wanted):
        position = text.find(letter, position + 1)
        if position < 0:
            return None
    return 1000 + position, len(text)


class EntryDelegate(QStyledItemDelegate):
    """The words at the left; at the right the shortcut, or why it cannot be done."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """The words by the style, what stands aside over it."""
        super().paint(painter, option, index)
        entry: Entry = index.data(Qt.ItemDataRole.UserRole)
        painter.save()
        painter.setPen(option.palette.color(QPalette.ColorRole.PlaceholderText))
        place = option.rect.adjusted(0, 0, -8, 0)
        sides = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        painter.drawText(place, sides, entry.blocked or entry.aside)
        painter.restore()

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        """Rows with a little air."""
        return QSize(super().sizeHint(option, index).width(), 26)


class Palette(QDialog):
    """A line to type in and the entries that fit.

    Args:
        entries: in the order shown while nothing is typed.
    """

    def __init__(self, entries: Iterable[Entry], parent: QWidget) -> None:
        super().__init__(parent, Qt.WindowType.Popup)
        self._entries = list(entries)
        self.setWindowTitle("Command palette")
        self.setAccessibleName("Command palette")
        self.resize(560, 400)
        self.line = QLineEdit()
        self.line.setPlaceholderText("Type a command or a layer's name")
        self.line.setAccessibleName("Command or layer")
        self.line.setToolTip("Type part of a command's or a layer's name")
        self.list = QListWidget()
        self.list.setItemDelegate(EntryDelegate(self.list))
        self.list.setAccessibleName("Commands")
        self.list.setToolTip("Enter or click does it")
        column = QVBoxLayout(self)
        column.setContentsMargins(8, 8, 8, 8)
        column.addWidget(self.line)
        column.addWidget(self.list)
        self.line.textChanged.connect(self._narrow)
        self.line.returnPressed.connect(self._choose)
        self.list.itemClicked.connect(lambda _item: self._choose())
        self.line.installEventFilter(self)
        self._narrow("")
        above = parent.window()
        self.move(
            above.mapToGlobal(above.rect().center()).x() - 280,
            above.mapToGlobal(above.rect().topLeft()).y() + 72,
        )

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Arrow keys in the line move through the list."""
        keys = {Qt.Key.Key_Up, Qt.Key.Key_Down, Qt.Key.Key_PageUp, Qt.Key.Key_PageDown}
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress and event.key() in keys:
            self.list.event(event)
            return True
        return super().eventFilter(watched, event)

    def _narrow(self, query: str) -> None:
        if query.strip():
            scored = [
                (score, i) for i, entry in enumerate(self._entries) if (score := matches(query, entry.words))
            ]
            found = [self._entries[i] for _, i in sorted(scored)]
        else:
            found = self._entries
        self.list.clear()
        for entry in found[:SHOWN]:
            item = QListWidgetItem(entry.words)
            item.setData(Qt.ItemDataRole.UserRole, entry)
            item.setData(Qt.ItemDataRole.AccessibleTextRole, f"{entry.words}, {entry.blocked or entry.aside}")
            if entry.blocked:
                item.setFlags(Qt.ItemFlag.ItemIsSelectable)
                item.setToolTip(entry.blocked)
            self.list.addItem(item)
        self.list.setCurrentRow(0)

    def _choose(self) -> None:
        chosen = self.list.selectedItems()
        entry = chosen[0].data(Qt.ItemDataRole.UserRole) if chosen else None
        if entry is None or entry.blocked:
            return
        self.close()
        entry.run()
