"""The bar under the graph: what it is coloured by, search, zoom."""

from __future__ import annotations

from PySide6.QtCore import QRectF, QSize, Qt, Signal
from PySide6.QtGui import QKeyEvent, QLinearGradient, QPainter, QPaintEvent
from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QMenu, QSizePolicy, QToolButton, QWidget

from studio.gui.figures import COLOR_COLUMNS, Heat
from studio.gui.theme import SMALL_PX, Theme
from studio.gui.widgets import button, label

_BAR = (96, 8)


class HeatBar(QWidget):
    """The heat colours from low to high, with the values at both ends in words."""

    def __init__(self, theme: Theme) -> None:
        super().__init__()
        self._theme = theme
        self._heat: Heat | None = None
        self.setFont(theme.font(SMALL_PX))
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        theme.changed.connect(self.update)

    def show_heat(self, heat: Heat | None) -> None:
        """Show the ends of this heat."""
        self._heat = heat if heat and heat.shares else None
        self.setVisible(self._heat is not None)
        words = f"Colours from {self._heat.low} (low) to {self._heat.high} (high)" if self._heat else ""
        self.setAccessibleName(words)
        self.setToolTip(f"{words}; nodes without weights stay neutral" if words else "")
        self.updateGeometry()
        self.update()

    def sizeHint(self) -> QSize:
        """Both words and the bar."""
        if self._heat is None:
            return QSize(0, 18)
        metrics = self.fontMetrics()
        words = metrics.horizontalAdvance(self._heat.low) + metrics.horizontalAdvance(self._heat.high)
        return QSize(words + _BAR[0] + 16, 18)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Low, bar, high."""
        if self._heat is None:
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        metrics = self.fontMetrics()
        left = metrics.horizontalAdvance(self._heat.low) + 6
        box = QRectF(left, (self.height() - _BAR[1]) / 2, *_BAR)
        gradient = QLinearGradient(box.topLeft(), box.topRight())
        for i in range(9):
            gradient.setColorAt(i / 8, self._theme.heat(i / 8))
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(gradient)
        painter.drawRoundedRect(box, 2, 2)
        painter.setPen(self._theme.color("dim"))
        middle = Qt.AlignmentFlag.AlignVCenter
        painter.drawText(QRectF(0, 0, left, self.height()), middle, self._heat.low)
        painter.drawText(QRectF(box.right() + 6, 0, self.width(), self.height()), middle, self._heat.high)


class SearchField(QLineEdit):
    """Finds nodes: Enter shows the next, Shift+Enter the one before, Escape clears.

    Signals:
        asked: the text, and which of its findings to show.
    """

    asked = Signal(str, int)

    def __init__(self) -> None:
        super().__init__()
        self._which = 0
        self.setPlaceholderText("Find in graph …")
        self.setAccessibleName("Find nodes of the graph")
        self.setToolTip("Name, operator or output (Ctrl+Shift+F); Enter: next, Shift+Enter: the one before")
        self.setClearButtonEnabled(True)
        self.setFixedWidth(170)
        self.textChanged.connect(self._restart)

    @property
    def which(self) -> int:
        """Which finding is shown, from 0."""
        return self._which

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Go through the findings."""
        if event.key() in {Qt.Key.Key_Return, Qt.Key.Key_Enter}:
            back = bool(event.modifiers() & Qt.KeyboardModifier.ShiftModifier)
            self._which += -1 if back else 1
            self.asked.emit(self.text(), self._which)
        elif event.key() == Qt.Key.Key_Escape:
            self.clear()
        else:
            super().keyPressEvent(event)

    def _restart(self, text: str) -> None:
        self._which = 0
        self.asked.emit(text, 0)


class GraphBar(QWidget):
    """Legend at the left; search, direction and zoom at the right.

    Signals:
        column_chosen: colour by this column; '' for none.
        turned: from left to right (True) or from top to bottom.
        shapes_wanted: write tensor shapes beside the lines.
        fit_asked, zoom_asked: show everything; a factor.
    """

    column_chosen = Signal(str)
    turned = Signal(bool)
    shapes_wanted = Signal(bool)
    fit_asked = Signal()
    zoom_asked = Signal(float)

    def __init__(self, theme: Theme) -> None:
        super().__init__()
        self.setObjectName("panel")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self._theme = theme
        self._horizontal = True
        self.chooser = button(
            "Colour by", tip="What the colours of the nodes mean", name="Colour the graph by"
        )
        self.chooser.setProperty("role", "caps")
        self.chooser.setMenu(self._colour_menu())
        self.heat = HeatBar(theme)
        self.note = label(role="small")
        self.search = SearchField()
        self.count = label(role="small")
        self._turn = self._tool("Turn the graph: left to right or top to bottom", self._flip)
        self._shapes = self._tool("Write tensor shapes beside the lines", lambda: None)
        self._shapes.setCheckable(True)
        self._shapes.toggled.connect(self.shapes_wanted)
        self._less = self._tool("Zoom out", lambda: self.zoom_asked.emit(0.8))
        self._more = self._tool("Zoom in", lambda: self.zoom_asked.emit(1.25))
        self._fit = self._tool("Show the whole graph (Space)", self.fit_asked.emit)
        row = QHBoxLayout(self)
        row.setContentsMargins(8, 3, 8, 3)
        row.setSpacing(4)
        for widget in (self.chooser, self.heat, self.note):
            row.addWidget(widget)
        row.addStretch(1)
        row.addWidget(self.count)
        row.addWidget(self.search)
        for tool in (self._turn, self._shapes, self._less, self._more, self._fit):
            row.addWidget(tool)
        theme.changed.connect(self._recolor)
        self._recolor()

    def show_coloring(self, title: str, heat: Heat | None, note: str) -> None:
        """Say what the colours mean now; `note` says why there are none."""
        self.chooser.setText(f"Coloured by: {title} ▾" if title else "Colour by ▾")
        self.heat.show_heat(heat)
        self.note.setText(note)

    def show_count(self, found: int) -> None:
        """Say how much the search found."""
        if not self.search.text():
            words = ""
        else:
            words = f"{self.search.which % found + 1} of {found}" if found else "not found"
        self.count.setText(words)

    def allow_shapes(self, allowed: bool) -> None:
        """Whether the canvas can write tensor shapes."""
        self._shapes.setVisible(allowed)

    # ------------------------------------------------------------ inside

    def _colour_menu(self) -> QMenu:
        menu = QMenu(self)
        menu.setToolTipsVisible(True)
        for column in COLOR_COLUMNS:
            action = menu.addAction(column.label)
            action.setToolTip(column.tip)
            action.triggered.connect(lambda _on=False, c=column.id: self.column_chosen.emit(c))
        menu.addSeparator()
        menu.addAction("No colours").triggered.connect(lambda _on=False: self.column_chosen.emit("none"))
        return menu

    def _tool(self, tip: str, clicked: object) -> QToolButton:
        made = QToolButton()
        made.setToolTip(tip)
        made.setAccessibleName(tip)
        made.clicked.connect(clicked)
        return made

    def _flip(self) -> None:
        self._horizontal = not self._horizontal
        self.turned.emit(self._horizontal)

    def _recolor(self) -> None:
        for tool, glyph in (
            (self._turn, "ph.arrows-clockwise"), (self._shapes, "ph.ruler"), (self._less, "ph.minus"),
            (self._more, "ph.plus"), (self._fit, "ph.corners-out"),
        ):  # fmt: skip
            tool.setIcon(self._theme.icon(glyph, "dim"))
