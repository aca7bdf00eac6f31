"""The headline: size, latency, accuracy and memory; original → now → predicted."""

from __future__ import annotations

from dataclasses import dataclass, replace

from PySide6.QtCore import Qt
from PySide6.QtGui import QFont, QFontMetrics, QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from studio.app.project import Version
from studio.app.session import Session
from studio.app.view import View
from studio.base import units
from studio.gui.selection import Selection
from studio.gui.theme import FIGURE_PX, Theme
from studio.gui.widgets import Elided, label, watch
from studio.records.verdict import elsewhere, slowdown

NARROWEST = 120  # of a cell, in pixels


@dataclass(frozen=True)
class Figure:
    """One cell.

    Attributes:
        name: 'Size'.
        values: of the original, of the version in view, and predicted for what is staged; None = unknown.
        unit: of all of them, once.
        source: what the last value is: 'measured', 'predicted', or why there is none.
        delta: last against first, in words.
        better: whether the change is for the better; None without a change.
        detail: the tooltip.
    """

    name: str
    values: tuple[str | None, str | None, str | None]
    unit: str = ""
    source: str = ""
    delta: str = ""
    better: bool | None = None
    detail: str = ""


class Headline(QWidget):
    """Four figures in a row, separated by lines."""

    def __init__(
        self, session: Session, selection: Selection, theme: Theme, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        del selection  # figures are of the whole model
        self.setObjectName("panel")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self._theme, self._session = theme, session
        self.cells = tuple(_Cell() for _ in range(4))
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(0)
        for i, cell in enumerate(self.cells):
            if i:
                row.addWidget(_column())
            row.addWidget(cell, 1)
        self.setFixedHeight(64)
        theme.changed.connect(lambda: self._show(session.view))
        watch(self, session, lambda _old, new: self._show(new))
        self._show(session.view)

    def _show(self, view: View) -> None:
        for cell, figure in zip(self.cells, figures(view), strict=True):
            cell.show_figure(figure, self._theme)


def figures(view: View) -> tuple[Figure, Figure, Figure, Figure]:
    """What the headline says of a view."""
    project = view.project
    original = project.original if project else None
    current = project.current if project else None
    return (
        _size(view, original, current),
        _latency(view, original, current),
        _accuracy(view, original, current),
        _memory(original, current),
    )


def _size(view: View, original: Version | None, current: Version | None) -> Figure:
    first, now = _file_bytes(original), _file_bytes(current)
    after: float | None = None
    if view.predicted is not None and current is not None and current.info is not None and now is not None:
        # What is not weights (the graph itself) stays; so the promise is about weight bytes.
        after = now - current.info.cost.bytes + view.predicted.bytes
    unit, scale = _byte_unit(first)
    last = after if after is not None else now
    return Figure(
        name="Size",
        values=(_number(first, scale), _number(now, scale), _number(after, scale)),
        unit=unit,
        source="predicted" if after is not None else ("on disk" if now is not None else ""),
        delta=units.change(first, last) if first and last and last != first else "",
        better=last < first if first and last and last != first else None,
        detail="Bytes of the file, external data included.",
    )


def _latency(view: View, original: Version | None, current: Version | None) -> Figure:
    first = _median(original)
    now = _median(current)
    delta, better, detail = "", None, "Median time of one run, measured in turns with the original."
    measured = "measured"
    if current and current.measurement and (latency := current.measurement.latency):
        detail += (
            f"\n95 % interval {units.milliseconds(latency.low_ms)} to {units.milliseconds(latency.high_ms)}, "
            f"{latency.runs} runs, {latency.threads or 'all'} threads."
        )
        if latency.busy:
            measured = "measured, busy"
            detail += "\nThe machine was busy: take the figure with care."
        if latency.ratio and current is not original:
            faster = latency.ratio >= 1
            delta = f"{latency.ratio:.2f}× {'faster' if faster else 'as fast'}"
            better = faster
            if slow := slowdown(latency, [plan.step.settings for plan in current.plans]):
                detail += f"\n{slow}"
    source = measured if now is not None else ("not measured yet" if current else "")
    after = view.predicted_ms
    if after is not None and first is not None and view.forecast is not None:
        source, delta, better = "predicted", units.change(first, after), after < first
        detail += (
            "\nPredicted: a draft of the result, with the same structure, was timed against this version."
        )
        if view.forecast.busy:
            detail += " The machine was busy meanwhile."
    return Figure(
        name="Latency",
        values=(_ms(first), _ms(now), _ms(after)),
        unit="ms",
        source=source,
        delta=delta,
        better=better,
        detail=detail,
    )


def _accuracy(view: View, original: Version | None, current: Version | None) -> Figure:
    figure = _answers(view, original, current)
    words = elsewhere(current.measurement) if current and current.measurement else ()
    return replace(figure, detail="\n".join((figure.detail, *words)))


def _answers(view: View, original: Version | None, current: Version | None) -> Figure:
    accuracy = current.measurement.accuracy if current and current.measurement else None
    first = original.measurement.accuracy if original and original.measurement else None
    if accuracy is not None:
        change = accuracy.value - first.value if first and current is not original else 0.0
        return Figure(
            name=accuracy.metric[:1].upper() + accuracy.metric[1:],
            values=(_percent(first.value if first else None), _percent(accuracy.value), None),
            unit="%",
            source=f"measured, n = {accuracy.samples}",
            delta=f"{'−' if change < 0 else '+'}{abs(change) * 100:.1f}" if change else "",
            better=change > -0.005 if change else None,
            detail=f"{accuracy.metric} on {accuracy.samples} labelled samples.",
        )
    error = current.measurement.error if current and current.measurement else None
    if error is not None and current is not original:
        share = error.agreement
        if share is not None:
            return Figure(
                name="Answers alike",
                values=(None, _percent(share), None),
                unit="%",
                source=f"measured on {error.data}, n = {error.samples}",
                detail="Share of samples that get the same answer as from the original.",
            )
        return Figure(
            name="Output SQNR",
            values=(None, f"{error.sqnr_db:.1f}", None),
            unit="dB",
            source=f"measured on {error.data}, n = {error.samples}",
            detail="Signal to noise of the outputs against the original's.",
        )
    chosen = view.project is not None and view.project.evaluation is not None
    found = current.measurement if current else None
    why = found.unscored if found else ""
    waiting = chosen and (found is None or found.latency is None)
    return Figure(
        name="Accuracy",
        values=(None, None, None),
        source=("not measured yet" if waiting else "needs labels") if current else "",
        detail=f"{why[:1].upper()}{why[1:]}."
        if why
        else "Choose evaluation data with labels (Model → Data).",
    )


def _memory(original: Version | None, current: Version | None) -> Figure:
    first = original.measurement.peak_bytes if original and original.measurement else None
    now = current.measurement.peak_bytes if current and current.measurement else None
    unit, scale = _byte_unit(first or now)
    return Figure(
        name="Memory at run time",
        values=(_number(first, scale), _number(now, scale), None),
        unit=unit,
        source="measured" if now is not None else ("not measured yet" if current else ""),
        delta=units.change(first, now) if first and now and first != now else "",
        better=now < first if first and now and first != now else None,
        detail="Peak memory of a process that loads and runs the model, less its own.",
    )


def _file_bytes(version: Version | None) -> int | None:
    if version is None:
        return None
    if version.measurement is not None:
        return version.measurement.file_bytes
    return version.info.file_bytes if version.info else None


def _median(version: Version | None) -> float | None:
    if version is None or version.measurement is None or version.measurement.latency is None:
        return None
    return version.measurement.latency.median_ms


def _byte_unit(value: float | None) -> tuple[str, float]:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value is not None and value >= limit:
            return unit, limit
    return ("kB", 1e3) if value is None else ("B", 1.0)


def _number(value: float | None, scale: float) -> str | None:
    if value is None:
        return None
    scaled = value / scale
    return f"{scaled:.0f}" if scaled >= 100 else f"{scaled:.1f}" if scaled >= 10 else f"{scaled:.2f}"


def _ms(value: float | None) -> str | None:
    return (
        units.milliseconds(value).split(" ")[0]
        if value is not None and value < 1000
        else (None if value is None else f"{value:.0f}")
    )


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value * 100:.1f}"


def _column() -> QFrame:
    line = QFrame()
    line.setProperty("role", "column")
    return line


def _shown(figure: Figure) -> list[str]:
    """Original, now and predicted, as far as they are known and differ from the one before."""
    first, now, after = figure.values
    if first is not None and now is None and after is None:
        return [first, "–"]  # the original's figure is known, this version's is not
    known = [value for value in (first, now, after) if value is not None]
    return [value for place, value in enumerate(known) if place == 0 or value != known[place - 1]]


class _Cell(QWidget):
    """One figure: its name and source above, the values and the change below."""

    def __init__(self) -> None:
        super().__init__()
        self._figure: Figure | None = None
        self._theme: Theme | None = None
        self._name, self._values = Elided(role="small"), label(role="figure")
        self._delta, self._above = (
            QLabel(),
            label(role="small"),
        )  # beside the figure, or above where that is too narrow
        for part in (self._values, self._delta, self._above):
            part.setTextFormat(Qt.TextFormat.RichText)
            part.setMinimumWidth(1)
        line = QHBoxLayout()
        line.setSpacing(8)
        line.addWidget(self._values)
        line.addWidget(self._delta)
        line.addStretch(1)
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 8, 8, 8)
        column.setSpacing(0)
        top = QHBoxLayout()
        top.addWidget(self._name, 1)
        top.addWidget(self._above)
        column.addLayout(top)
        column.addLayout(line)
        self._above.setFixedHeight(self._name.sizeHint().height())  # rich text would be a little taller
        self.setMinimumWidth(NARROWEST)

    def show_figure(self, figure: Figure, theme: Theme) -> None:
        """Show one figure; equal neighbours are shown once."""
        self._figure, self._theme = figure, theme
        source = f" · {figure.source}" if figure.source else ""
        words = " → ".join(_shown(figure)) or "unknown"
        self.setAccessibleName(f"{figure.name}{source}: {words} {figure.unit} {figure.delta}".strip())
        self.setToolTip(f"{figure.name}{source}\n{figure.detail}")
        self._name.setToolTip("")
        self._fit()

    def _title(self, figure: Figure, room: int) -> str:
        """Name and source, in fewer words where there is no room for all; whether it is measured is always said."""
        source, short = figure.source, figure.source.split(",")[0]
        name = figure.name.split(" ")[0]
        pairs = ((figure.name, source), (name, source), (figure.name, short), (name, short))
        titles = [" · ".join(filter(None, pair)) for pair in pairs]
        metrics = self._name.fontMetrics()
        return next((t for t in titles if metrics.horizontalAdvance(t) <= room), titles[-1])

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Put the change above where there is no room; then leave the original out."""
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        if self._figure is None or self._theme is None:
            return
        tokens, figure, shown = self._theme.tokens, self._figure, _shown(self._figure)
        color = tokens.dim if figure.better is None else tokens.good if figure.better else tokens.bad
        self._delta.setText(f"<span style='color:{color}'>{figure.delta}</span>")
        brief = figure.delta.split("×")[0] + "×" if "×" in figure.delta else figure.delta
        self._above.setText(f"<span style='color:{color}'>{brief}</span>")
        room = self.width() - 24
        font = QFontMetrics(self._theme.font(FIGURE_PX, QFont.Weight.DemiBold))
        while len(shown) > 1 and font.horizontalAdvance(" → ".join(shown) + f" {figure.unit}") > room:
            shown = shown[1:]
        taken = font.horizontalAdvance(" → ".join(shown) + f" {figure.unit}")
        beside = taken + 8 + self._delta.sizeHint().width() <= room
        self._delta.setVisible(beside)
        self._above.setVisible(not beside)
        above = 0 if beside else self._above.sizeHint().width() + 8
        self._name.set_text(self._title(figure, room - above))
        arrow = f" <span style='color:{tokens.dim}'>→</span> "
        values = arrow.join(
            f"<span style='color:{tokens.text if place == len(shown) else tokens.dim}'>{value}</span>"
            for place, value in enumerate(shown, 1)
        )
        self._values.setText(
            f"{values} {figure.unit}" if shown else f"<span style='color:{tokens.dim}'>–</span>"
        )
