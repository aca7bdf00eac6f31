"""Size and latency against the layers done: the original dashed grey, now full, predicted dashed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from PySide6.QtGui import QColor
from PySide6.QtWidgets import QWidget

from studio.app.project import Project, Version
from studio.app.session import Session
from studio.app.view import Live, View
from studio.base.units import file_size
from studio.gui.plots.base import PlotBox
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from studio.gui.widgets import EmptyState, watch

Timed: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class Curve:
    """What one plot shows.

    Attributes:
        done: (layers done, value) measured or counted, the start included.
        band: (layers done, low, high) of the same points; empty without.
        predicted: (layers done, value) of the end, predicted; None when it is not known.
        original: of the model as it was opened.
        total: layers that will be done.
        running: more may come.
    """

    done: tuple[tuple[float, float], ...] = ()
    band: tuple[tuple[float, float, float], ...] = ()
    predicted: tuple[float, float] | None = None
    original: float | None = None
    total: int = 0
    running: bool = False

    @property
    def known(self) -> bool:
        """Whether there is a line to draw."""
        return len(self.done) > 1 or (bool(self.done) and self.predicted is not None)


class CurvePlot(PlotBox):
    """One quantity against the layers done."""

    token = "accent"  # noqa: S105 - a colour

    def __init__(
        self,
        session: Session,
        _selection: Selection,
        theme: Theme,
        title: str,
        words: str,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(theme, title, EmptyState(words), parent)
        import pyqtgraph

        self._session = session
        self._promised: dict[int, float] = {}  # predicted end of a job, by its id
        self.curve = Curve()
        self._low: Any = pyqtgraph.PlotCurveItem()
        self._high: Any = pyqtgraph.PlotCurveItem()
        self._band: Any = pyqtgraph.FillBetweenItem(self._low, self._high)
        self._original: Any = pyqtgraph.PlotCurveItem()
        self._line: Any = pyqtgraph.PlotDataItem()
        self._predicted: Any = pyqtgraph.PlotCurveItem()
        self._end: Any = pyqtgraph.ScatterPlotItem()
        for item in (self._band, self._original, self._line, self._predicted, self._end):
            self.area.addItem(item, ignoreBounds=True)
        self.recolor()
        watch(self, session, self._view_changed)
        self._show(self.read(session.view))

    # ------------------------------------------------------------ for subclasses

    def read(self, view: View) -> Curve:
        """The curve of a view."""
        raise NotImplementedError

    def predicted_end(self, view: View) -> float | None:
        """What the staged treatments are predicted to end at."""
        raise NotImplementedError

    def words(self, value: float) -> str:
        """A value with its unit."""
        raise NotImplementedError

    def promised(self, live: Live) -> float | None:
        """What was predicted when this job began."""
        return self._promised.get(live.job)

    def recolor(self) -> None:
        """Lines and band in the theme's colours."""
        self._line.setPen(self.pen(self.token))
        self._line.setSymbol("o")
        self._line.setSymbolSize(4)
        self._line.setSymbolPen(None)
        self._line.setSymbolBrush(self.theme.color(self.token))
        self._predicted.setPen(self.pen(self.token, 1.6, dashed=True))
        self._original.setPen(self.pen("original", 1.4, dashed=True))
        self._end.setPen(self.pen(self.token, 1.4))
        self._end.setBrush(self.theme.color("panel"))
        fill = QColor(self.theme.color(self.token))
        fill.setAlpha(84)
        self._band.setBrush(fill)
        for edge in (self._low, self._high):
            edge.setPen(None)

    # ------------------------------------------------------------ inside

    def _view_changed(self, old: View, new: View) -> None:
        if new.live is not None and (old.live is None or old.live.job != new.live.job):
            promised = self.predicted_end(old)
            self._promised = {} if promised is None else {new.live.job: promised}
        same = old.live is new.live and old.project is new.project and old.predicted is new.predicted
        same = same and old.forecast is new.forecast
        if not same or old.plans is not new.plans:
            self._show(self.read(new))

    def _show(self, curve: Curve) -> None:
        self.curve = curve
        self.show_plot(curve.known)
        words = "LIVE" if curve.running else "PREDICTED" if len(curve.done) == 1 else ""
        self.status.setText(words if curve.known else "")
        if not curve.known:
            return
        xs, ys = [x for x, _ in curve.done], [y for _, y in curve.done]
        self._line.setData(xs, ys)
        bands = [x for x, _, _ in curve.band]
        self._low.setData(bands, [low for _, low, _ in curve.band])
        self._high.setData(bands, [high for _, _, high in curve.band])
        end = curve.predicted
        self._predicted.setData([xs[-1], end[0]] if end else [], [ys[-1], end[1]] if end else [])
        self._end.setData([end[0]] if end else [], [end[1]] if end else [], size=6)
        total = max(curve.total, xs[-1], 1)
        original = curve.original
        self._original.setData(
            [0, total] if original is not None else [], [original] * 2 if original is not None else []
        )
        tops = [*ys, end[1] if end else 0, original or 0]
        wide = max(
            (high for _, _, high in curve.band), default=0.0
        )  # one noisy interval must not flatten the line
        self.set_axes((0, total), (0, max(*tops, min(wide, max(tops) * 1.6)) or 1), whole_x=True)
        self._describe()

    def _describe(self) -> None:
        curve = self.curve
        start, now = curve.done[0][1], curve.done[-1]
        words = f"from {self.words(start)} to {self.words(now[1])} after {now[0]:g} of {curve.total} layers"
        if curve.predicted is not None:
            words += f", {self.words(curve.predicted[1])} predicted at the end"
        if curve.original is not None:
            words += f"; the original has {self.words(curve.original)}"
        self.view.setAccessibleDescription(words)
        self.view.setToolTip(words[0].upper() + words[1:])


def _running_or_staged(view: View) -> Live | None:
    """The live record while it is what there is to see: until something new is staged."""
    live = view.live
    if live is None or (not live.running and view.plans):
        return None
    return live


def _steps(view: View) -> int:
    """How many layers the staged treatments touch, each step counted."""
    return sum(len(plan.actions) for plan in view.plans)


class SizePlot(CurvePlot):
    """Weight bytes of the model so far, after every layer."""

    def __init__(
        self, session: Session, selection: Selection, theme: Theme, parent: QWidget | None = None
    ) -> None:
        self._scale = 1e6
        words = "Size after every layer: choose treatments, and what they will do is drawn here."
        super().__init__(session, selection, theme, "Size (MB)", words, parent)

    def read(self, view: View) -> Curve:
        """Weight bytes in the unit of the title."""
        project = view.project
        original = _weights(project, original=True)
        self._scale, unit = (1e3, "kB") if original is not None and original < 1e6 else (1e6, "MB")
        self.set_title(f"Size ({unit})")
        live = _running_or_staged(view)
        if live is not None:
            points = _sized(live, project)
            end = self.promised(live) if live.running and points[-1][0] < live.total else None
            return self._scaled(points, (live.total, end), original, live.running)
        now, end = _weights(project), self.predicted_end(view)
        if now is None or end is None:
            return Curve()
        return self._scaled(((0, now),), (_steps(view) or 1, end), original)

    def _scaled(
        self,
        points: Sequence[tuple[int, float]],
        end: tuple[int, float | None],
        original: float | None,
        running: bool = False,
    ) -> Curve:
        total, at_end = end
        return Curve(
            done=tuple((float(x), size / self._scale) for x, size in points),
            predicted=None if at_end is None else (float(total), at_end / self._scale),
            original=None if original is None else original / self._scale,
            total=total,
            running=running,
        )

    def predicted_end(self, view: View) -> float | None:
        """Bytes once the staged treatments are carried out."""
        return view.predicted.bytes if view.predicted is not None and view.plans else None

    def words(self, value: float) -> str:
        """With its unit."""
        return file_size(value * self._scale)


class LatencyPlot(CurvePlot):
    """Median latency of the model so far, measured at checkpoints, with its 95 % interval."""

    token = "caution"  # noqa: S105 - a colour

    def __init__(
        self, session: Session, selection: Selection, theme: Theme, parent: QWidget | None = None
    ) -> None:
        words = "Latency: what treatments are predicted to do, and what is measured at checkpoints, is drawn here."
        super().__init__(session, selection, theme, "Latency (ms, median ± 95 % CI)", words, parent)

    def read(self, view: View) -> Curve:
        """Milliseconds."""
        original = _ms(view.project, original=True)
        live = _running_or_staged(view)
        if live is None:
            now, end = _ms(view.project), self.predicted_end(view)
            if now is None or end is None:
                return Curve()
            total = _steps(view) or 1
            return Curve(((0.0, now),), predicted=(float(total), end), original=original, total=total)
        points = _timed(live, view.project)
        if len(points) < (1 if live.start_ms is None else 2):
            return Curve()
        done = tuple((x, median) for x, median, _, _ in points)
        band = tuple((x, low, high) for x, _, low, high in points)
        promised = self.promised(live) if live.running and points[-1][0] < live.total else None
        end_point = None if promised is None else (float(live.total), promised)
        return Curve(done, band, end_point, original, live.total, live.running)

    def predicted_end(self, view: View) -> float | None:
        """Milliseconds once the staged treatments are carried out."""
        return view.predicted_ms if view.plans else None

    def words(self, value: float) -> str:
        """Milliseconds."""
        return f"{value:.3g} ms"


def _made(live: Live, project: Project | None) -> Version | None:
    """The version that a compression ended with, as soon as there is one."""
    versions = () if project is None else project.versions
    return next((v for v in versions if live.made is not None and v.id == live.made), None)


def _sized(live: Live, project: Project | None) -> Sequence[tuple[int, float]]:
    """(Layers done, weight bytes): the start, every layer, and what the version that was made weighs."""
    points = ((0, live.start_bytes), *live.sizes)
    made = _made(live, project)
    if made is None or made.info is None or not live.total:
        return points
    return (*(point for point in points if point[0] < live.total), (live.total, made.info.cost.bytes))


def _timed(live: Live, project: Project | None) -> Sequence[Timed]:
    """(Layers done, median, low, high): the start, the checkpoints, and the measured version at the end.

    All in terms of the last measurement, for a machine is not equally quick all the time.
    """
    points = [(float(x), median, low, high) for x, median, low, high in live.times]
    if live.start_ms is not None:
        points.insert(0, (0.0, live.start_ms, live.start_ms, live.start_ms))
    made = _made(live, project)
    if made is None or made.measurement is None or made.measurement.latency is None or not live.total:
        return points
    parent = None if project is None or made.parent is None else project.version(made.parent)
    again = parent.measurement.latency if parent is not None and parent.measurement is not None else None
    scale = again.median_ms / live.start_ms if again is not None and live.start_ms else 1.0
    end = made.measurement.latency
    before = [(x, median * scale, low * scale, high * scale) for x, median, low, high in points]
    last = (float(live.total), end.median_ms, end.low_ms, end.high_ms)
    return [*(point for point in before if point[0] < live.total), last]


def _weights(project: Project | None, *, original: bool = False) -> int | None:
    version = None if project is None else project.original if original else project.current
    return version.info.cost.bytes if version is not None and version.info is not None else None


def _ms(project: Project | None, *, original: bool = False) -> float | None:
    version = None if project is None else project.original if original else project.current
    if version is None or version.measurement is None or version.measurement.latency is None:
        return None
    return version.measurement.latency.median_ms
