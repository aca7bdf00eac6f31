"""The inspector's other tabs: sensitivity and weights, activations, attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QVBoxLayout, QWidget

from studio.app.project import ScanResult
from studio.app.session import Session
from studio.app.view import View
from studio.base import units
from studio.gui.inspector.detail import DetailSource
from studio.gui.inspector.sections import Facts, Page, Section
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from studio.gui.widgets import EmptyState, label, short_name, watch
from studio.records.measure import Sensitivity
from studio.records.model import Layer
from studio.records.task import Histogram, LayerDetail

if TYPE_CHECKING:
    from studio.gui.inspector.charts import HistogramChart, RangesChart, SensitivityChart, SpectrumChart


def current_layer(session: Session, selection: Selection) -> Layer | None:
    """The record of the current layer."""
    project = session.view.project
    version = project.current if project else None
    layers = version.layers if version else ()
    return next((layer for layer in layers if layer.name == selection.current), None)


def latest_scan(view: View) -> ScanResult | None:
    """The scan to show: the running one, else the newest of the version in view."""
    version = view.project.current if view.project else None
    if version is None:
        return None
    if view.scan_live is not None and view.scan_live.digest == version.digest and view.scan_live.layers:
        return view.scan_live
    return version.scans[-1] if version.scans else None


class SensitivitySection(Section):
    """What the newest scan says: all layers, the selected ones in colour, and the current one in figures.

    Signals:
        scan_asked: the user wants a scan.
    """

    scan_asked = Signal()

    def __init__(self, session: Session, selection: Selection, theme: Theme) -> None:
        super().__init__("Sensitivity", theme)
        self._session, self._selection, self._theme = session, selection, theme
        self._chart: SensitivityChart | None = None
        self._facts = Facts()
        self._empty = EmptyState(
            "How much the output changes when only one layer is treated will stand here.",
            "Scan sensitivity…",
            self.scan_asked.emit,
            "Treat every layer alone and see what it does to the output",
        )
        self.body.addWidget(self._empty)
        self.body.addWidget(self._facts)
        watch(self, session, self._view_changed)
        selection.changed.connect(lambda _source: self._show())
        self._show()

    def _view_changed(self, old: View, new: View) -> None:
        if old.project is not new.project or old.scan_live is not new.scan_live:
            self._show()

    def _show(self) -> None:
        view = self._session.view
        scan = latest_scan(view)
        self._empty.setVisible(scan is None)
        self._facts.setVisible(scan is not None)
        if self._chart is not None:
            self._chart.setVisible(scan is not None)
        if scan is None or view.project is None or view.project.current is None:
            self.set_aside("")
            return
        samples = f" · {scan.samples} samples" if scan.samples else ""
        state = "" if scan.complete else " · running" if view.scan_live is scan else " · incomplete"
        self.set_aside(f"{scan.settings.chip}{samples}{state}")
        by_name = {s.layer: s for s in scan.layers}
        layers = view.project.current.layers
        chosen = set(self._selection.layers)
        scores = [by_name[layer.name].score if layer.name in by_name else None for layer in layers]
        self._chart_widget().show_scores(
            scores, [i for i, layer in enumerate(layers) if layer.name in chosen]
        )
        facts = sensitivity_facts(by_name.get(self._selection.current), scan)
        if facts and len(chosen) > 1:  # of which of them
            facts.insert(0, ("Layer", short_name(self._selection.current)))
        self._facts.show_facts(facts)

    def _pick(self, place: int) -> None:
        version = self._session.view.project.current if self._session.view.project else None
        if version is not None and place < len(version.layers):
            self._selection.reveal(version.layers[place].name)

    def _chart_widget(self) -> SensitivityChart:
        if self._chart is None:
            from studio.gui.inspector.charts import SensitivityChart

            self._chart = SensitivityChart(self._theme, "Sensitivity by layer")
            self._chart.setToolTip(
                "One bar a layer in graph order, selected ones in colour, logarithmic; click selects"
            )
            self._chart.picked.connect(self._pick)
            self.body.insertWidget(2, self._chart)
        return self._chart


def sensitivity_facts(found: Sensitivity | None, scan: ScanResult) -> list[tuple[str, str]]:
    """The current layer's figures of a scan."""
    if found is None:
        return []
    if found.error is None:
        return [(found.layer, f"refused: {found.refused}")]
    ranked = sorted((s for s in scan.layers if s.score is not None), key=lambda s: -(s.score or 0.0))
    place = next((i for i, s in enumerate(ranked, 1) if s.layer == found.layer), 0)
    error = found.error
    facts = [("Rank", f"{place} of {len(ranked)}, most sensitive first"), ("SQNR", f"{error.sqnr_db:.1f} dB")]
    if error.kl is not None:
        facts.append(("KL", f"{error.kl:.3g} nats"))
    if error.cosine is not None:
        facts.append(("Cosine", f"{error.cosine:.5f}"))
    if error.agreement is not None:
        facts.append(("Answers alike", units.percent(error.agreement)))
    if found.accuracy is not None:
        facts.append(
            (found.accuracy.metric, f"{units.percent(found.accuracy.value)} (n = {found.accuracy.samples})")
        )
    return facts


class WeightsSection(Section):
    """Histogram of the current layer's weights, with the grid of its staged treatment.

    Args:
        titled: say whose weights they are where several layers are selected.
    """

    def __init__(self, detail: DetailSource, theme: Theme, *, titled: bool = True) -> None:
        super().__init__("Weight distribution", theme)
        self._detail, self._theme, self.titled = detail, theme, titled
        self._chart: HistogramChart | None = None
        self._words, self._name = label(role="dim", wrap=True), label(role="dim")
        self._name.setTextFormat(Qt.TextFormat.PlainText)
        self.body.addWidget(self._name)
        self.body.addWidget(self._words)
        detail.changed.connect(self._show)
        self._show()

    def _show(self) -> None:
        found = self._detail.detail
        self._name.setText(short_name(self._detail.one_of_several, 40))
        self._name.setVisible(bool(self._detail.one_of_several) and self.titled)
        has = found is not None and found.weights is not None
        if self._chart is not None:
            self._chart.setVisible(has)
        self._words.setVisible(not has)
        if found is None or found.weights is None:
            self._words.setText(
                _waiting_words(self._detail, "Select a layer to see how its weights are spread.")
            )
            self.set_aside("")
            return
        settings = self._detail.settings
        self.set_aside(f"{settings.chip} grid" if found.grid and settings else "as stored")
        if self._chart is None:
            from studio.gui.inspector.charts import HistogramChart

            self._chart = HistogramChart(self._theme, "Weight distribution")
            self._chart.setToolTip("How often each weight value occurs; ticks below: the values that stay")
            self.body.addWidget(self._chart)
        self._chart.show_histogram(found.weights, found.grid)


def _waiting_words(detail: DetailSource, otherwise: str) -> str:
    if detail.asking:
        return "Shown once the measurement is done." if detail.held_up else "Reading the weights…"
    return detail.trouble or otherwise


def _running_words(detail: DetailSource) -> str:
    if not detail.asking:
        return ""
    return "Shown once the measurement is done." if detail.held_up else "Running the calibration data…"


class WeightsPage(Page):
    """Everything about the current layer's weights."""

    def __init__(self, session: Session, selection: Selection, theme: Theme, detail: DetailSource) -> None:
        super().__init__("Weights")
        self._session, self._selection, self._detail, self._theme = session, selection, detail, theme
        self._heading = label(role="strong", wrap=True)
        self._facts = Facts()
        self._ranges_section = Section("Range by channel", theme)
        self._ranges: RangesChart | None = None
        self._spectrum_section = Section("Lost by rank", theme)
        self._spectrum: SpectrumChart | None = None
        self.column.addWidget(self._heading)
        self.column.addWidget(self._facts)
        self.column.addWidget(WeightsSection(detail, theme, titled=False))
        self.column.addWidget(self._spectrum_section)
        self.column.addWidget(self._ranges_section)
        self.column.addStretch(1)
        detail.changed.connect(self._show)
        selection.changed.connect(lambda _source: self._show())
        self._show()

    def _show(self) -> None:
        layer = current_layer(self._session, self._selection)
        self._heading.setText(layer.name if layer else "No layer selected")
        found = self._detail.detail if layer else None
        self._facts.show_facts(weight_facts(layer, found))
        self._show_spectrum(found)
        ranges = found.channels if found else ()
        self._ranges_section.setVisible(len(ranges) > 1)
        if len(ranges) > 1:
            if self._ranges is None:
                from studio.gui.inspector.charts import RangesChart

                self._ranges = RangesChart(self._theme, "Range of every output channel")
                self._ranges.setToolTip("Smallest to largest weight, one line a channel")
                self._ranges_section.body.addWidget(self._ranges)
            self._ranges_section.set_aside(f"{len(ranges)} channels")
            self._ranges.show_ranges(ranges)

    def _show_spectrum(self, found: LayerDetail | None) -> None:
        spectrum = found.spectrum if found else None
        self._spectrum_section.setVisible(spectrum is not None)
        if spectrum is None:
            return
        if self._spectrum is None:
            from studio.gui.inspector.charts import SpectrumChart

            self._spectrum = SpectrumChart(self._theme, "What is lost at every rank")
            self._spectrum.setToolTip(
                "Share of the squared weights that is lost at each rank; dashed: nothing is saved from there on"
            )
            self._spectrum_section.body.addWidget(self._spectrum)
        self._spectrum_section.set_aside(f"saves below rank {spectrum.break_even}")
        self._spectrum.show_spectrum(spectrum)


def weight_facts(layer: Layer | None, found: LayerDetail | None) -> list[tuple[str, str]]:
    """Names and values of what is known about the weights."""
    if layer is None:
        return []
    facts = [
        ("Shape", units.shape(layer.weight_shape)),
        ("Stored as", layer.dtype),
        ("Parameters", units.short(layer.cost.parameters)),
        ("Bytes", units.file_size(layer.cost.bytes)),
    ]
    if found is None:
        return facts
    if found.weights is not None:
        facts.append(("Range", f"{found.weights.low:.4g} to {found.weights.high:.4g}"))
    if found.sparsity is not None:
        facts.append(("Zeros", units.percent(found.sparsity)))
    if found.sqnr_db is not None:
        facts.append(("SQNR once treated", f"{found.sqnr_db:.1f} dB (weights only)"))
    if found.clipped:
        facts.append(("Outside the grid", units.percent(found.clipped, 3)))
    if found.refused:
        facts.append(("Refused", found.refused))
    return facts


class ActivationsPage(Page):
    """Ranges of what goes into and comes out of the current layer, over the calibration data.

    Signals:
        data_asked: the user wants to choose calibration data.
    """

    data_asked = Signal()

    def __init__(self, session: Session, selection: Selection, theme: Theme, detail: DetailSource) -> None:
        super().__init__("Activations")
        self._session, self._selection, self._detail, self._theme = session, selection, detail, theme
        self._heading = label(role="strong", wrap=True)
        self._empty = EmptyState(
            "The values that go into and come out of a layer will stand here. They are taken from calibration data.",
            "Choose calibration data…",
            self.data_asked.emit,
            "Samples that the model is run on",
        )
        self._words = label(role="dim", wrap=True)
        self._parts = {
            name: _Spread(title, theme) for name, title in (("inputs", "Input"), ("outputs", "Output"))
        }
        self.column.addWidget(self._heading)
        self.column.addWidget(self._empty)
        self.column.addWidget(self._words)
        for part in self._parts.values():
            self.column.addWidget(part)
        self.column.addStretch(1)
        detail.changed.connect(self._show)
        selection.changed.connect(lambda _source: self._show())
        watch(self, session, lambda old, new: self._show() if old.project is not new.project else None)
        self._show()

    def _show(self) -> None:
        layer = current_layer(self._session, self._selection)
        project = self._session.view.project
        self._heading.setText(layer.name if layer else "No layer selected")
        missing = layer is not None and project is not None and project.calibration is None
        self._empty.setVisible(missing)
        found = self._detail.detail if layer and not missing else None
        spreads = {"inputs": found.inputs if found else None, "outputs": found.outputs if found else None}
        for name, part in self._parts.items():
            part.show_spread(spreads[name])
        nothing = not missing and all(spread is None for spread in spreads.values())
        self._words.setVisible(nothing)
        words = (
            "Select a layer to see what goes through it."
            if layer is None
            else "No values were recorded here."
        )
        self._words.setText(_running_words(self._detail) or self._detail.trouble or words)


class _Spread(QWidget):
    """One histogram of activations with its range."""

    def __init__(self, title: str, theme: Theme) -> None:
        super().__init__()
        self._title, self._theme = title, theme
        self._section = Section(title, theme)
        self._chart: HistogramChart | None = None
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._section)

    def show_spread(self, spread: Histogram | None) -> None:
        """Show a histogram; None hides this."""
        self.setVisible(spread is not None)
        if spread is None:
            return
        if self._chart is None:
            from studio.gui.inspector.charts import HistogramChart

            self._chart = HistogramChart(self._theme, f"{self._title} values", ink="good")
            self._chart.setToolTip("How often each value occurs over the calibration data")
            self._section.body.addWidget(self._chart)
        self._section.set_aside(f"{spread.low:.4g} to {spread.high:.4g}")
        self._chart.show_histogram(spread)


class AttributesPage(Page):
    """The current layer as the file says it: operator, nodes, tensors, attributes."""

    def __init__(self, session: Session, selection: Selection) -> None:
        super().__init__("Attributes")
        self._session, self._selection = session, selection
        self._heading = label(role="strong", wrap=True)
        self._facts = Facts()
        self.column.addWidget(self._heading)
        self.column.addWidget(self._facts)
        self.column.addStretch(1)
        selection.changed.connect(lambda _source: self._show())
        watch(self, session, lambda old, new: self._show() if old.project is not new.project else None)
        self._show()

    def _show(self) -> None:
        layer = current_layer(self._session, self._selection)
        self._heading.setText(layer.name if layer else "Select a layer to see its attributes.")
        project = self._session.view.project
        version = project.current if project else None
        time = None
        if layer and version and version.profile:
            time = next((t for t in version.profile.layers if t.layer == layer.name), None)
        facts = attribute_facts(layer) if layer else []
        if time is not None:
            facts.append(("Measured time", f"{units.milliseconds(time.ms)} ({units.percent(time.share)})"))
            facts.append(("Kernel", time.kernel))
            if time.also:
                facts.append(("Fused with", ", ".join(time.also)))
        self._facts.show_facts(facts)


def attribute_facts(layer: Layer) -> list[tuple[str, str]]:
    """Names and values of what the file says."""
    cost = layer.cost
    facts = [
        ("Operator", " + ".join(layer.operators)),
        ("Precision", layer.precision),
        ("Weight", layer.weight),
        ("Input", units.shape(layer.input_shape) if layer.input_shape is not None else "unknown"),
        ("Output", units.shape(layer.output_shape) if layer.output_shape is not None else "unknown"),
        ("MACs", units.short(cost.macs) if cost.macs is not None else "unknown"),
        (
            "Activations",
            units.file_size(cost.activation_bytes) if cost.activation_bytes is not None else "unknown",
        ),
        ("First output", layer.key),
    ]
    if layer.shared_with:
        facts.append(("Shares weights with", ", ".join(layer.shared_with)))
    if layer.untreatable:
        facts.append(("Cannot be treated", layer.untreatable))
    return facts + list(layer.attributes)
