"""What the table and the graph show of a layer: columns as data, and the colours of a column.

A column is written once here; the table sorts, filters and paints by it, the graph colours by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from studio.app.view import View
from studio.base.units import file_size, shape, short
from studio.records.measure import LayerTime, Sensitivity
from studio.records.model import Cost, Layer
from studio.records.plan import Refusal
from studio.records.steps import Settings, Slot, Treatment

Value: TypeAlias = float | str | None
FLOAT = "fp32"
# The sensitivity of a layer spreads over decades: the least length and colour stand for a thousandth of the most.
DECADES = 3.0


@dataclass(frozen=True)
class Figures:
    """Everything known of a version's layers; missing entries are not known.

    Attributes:
        layers: in graph order.
        times: measured, by layer.
        scores: of the newest scan, by layer.
        scanned: the treatment that was scanned, as its chip ('INT8'); '' without a scan.
        treatments: staged, by layer.
        after: predicted costs of the staged treatments, by layer.
        refused: the staged treatments that are refused, by layer and slot.
    """

    layers: tuple[Layer, ...] = ()
    times: Mapping[str, LayerTime] = field(default_factory=dict)
    scores: Mapping[str, Sensitivity] = field(default_factory=dict)
    scanned: str = ""
    treatments: Mapping[str, Treatment] = field(default_factory=dict)
    after: Mapping[str, Cost] = field(default_factory=dict)
    refused: Mapping[tuple[str, Slot], Refusal] = field(default_factory=dict)

    @cached_property
    def byte_unit(self) -> float:
        """What sizes are shown in: megabytes, or kilobytes where no layer has one."""
        return 1e6 if max((layer.cost.bytes for layer in self.layers), default=10**6) >= 1e6 else 1e3


def figures(view: View) -> Figures:
    """The figures of the version that the user stands on."""
    project = view.project
    version = project.current if project else None
    if project is None or version is None or version.info is None:
        return Figures()
    scan = version.scans[-1] if version.scans else None
    if view.scan_live is not None and view.scan_live.digest == version.digest:
        scan = view.scan_live
    after: dict[str, Cost] = {}
    refused: dict[tuple[str, Slot], Refusal] = {}
    for plan in view.plans:
        after |= {action.layer: action.after for action in plan.actions}
        refused |= {(refusal.layer, plan.step.settings.slot): refusal for refusal in plan.refusals}
    return Figures(
        layers=version.info.layers,
        times={t.layer: t for t in version.profile.layers} if version.profile else {},
        scores={s.layer: s for s in scan.layers} if scan else {},
        scanned=scan.settings.chip if scan else "",
        treatments=dict(project.treatments),
        after=after,
        refused=refused,
    )


def same_figures(old: View, new: View) -> bool:
    """Whether nothing that `figures` reads differs between two views."""
    if old.plans is not new.plans or old.scan_live is not new.scan_live:
        return False
    a, b = old.project, new.project
    if a is b or a is None or b is None:
        return a is b
    return a.treatments == b.treatments and (a.head == b.head and a.current is b.current)


# ------------------------------------------------------------------ columns


@dataclass(frozen=True)
class Column:
    """One figure or name of a layer.

    Attributes:
        id: its word in the filter language and in saved layouts.
        title: in the header, the unit once included.
        tip: what it means.
        value: of a layer; numbers sort as numbers, None comes last.
        text: a value as it is shown.
        unit: what 1 in the header's unit is, in the value's own unit (1e6 for millions of MACs);
            0 for bytes, whose unit goes with the model.
        numeric: right-aligned, and compared as a number.
        aliases: other words for it in the filter language.
        heat: how values become colours; '' = the graph cannot be coloured by it.
        width: to begin with, in pixels.
        shown: to begin with.
        words: where there is no column of figures below it ('Size (MB)'); '' = the title.
    """

    id: str
    title: str
    tip: str
    value: Callable[[Layer, Figures], Value]
    text: Callable[[Value], str] = lambda value: "" if value is None else str(value)
    unit: float = 1.0
    numeric: bool = True
    aliases: tuple[str, ...] = ()
    heat: Literal["", "linear", "log", "bits"] = ""
    width: int = 72
    shown: bool = True
    words: str = ""

    @property
    def label(self) -> str:
        """What the column is called in a menu or a legend."""
        return self.words or self.title


def _number(scale: float = 1.0) -> Callable[[Value], str]:
    """Three significant digits, at most three decimals, in the header's unit."""

    def text(value: Value) -> str:
        if not isinstance(value, int | float):
            return "–"
        scaled = value / scale
        if scaled == 0:
            return "0"
        if abs(scaled) < 0.001:
            return "<0.001" if scaled > 0 else ">−0.001"
        decimals = 3 if abs(scaled) < 0.01 else 2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0
        return f"{scaled:,.{decimals}f}".replace(",", "\u2009").replace("-", "−")

    return text


def _percent(value: Value) -> str:
    return f"{value * 100:.1f}" if isinstance(value, int | float) else "–"


def _count(value: Value) -> str:
    return short(value) if isinstance(value, int | float) else "–"


def _score_text(value: Value) -> str:
    return f"{value:.2g}" if isinstance(value, int | float) else "–"


def _score(layer: Layer, known: Figures) -> Value:
    found = known.scores.get(layer.name)
    return found.score if found else None


def _sqnr(layer: Layer, known: Figures) -> Value:
    found = known.scores.get(layer.name)
    return found.error.sqnr_db if found and found.error else None


def treatment_text(layer: Layer, known: Figures) -> str:
    """The treatment in words: its chips, or 'keep fp32'."""
    treatment = known.treatments.get(layer.name)
    if treatment is None or not treatment.settings:
        return kept(layer)
    return " · ".join(s.chip for s in treatment.settings)


def chips(layer: Layer, known: Figures) -> list[tuple[Settings, bool]]:
    """The staged treatments of a layer and whether they are refused; not those that it is better left without."""
    treatment = known.treatments.get(layer.name)
    found: list[tuple[Settings, bool]] = []
    for settings in treatment.settings if treatment else ():
        refusal = known.refused.get((layer.name, settings.slot))
        if refusal is None or not refusal.better:
            found.append((settings, refusal is not None))
    return found


def kept(layer: Layer) -> str:
    """What stands where a layer stays as it is: 'keep fp32'."""
    return f"keep {layer.precision}"


def bytes_after(layer: Layer, known: Figures) -> float:
    """Weight bytes after the staged treatments (predicted), or as they are."""
    cost = known.after.get(layer.name)
    return layer.cost.bytes if cost is None else cost.bytes


def _time_share(layer: Layer, known: Figures) -> Value:
    time = known.times.get(layer.name)
    return time.share if time else None


def _time(layer: Layer, known: Figures) -> Value:
    time = known.times.get(layer.name)
    return time.ms if time else None


def _kernel(layer: Layer, known: Figures) -> Value:
    time = known.times.get(layer.name)
    return time.kernel if time else None


def _dims(dims: tuple[int | str, ...] | None) -> str:
    return "" if dims is None else shape(dims)


COLUMNS: tuple[Column, ...] = (
    Column("layer", "Layer", "Name of the layer", lambda x, _: x.name, numeric=False, aliases=("name",), width=170),
    Column("op", "Op", "Operator of the float form", lambda x, _: x.op, numeric=False, width=62),
    Column(
        "weight", "Weight", "Shape of the weight as stored", lambda x, _: _dims(x.weight_shape),
        numeric=False, aliases=("shape",), width=110,
    ),
    Column(
        "params", "Params", "Stored weight values", lambda x, _: x.cost.parameters, _count,
        aliases=("parameters",), heat="linear", words="Parameters",
    ),
    Column(
        "size", "MB", "Weight bytes in the file", lambda x, _: x.cost.bytes, _number(), 0,
        aliases=("mb", "bytes"), heat="linear", width=66, words="Size (MB)",
    ),
    Column(
        "macs", "MMACs", "Millions of multiply-accumulates of one run at the chosen input sizes",
        lambda x, _: x.cost.macs, _number(1e6), 1e6, aliases=("mmacs",), heat="linear", words="MACs (millions)",
    ),
    Column(
        "latency", "Latency %", "Measured share of one run's time; known after Time every layer", _time_share, _percent, 0.01,
        aliases=("time",), heat="linear", width=82, words="Latency (%)",
    ),
    Column(
        "sensitivity", "Sensitivity",
        "What treating only this layer does to the output: KL in nats, else noise over signal. "
        "Bars are logarithmic: an empty one is a thousandth of the longest, or less.",
        _score, _score_text, aliases=("kl",), heat="log", width=126,
    ),
    Column("treatment", "Treatment", "What the layer is to get; click to change", treatment_text, numeric=False, width=140),
    Column(
        "after", "MB after", "Weight bytes after the staged treatments, predicted", bytes_after, _number(), 0,
        heat="linear", width=78, words="Size after (MB)",
    ),
    Column(
        "activations", "Act. MB", "Bytes of the output of one run", lambda x, _: x.cost.activation_bytes,
        _number(), 0, aliases=("activation",), heat="linear", shown=False, words="Activations (MB)",
    ),
    Column(
        "share", "Share %", "Share of the model's weight bytes", lambda x, _: x.share, _percent, 0.01,
        heat="linear", shown=False, words="Share of the size (%)",
    ),
    Column("ms", "ms", "Measured time of one run of this layer", _time, _number(), heat="linear", shown=False, width=64,
           words="Latency (ms)"),
    Column("sqnr", "SQNR dB", "Output signal over noise when only this layer is treated", _sqnr, _number(), shown=False),
    Column("sparsity", "Zeros %", "Share of zeros among the weights", lambda x, _: x.sparsity, _percent, 0.01,
           aliases=("zeros",), heat="linear", shown=False, words="Zeros (%)"),
    Column("dtype", "Type", "Type of the weight as stored", lambda x, _: x.dtype, numeric=False, shown=False),
    Column("precision", "Precision", "How the layer is stored and computed", lambda x, _: x.precision,
           numeric=False, heat="bits", shown=False, width=96),
    Column("kernel", "Kernel", "What the runtime really ran", _kernel, numeric=False, shown=False, width=120),
    Column("output", "Output", "Shape of the output at the chosen input sizes", lambda x, _: _dims(x.output_shape),
           numeric=False, shown=False, width=110),
)  # fmt: skip
BY_ID: Mapping[str, Column] = {column.id: column for column in COLUMNS}
COLOR_COLUMNS: tuple[Column, ...] = tuple(column for column in COLUMNS if column.heat)


def unit_of(column: Column, known: Figures) -> float:
    """What 1 in the header's unit is, in the value's own unit."""
    return column.unit or known.byte_unit


def shown_as(column: Column, value: Value, known: Figures) -> str:
    """A value as the table shows it, without its unit."""
    return column.text(value) if column.unit else _number(known.byte_unit)(value)


def column_title(column: Column, known: Figures) -> str:
    """The header's words: with the unit of bytes, and to what the sensitivity is."""
    return _named(column.title, column, known)


def column_label(column: Column, known: Figures) -> str:
    """The words of a legend."""
    return _named(column.label, column, known)


def _named(words: str, column: Column, known: Figures) -> str:
    if not column.unit and known.byte_unit < 1e6:
        return words.replace("MB", "kB")
    return f"{words} ({known.scanned})" if column.id == "sensitivity" and known.scanned else words


# ------------------------------------------------------------------ colours


@dataclass(frozen=True)
class Heat:
    """Shares 0..1 of one column for the heat colours, with the words of the legend.

    Attributes:
        shares: by layer name; layers without a value are missing.
        low, high: what the two ends of the legend stand for.
    """

    column: Column
    shares: Mapping[str, float]
    low: str = ""
    high: str = ""


def heat(column: Column, known: Figures) -> Heat:
    """How warm every layer is by one column."""
    values = {layer.name: column.value(layer, known) for layer in known.layers}
    if column.heat == "bits":
        return _bits_heat(column, values)
    numbers = {name: float(v) for name, v in values.items() if isinstance(v, int | float)}
    top = max(numbers.values(), default=0.0)
    if top <= 0:
        return Heat(column, dict.fromkeys(numbers, 0.0), "0" if numbers else "", "")
    if column.heat == "log":
        return Heat(
            column,
            {name: log_share(v, top) for name, v in numbers.items()},
            "≤ " + shown_as(column, top / 10**DECADES, known),
            shown_as(column, top, known),
        )
    return Heat(column, {name: v / top for name, v in numbers.items()}, "0", shown_as(column, top, known))


def log_share(value: float, top: float) -> float:
    """Where `value` lies between a thousandth of `top` (0) and `top` (1), logarithmically."""
    if value <= 0 or top <= 0:
        return 0.0
    return min(1.0, max(0.0, 1 + math.log10(value / top) / DECADES))


def _bits_heat(column: Column, values: Mapping[str, Value]) -> Heat:
    bits = {name: _bits_of(str(value)) for name, value in values.items() if value}
    known = sorted({b for b in bits.values() if b})
    if not known:
        return Heat(column, {})
    shares = {name: min(1.0, math.log2(b) / 5) if b else 1.0 for name, b in bits.items()}
    return Heat(column, shares, f"{known[0]} bit", f"{known[-1]} bit" if len(known) > 1 else "")


def _bits_of(precision: str) -> int:
    """The first number in 'fp32', 'int4 weights', 'float8e4m3'…; 0 without one."""
    digits = ""
    for character in precision:
        if character.isdigit():
            digits += character
        elif digits:
            break
    return int(digits) if digits else 0


def summary(known: Figures, selected: Iterable[str]) -> str:
    """'3 of 21 selected · 9.4 MB · 41 % of latency'; the count of all layers when nothing is selected."""
    names = set(selected)
    rows = [layer for layer in known.layers if layer.name in names]
    size = file_size(sum(layer.cost.bytes for layer in rows or known.layers))
    if not rows:
        count = len(known.layers)
        return f"{count} layer{'' if count == 1 else 's'} · {size}" if count else ""
    words = f"{len(rows)} of {len(known.layers)} selected · {size}"
    shares = [known.times[layer.name].share for layer in rows if layer.name in known.times]
    return f"{words} · {sum(shares) * 100:.0f} % of latency" if shares else words
