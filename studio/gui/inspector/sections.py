"""Building blocks of the inspector's tabs: scrolled pages, titled sections, facts in two columns."""

from __future__ import annotations

from collections.abc import Iterable

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QScrollArea, QVBoxLayout, QWidget

from studio.gui.theme import Theme
from studio.gui.widgets import caps, clear, label


class Page(QScrollArea):
    """A tab's content: a column that scrolls."""

    def __init__(self, name: str) -> None:
        super().__init__()
        inside = QWidget()
        self.column = QVBoxLayout(inside)
        self.column.setContentsMargins(12, 12, 12, 12)
        self.column.setSpacing(8)
        self.setWidget(inside)
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName(name)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)


class Section(QWidget):
    """A title in capitals with an aside at its right, and what stands below."""

    def __init__(self, title: str, theme: Theme) -> None:
        super().__init__()
        self._aside = caps("", theme)
        head = QHBoxLayout()
        head.setContentsMargins(0, 8, 0, 0)
        head.addWidget(caps(title, theme))
        head.addStretch(1)
        head.addWidget(self._aside)
        self.body = QVBoxLayout(self)
        self.body.setContentsMargins(0, 0, 0, 0)
        self.body.setSpacing(4)
        self.body.addLayout(head)

    def set_aside(self, words: str) -> None:
        """What stands right of the title: the conditions of what is shown."""
        self._aside.setText(words.upper())


class Facts(QWidget):
    """Names left, values right; values can be selected and copied."""

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(12)
        self._grid.setVerticalSpacing(4)
        self._grid.setColumnStretch(1, 1)
        self._shown: tuple[tuple[str, str], ...] = ()

    def show_facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Show (name, value) pairs."""
        wanted = tuple(facts)
        if wanted == self._shown:
            return
        self._shown = wanted
        clear(self._grid)
        for row, (name, value) in enumerate(wanted):
            left = label(name, "dim")
            right = label(value, wrap=True, selectable=True)
            right.setTextFormat(Qt.TextFormat.PlainText)
            right.setAccessibleName(f"{name}: {value}")
            self._grid.addWidget(left, row, 0, Qt.AlignmentFlag.AlignTop)
            self._grid.addWidget(right, row, 1)
