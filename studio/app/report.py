"""A report of one compressed model as a single HTML file: what was done, what it cost, how it was measured."""

from __future__ import annotations

from studio.base import units
from studio.base.resources import resource
from studio.records.base import Record
from studio.records.measure import Latency, Measurement
from studio.records.model import ModelInfo
from studio.records.plan import Plan


class Report(Record, frozen=True, kw_only=True):
    """What a report says.

    Attributes:
        baseline / measurement: of the original and of the result; None where not measured.
        recipe: as YAML.
        command: that repeats it.
    """

    title: str
    before: ModelInfo
    after: ModelInfo
    plans: tuple[Plan, ...] = ()
    notes: tuple[str, ...] = ()
    baseline: Measurement | None = None
    measurement: Measurement | None = None
    recipe: str = ""
    command: str = ""


def to_html(report: Report) -> str:
    """The report as one page that needs nothing else: no script, no outside file."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "size": units.file_size,
        "count": units.short,
        "percent": units.percent,
        "latency": _latency,
        "shape": units.shape,
    }
    environment.globals["change"] = units.change
    text = resource("report.html.jinja").read_text(encoding="utf-8")
    after = {layer.name: layer for layer in report.after.layers}
    return environment.from_string(text).render(report=report, after=after)


def _latency(latency: Latency | None) -> str:
    if latency is None:
        return "–"
    low, high = units.milliseconds(latency.low_ms), units.milliseconds(latency.high_ms)
    return f"{units.milliseconds(latency.median_ms)} (95 %: {low} – {high}, {latency.runs} runs)"
