"""The inspector's small charts: histograms with the quantization grid, ranges, sensitivities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QColor, QMouseEvent
from PySide6.QtWidgets import QWidget

from studio.gui.theme import SMALL_PX, Theme
from studio.records.task import ChannelRange, Histogram, RankSpectrum

TICK_SHARE = 0.06  # height of a grid tick, of the tallest bar


class Chart(pg.PlotWidget):  # type: ignore[misc]  # pyqtgraph has no types
    """A plot that only shows: themed, no menus, no dragging."""

    def __init__(self, theme: Theme, name: str, height: int = 132, parent: QWidget | None = None) -> None:
        super().__init__(parent, background=theme.tokens.panel)
        self._theme = theme
        self.setAccessibleName(name)
        self.setFixedHeight(height)
        self.setFrameShape(self.Shape.NoFrame)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        item = self.getPlotItem()
        item.setMenuEnabled(False)
        item.hideButtons()
        item.setMouseEnabled(False, False)
        item.getViewBox().setDefaultPadding(0.02)
        theme.changed.connect(self.recolor)
        self.recolor()

    def recolor(self) -> None:
        """Take the colours of the theme in force."""
        tokens = self._theme.tokens
        self.setBackground(tokens.panel)
        for side in ("left", "bottom"):
            axis = self.getPlotItem().getAxis(side)
            axis.setPen(pg.mkPen(tokens.line))
            axis.setTextPen(pg.mkPen(tokens.dim))
            axis.setTickFont(self._theme.font(SMALL_PX))
            axis.setStyle(tickLength=0, tickTextOffset=4)
        self.redraw()

    def redraw(self) -> None:
        """Draw again; each chart knows what."""


class HistogramChart(Chart):
    """Counts over values; where the layer is treated, the values that its weights may take as ticks."""

    def __init__(self, theme: Theme, name: str, ink: str = "accent") -> None:
        self._data: Histogram | None = None
        self._grid: tuple[float, ...] = ()
        self._ink = ink
        super().__init__(theme, name)
        self.getPlotItem().hideAxis("left")

    def show_histogram(self, data: Histogram | None, grid: Sequence[float] = ()) -> None:
        """Show counts and the grid."""
        self._data, self._grid = data, tuple(grid)
        self.redraw()

    def redraw(self) -> None:
        """See Chart."""
        self.clear()
        data = self._data
        if data is None or not data.counts:
            return
        counts = np.asarray(data.counts, dtype=float)  # (bins,)
        edges = np.linspace(data.low, data.high if data.high > data.low else data.low + 1, len(counts) + 1)
        fill = self._theme.color(self._ink)
        fill.setAlphaF(0.75)
        self.addItem(pg.BarGraphItem(x0=edges[:-1], x1=edges[1:], y0=0, y1=counts, brush=fill, pen=None))
        if self._grid:
            self._draw_grid(float(counts.max()))
        spread = edges[-1] - edges[0]
        low, high = edges[0], edges[-1]
        if self._grid:
            low, high = min(low, *self._grid), max(high, *self._grid)
        self.setXRange(low - spread * 0.02, high + spread * 0.02, padding=0)

    def _draw_grid(self, top: float) -> None:
        places = np.repeat(np.asarray(self._grid, dtype=float), 2)
        heights = np.tile([0.0, -top * TICK_SHARE], len(self._grid))
        pen = pg.mkPen(self._theme.tokens.caution, width=1)
        self.addItem(pg.PlotCurveItem(places, heights, connect="pairs", pen=pen))
        for edge in (min(self._grid), max(self._grid)):
            self.addItem(
                pg.InfiniteLine(edge, pen=pg.mkPen(self._theme.tokens.caution, style=Qt.PenStyle.DashLine))
            )


class RangesChart(Chart):
    """Smallest to largest weight of every output channel."""

    def __init__(self, theme: Theme, name: str) -> None:
        self._ranges: tuple[ChannelRange, ...] = ()
        super().__init__(theme, name, height=160)

    def show_ranges(self, ranges: Sequence[ChannelRange]) -> None:
        """Show one range per channel."""
        self._ranges = tuple(ranges)
        self.redraw()

    def redraw(self) -> None:
        """See Chart."""
        self.clear()
        if not self._ranges:
            return
        count = len(self._ranges)
        places = np.repeat(np.arange(count, dtype=float), 2)
        ends: NDArray[np.float64] = np.asarray([(r.low, r.high) for r in self._ranges], dtype=float).ravel()
        width = max(1.0, min(6.0, 220 / count))
        pen = pg.mkPen(self._theme.tokens.accent, width=width, cap=Qt.PenCapStyle.FlatCap)
        self.addItem(pg.PlotCurveItem(places, ends, connect="pairs", pen=pen))
        self.addItem(pg.InfiniteLine(0, angle=0, pen=pg.mkPen(self._theme.tokens.line)))
        self.setXRange(-0.5, count - 0.5, padding=0.01)


class SpectrumChart(Chart):
    """What is lost at every rank, and the rank from which on nothing is saved."""

    def __init__(self, theme: Theme, name: str) -> None:
        self._spectrum: RankSpectrum | None = None
        super().__init__(theme, name)

    def show_spectrum(self, spectrum: RankSpectrum | None) -> None:
        """Show errors by rank."""
        self._spectrum = spectrum
        self.redraw()

    def redraw(self) -> None:
        """See Chart."""
        self.clear()
        found = self._spectrum
        if found is None:
            return
        tokens = self._theme.tokens
        ranks, lost = np.asarray(found.ranks, dtype=float), np.asarray(found.lost, dtype=float)
        self.addItem(pg.PlotCurveItem(ranks, lost, pen=pg.mkPen(tokens.accent, width=2)))
        pen = pg.mkPen(tokens.caution, style=Qt.PenStyle.DashLine)
        self.addItem(pg.InfiniteLine(found.break_even, pen=pen))


class SensitivityChart(Chart):
    """Sensitivity of every layer in graph order, the selected ones in colour; decades upwards.

    Signals:
        picked: the place of the layer whose bar was clicked.
    """

    picked = Signal(int)

    def __init__(self, theme: Theme, name: str) -> None:
        self._scores: tuple[float | None, ...] = ()
        self._chosen: frozenset[int] = frozenset()
        super().__init__(theme, name)
        self.getPlotItem().hideAxis("bottom")

    def show_scores(self, scores: Sequence[float | None], chosen: Sequence[int]) -> None:
        """Show scores by layer (None = not known), and which layers are selected."""
        self._scores, self._chosen = tuple(scores), frozenset(chosen)
        self.redraw()

    def redraw(self) -> None:
        """See Chart."""
        self.clear()
        known = [score for score in self._scores if score is not None and score > 0]
        if not known:
            return
        floor = max(min(known), max(known) / 1e6)
        low = np.floor(np.log10(floor))
        tokens = self._theme.tokens
        for chosen, color in ((False, tokens.original), (True, tokens.accent)):
            rows = [
                (place, np.log10(max(score, floor)) if score > 0 else low)
                for place, score in enumerate(self._scores)
                if score is not None and (place in self._chosen) is chosen
            ]
            if rows:
                x, top = np.asarray(rows, dtype=float).T
                ink = QColor(color)
                ink.setAlphaF(1.0 if chosen else 0.55)
                self.addItem(
                    pg.BarGraphItem(
                        x=x, y0=low, y1=np.maximum(top, low + 0.02), width=0.8, brush=ink, pen=None
                    )
                )
        axis = self.getPlotItem().getAxis("left")
        high = np.ceil(np.log10(max(known)))
        step = max(1, round((high - low) / 4))
        axis.setTicks([[(p, _power(int(p))) for p in np.arange(low, high + 1, step)]])
        self.setXRange(-0.6, max(len(self._scores) - 0.4, 1), padding=0.01)
        self.setYRange(low, max(high, low + 1), padding=0.06)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        """A click picks the bar under the mouse."""
        box = self.getPlotItem().getViewBox()
        place = round(box.mapSceneToView(self.mapToScene(event.position().toPoint())).x())
        if 0 <= place < len(self._scores):
            self.picked.emit(place)


def _power(exponent: int) -> str:
    """10 to a power as people write it: '0.01', '1', '10⁻⁶'."""
    if -3 <= exponent <= 3:
        return f"{10.0**exponent:g}"
    digits = str(abs(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{'⁻' if exponent < 0 else ''}{digits}"
