"""All measured versions: how good against how fast, dots as large as the files; a click goes there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QLineF, QPointF, QRectF, Qt, QTimer
from PySide6.QtGui import QColor, QFontMetricsF, QResizeEvent
from PySide6.QtWidgets import QWidget

from studio.app.project import Project, Version
from studio.app.session import Session
from studio.app.view import View
from studio.base.units import file_size
from studio.gui.plots.base import PlotBox
from studio.gui.selection import Selection
from studio.gui.theme import SMALL_PX, Theme
from studio.gui.widgets import EmptyState, watch

EQUAL_DB = 150.0  # from here on outputs are equal; drawn a little above the best of the others
_DOTS = (8.0, 20.0)  # diameters of the smallest and the largest file
_WORDS_PX = 140  # a label is not longer


@dataclass(frozen=True)
class Point:
    """One measured version."""

    version: int
    name: str
    ms: float
    quality: float  # in the unit of `Quality`
    bytes: int
    current: bool
    words: str


@dataclass(frozen=True)
class Quality:
    """What 'how good' means here: one measure that all points have."""

    title: str
    unit: str


def read_points(project: Project | None) -> tuple[Quality, tuple[Point, ...]]:
    """The measured versions with the best measure that all of them have: accuracy, agreement, else SQNR."""
    versions = [] if project is None else [v for v in project.versions if _ms(v) is not None]
    measures: tuple[tuple[Quality, Callable[[Version], float | None]], ...] = (
        (Quality(_metric(versions), "%"), _accuracy),
        (Quality("Agreement", "%"), _agreement),
        (Quality("SQNR", "dB"), _sqnr),
    )
    for quality, read in measures:
        values = {v.id: value for v in versions if (value := read(v)) is not None}
        if values and len(values) == len(versions):
            return quality, _points(project, versions, values, quality)
    return Quality("", ""), ()


def _points(
    project: Project | None, versions: Sequence[Version], values: Mapping[int, float], quality: Quality
) -> tuple[Point, ...]:
    finite = [v for v in values.values() if v < EQUAL_DB]
    top = max(finite, default=40.0) * 1.15 if quality.unit == "dB" else math.inf
    points = []
    for version in versions:
        value, ms = values[version.id], _ms(version)
        if ms is None:
            continue
        size = version.measurement.file_bytes if version.measurement else 0
        shown = "equal" if quality.unit == "dB" and value >= EQUAL_DB else f"{value:.1f} {quality.unit}"
        current = project is not None and project.head == version.id
        words = f"{version.name}: {quality.title} {shown} · {ms:.3g} ms · {file_size(size)}, measured"
        points.append(Point(version.id, version.name, ms, min(value, top), size, current, words))
    return tuple(points)


def pareto(points: Sequence[Point]) -> tuple[Point, ...]:
    """Points that no other beats in both time and quality, from fast to slow."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.ms, -p.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return tuple(best)


def place_labels(
    dots: Sequence[tuple[QPointF, float]],
    sizes: Sequence[tuple[float, float]],
    room: QRectF,
    line: Sequence[QPointF] = (),
) -> list[QRectF | None]:
    """Where labels go, in pixels: beside their dots, over no other label or dot; None where there is no place.

    Args:
        dots: centres and radii.
        sizes: width and height of each label.
        room: labels stay inside.
        line: corners of a line that labels keep clear of where they can.
    """
    parts = [QLineF(start, end) for start, end in itertools.pairwise(line)]
    taken = [QRectF(c.x() - r, c.y() - r, 2 * r, 2 * r) for c, r in dots]
    placed: list[QRectF | None] = []
    for (center, radius), (width, height) in zip(dots, sizes, strict=True):
        gap = radius + 3
        corners = (
            (gap, -height / 2), (-gap - width, -height / 2), (-width / 2, -gap - height), (-width / 2, gap),
            (gap * 0.7, -gap - height), (gap * 0.7, gap), (-gap * 0.7 - width, -gap - height), (-gap * 0.7 - width, gap),
        )  # fmt: skip
        boxes = (QRectF(center.x() + x, center.y() + y, width, height) for x, y in corners)
        free = [b for b in boxes if room.contains(b) and not any(b.intersects(t) for t in taken)]
        clear = (b for b in free if not any(_crosses(part, b) for part in parts))
        found = next(clear, free[0] if free else None)
        if found is not None:
            taken.append(found)
        placed.append(found)
    return placed


def _crosses(line: QLineF, box: QRectF) -> bool:
    corners = (box.topLeft(), box.topRight(), box.bottomRight(), box.bottomLeft())
    if box.contains(line.p1()) or box.contains(line.p2()):
        return True
    edges = (QLineF(corners[i - 1], corners[i]) for i in range(4))
    bounded = QLineF.IntersectionType.BoundedIntersection
    return any(line.intersects(edge)[0] == bounded for edge in edges)


class TradeOffPlot(PlotBox):
    """Quality against latency of all measured versions."""

    def __init__(
        self, session: Session, _selection: Selection, theme: Theme, parent: QWidget | None = None
    ) -> None:
        empty = EmptyState(
            "Measured versions are drawn here: how good against how fast.",
            "Measure this version",
            self._measure,
            "Latency, size, memory and accuracy, against the original",
        )
        super().__init__(theme, "Trade-off", empty, parent)
        import pyqtgraph

        self._session = session
        self.points: tuple[Point, ...] = ()
        self.labels: list[Any] = []
        self._soon = QTimer(self, singleShot=True, interval=0)
        self._soon.timeout.connect(self._draw_labels)
        self._front: Any = pyqtgraph.PlotCurveItem()
        self._dots: Any = pyqtgraph.ScatterPlotItem(hoverable=True, hoverSize=-1, tip=None)
        self._dots.sigClicked.connect(self._clicked)
        self._dots.sigHovered.connect(self._hovered)
        self.area.vb.sigTransformChanged.connect(lambda _box: self._soon.start())
        for item in (self._front, self._dots):
            self.area.addItem(item, ignoreBounds=True)
        watch(self, session, self._view_changed)
        self._show(session.view)

    def recolor(self) -> None:
        """Dots, line and labels in the theme's colours."""
        self._draw()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Labels find new places, once the axes have theirs."""
        super().resizeEvent(event)
        self._soon.start()

    # ------------------------------------------------------------ inside

    def _view_changed(self, old: View, new: View) -> None:
        if old.project is not new.project:
            self._show(new)

    def _show(self, view: View) -> None:
        quality, points = read_points(view.project)
        self.empty.button.setVisible(view.project is not None and view.project.current is not None)
        if points == self.points and points:
            return
        self.points = points
        self.show_plot(bool(points))
        self.status.setText(f"{quality.title} ({quality.unit}) vs latency (ms)".upper() if points else "")
        if not points:
            return
        xs, ys = [p.ms for p in points], [p.quality for p in points]
        self.set_axes(_with_room(xs), _with_room(ys), most=100 if quality.unit == "%" else math.inf)
        self._draw()
        self.view.setAccessibleDescription("; ".join(p.words for p in points))

    def _draw(self) -> None:
        if not self.points:
            return
        largest = max(p.bytes for p in self.points) or 1
        spots = [
            {
                "pos": (p.ms, p.quality), "size": _diameter(p.bytes, largest), "data": p.version,
                "brush": self.theme.color("accent" if p.current else "original"),
                "pen": self.pen("panel", 1),
            }
            for p in sorted(self.points, key=lambda p: (p.current, -p.bytes))
        ]  # fmt: skip
        self._dots.setData(spots)
        front = pareto(self.points)
        good = QColor(self.theme.color("good"))
        good.setAlpha(150)
        pen = self.pen("good", 1.6)
        pen.setColor(good)
        self._front.setPen(pen)
        self._front.setData([p.ms for p in front], [p.quality for p in front])
        self._soon.start()

    def _draw_labels(self) -> None:
        import pyqtgraph

        for old in self.labels:
            self.area.removeItem(old)
        self.labels = []
        if not self.points or not self.has_plot:
            return
        font = self.theme.font(SMALL_PX)
        metrics = QFontMetricsF(font)
        ordered = sorted(self.points, key=lambda p: not p.current)
        texts = [metrics.elidedText(p.name, Qt.TextElideMode.ElideRight, _WORDS_PX) for p in ordered]
        largest = max(p.bytes for p in self.points) or 1
        dots = [(self.in_widget(p.ms, p.quality), _diameter(p.bytes, largest) / 2) for p in ordered]
        sizes = [(metrics.horizontalAdvance(text) + 4, metrics.height()) for text in texts]
        front = [self.in_widget(p.ms, p.quality) for p in pareto(self.points)]
        places = place_labels(dots, sizes, self.plot_rect().adjusted(2, 0, -2, 0), front)
        for point, text, place in zip(ordered, texts, places, strict=True):
            if place is None:
                continue
            item = pyqtgraph.TextItem(
                text, color=self.theme.color("text" if point.current else "dim"), anchor=(0, 0)
            )
            item.setFont(font)
            item.textItem.document().setDocumentMargin(0)
            spot = self.area.vb.mapSceneToView(self.view.mapToScene(place.topLeft().toPoint()))
            item.setPos(spot)
            self.area.addItem(item, ignoreBounds=True)
            self.labels.append(item)

    def _clicked(self, _item: Any, spots: Sequence[Any], *_event: Any) -> None:
        if len(spots):
            self._session.go_to(int(spots[-1].data()))

    def _hovered(self, _item: Any, spots: Sequence[Any], *_event: Any) -> None:
        named = {p.version: p.words for p in self.points}
        words = named.get(int(spots[-1].data()), "") if len(spots) else ""
        self.view.setToolTip(f"{words}\nClick to go there" if words else "")
        self.view.setCursor(Qt.CursorShape.PointingHandCursor if words else Qt.CursorShape.ArrowCursor)

    def _measure(self) -> None:
        project = self._session.view.project
        if project is not None and project.head is not None:
            self._session.measure((project.head,))


def _diameter(size: int, largest: int) -> float:
    """Area goes with the bytes, but no dot is too small to click."""
    return max(_DOTS[0], _DOTS[1] * math.sqrt(size / largest))


def _with_room(values: Sequence[float]) -> tuple[float, float]:
    """The range of values with room for dots and labels; never so narrow that noise looks like a difference."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.14, abs(high) * 0.02, 1e-6)
    return max(0.0, low - room), high + room


def _ms(version: Version) -> float | None:
    known = version.measurement
    return known.latency.median_ms if known is not None and known.latency is not None else None


def _metric(versions: Sequence[Version]) -> str:
    named = (v.measurement.accuracy.metric for v in versions if v.measurement and v.measurement.accuracy)
    return next((f"{name[:1].upper()}{name[1:]}" for name in named), "")


def _accuracy(version: Version) -> float | None:
    known = version.measurement
    return known.accuracy.value * 100 if known is not None and known.accuracy is not None else None


def _agreement(version: Version) -> float | None:
    known = version.measurement
    error = known.error if known is not None else None
    if error is None:
        return 100.0 if version.parent is None else None
    return None if error.agreement is None else error.agreement * 100


def _sqnr(version: Version) -> float | None:
    known = version.measurement
    if known is not None and known.error is not None:
        return known.error.sqnr_db
    return 200.0 if version.parent is None else None
