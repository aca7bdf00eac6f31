"""What all plots share: a title with its unit, axes with round ticks, the theme's colours, a hint while empty."""

from __future__ import annotations

import math
from typing import Any

from PySide6.QtCore import QEvent, QObject, QPointF, QRectF, Qt
from PySide6.QtGui import QPen
from PySide6.QtWidgets import QHBoxLayout, QStackedLayout, QVBoxLayout, QWidget

from studio.gui.theme import SMALL_PX, Theme
from studio.gui.widgets import EmptyState, caps, caps_font, label

_AXIS_WIDTH, _AXIS_HEIGHT = 38, 20


class PlotBox(QWidget):
    """A titled plot. Subclasses add items to `area` and call `set_axes`.

    Args:
        title: in capitals, the unit once included.
        empty: what will appear here; with a button where one makes it appear.
    """

    def __init__(self, theme: Theme, title: str, empty: EmptyState, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        import pyqtgraph

        self.theme = theme
        self.empty = empty
        self._title = caps(title, theme)
        self.status = label(role="caps")
        self.status.setFont(caps_font(theme))
        self.view: Any = pyqtgraph.PlotWidget(background=None)
        self.area: Any = self.view.getPlotItem()
        self._grid: list[Any] = []
        self._ticks: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
        self._axes: tuple[float, float, float, float] = (0, 1, 0, 1)
        self._dress()
        head = QHBoxLayout()
        head.setContentsMargins(12, 8, 12, 2)
        head.addWidget(self._title)
        head.addStretch(1)
        head.addWidget(self.status)
        self._stack = QStackedLayout()
        self._stack.addWidget(self.empty)
        self._stack.addWidget(self.view)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 4)
        column.setSpacing(0)
        column.addLayout(head)
        column.addLayout(self._stack, 1)
        self.setAccessibleName(title)
        self.view.setAccessibleName(title)
        theme.changed.connect(self._theme_changed)

    # ------------------------------------------------------------ for subclasses

    def set_axes(
        self, x: tuple[float, float], y: tuple[float, float], *, whole_x: bool = False, most: float = math.inf
    ) -> None:
        """Set both axes to ranges, with round ticks inside.

        Args:
            x: least and greatest value to be seen.
            y: likewise.
            whole_x: only whole numbers stand below.
            most: no number above this stands at the left.
        """
        xs = round_ticks(*x, most=5, whole=whole_x)
        if whole_x and x[1] - xs[-1] >= (xs[1] - xs[0] if len(xs) > 1 else 1) * 0.4:
            xs = (*xs, x[1])  # the end has a number of its own
        ys = tuple(value for value in round_ticks(*y, most=4) if value <= most)
        wanted = (*x, *y)
        if (wanted, (xs, ys)) == (self._axes, self._ticks):
            return
        self._axes, self._ticks = wanted, (xs, ys)
        self.area.setXRange(wanted[0], wanted[1], padding=0.03)
        self.area.setYRange(wanted[2], wanted[3], padding=0.05)
        for side, ticks in (("bottom", xs), ("left", ys)):
            self.area.getAxis(side).setTicks([[(value, tick_words(value, ticks)) for value in ticks]])
        self._draw_grid()

    def set_title(self, title: str) -> None:
        """Another title: units go with the model."""
        if title.upper() != self._title.text():
            self._title.setText(title.upper())
            self.setAccessibleName(title)
            self.view.setAccessibleName(title)

    def show_plot(self, shown: bool) -> None:
        """Show the plot, or what will appear here."""
        self._stack.setCurrentWidget(self.view if shown else self.empty)

    @property
    def has_plot(self) -> bool:
        """Whether the plot is on screen, not the hint."""
        return self._stack.currentWidget() is self.view

    def pen(self, token: str, width: float = 2.0, *, dashed: bool = False) -> QPen:
        """A line in the colour of a token."""
        pen = QPen(self.theme.color(token), width)
        pen.setCosmetic(True)
        if dashed:
            pen.setDashPattern([4, 3])
        return pen

    def recolor(self) -> None:
        """Give the items of the subclass the colours of the theme in force."""

    # ------------------------------------------------------------ inside

    def _dress(self) -> None:
        self.view.setFrameShape(self.view.Shape.NoFrame)
        self.view.setStyleSheet("background: transparent;")
        self.view.setAntialiasing(True)
        self.view.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.area.setMenuEnabled(False)
        self.area.hideButtons()
        self.area.setMouseEnabled(False, False)
        self.area.setContentsMargins(4, 4, 14, 2)
        self.area.getAxis("left").setWidth(_AXIS_WIDTH)
        self.area.getAxis("bottom").setHeight(_AXIS_HEIGHT)
        self.view.viewport().installEventFilter(self)
        self._dress_axes()

    def _dress_axes(self) -> None:
        font = self.theme.font(SMALL_PX)
        for side in ("left", "bottom"):
            axis = self.area.getAxis(side)
            axis.setStyle(tickFont=font, tickLength=0, tickTextOffset=6, tickAlpha=0)
            axis.setTextPen(self.theme.color("dim"))
            axis.setPen(None)

    def _draw_grid(self) -> None:
        import pyqtgraph

        for line in self._grid:
            self.area.removeItem(line)
        self._grid = []
        for value in self._ticks[1]:
            line = pyqtgraph.InfiniteLine(value, angle=0, pen=self.pen("line", 1))
            line.setZValue(-10)
            self.area.addItem(line, ignoreBounds=True)
            self._grid.append(line)

    def _theme_changed(self) -> None:
        self._dress_axes()
        self._draw_grid()
        self.recolor()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """The wheel scrolls nothing here: leave it to whatever holds the plot."""
        if event.type() == QEvent.Type.Wheel:
            event.ignore()
            return True
        return super().eventFilter(watched, event)

    def in_widget(self, x: float, y: float) -> QPointF:
        """Where a value is drawn, in pixels of `view`."""
        scene = self.area.vb.mapViewToScene(QPointF(x, y))
        return QPointF(self.view.mapFromScene(scene))

    def plot_rect(self) -> QRectF:
        """The rectangle between the axes, in pixels of `view`."""
        return QRectF(self.view.mapFromScene(self.area.vb.sceneBoundingRect()).boundingRect())


def round_ticks(low: float, high: float, *, most: int, whole: bool = False) -> tuple[float, ...]:
    """At most `most` + 1 round numbers from `low` to `high`, equally far apart."""
    if not high > low:
        high = low + (1 if whole else abs(low) * 0.1 or 1)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 1.5, 2, 2.5, 3, 4, 5, 10) if power * f >= rough * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(round(i * step, 10) for i in range(first, last + 1))


def tick_words(value: float, ticks: tuple[float, ...]) -> str:
    """A tick's number with as many decimals as the distance of the ticks asks for."""
    if len(ticks) < 2:
        return f"{value:g}"
    step = ticks[1] - ticks[0]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals <= 2 and round(step * 10**decimals, 6) % 1:
        decimals += 1
    return f"{value:.{decimals}f}".replace("-", "−")
