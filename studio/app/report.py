"""A report of one compressed model as a single HTML file: what was done, what it cost, how it was measured."""

from __future__ import annotations

from studio.app import recipe as recipes
from studio.app.project import Project, Version
from studio.base import units
from studio.base.errors import StudioError
from studio.base.resources import resource
from studio.records.base import Record
from studio.records.measure import Latency, Measurement
from studio.records.model import ModelInfo
from studio.records.plan import Plan
from studio.records.verdict import alike, cautions


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


def of_version(project: Project, version: Version, model: str = "", output: str = "") -> Report:
    """The report of a version against the project's original.

    Args:
        project: that the version belongs to.
        version: any but the original.
        model: path of the original, for the command line; '' = where it lies.
        output: path that the command line writes to; '' = named like the version.

    Raises:
        StudioError: one of the two has not been inspected yet.
    """
    original = project.original
    if original is None or original.info is None or version.info is None:
        raise StudioError("There is no report yet", "the model has not been inspected", "Go to it first.")
    chain = project.chain_of(version)
    recipe = project.recipe_of(version)
    against = cautions(version.measurement, [step.settings for step in recipe.steps])
    return Report(
        title=f"{project.name}: {version.name}",
        before=original.info,
        after=version.info,
        plans=tuple(plan for link in chain for plan in link.plans),
        notes=tuple(dict.fromkeys([*(note for link in chain for note in link.notes), *against])),
        baseline=original.measurement,
        measurement=version.measurement,
        recipe=recipes.to_yaml(recipe),
        command=recipes.command(
            recipe,
            model or original.file,
            output or f"{project.name}.onnx",
            calibration=version.calibration,
            evaluation=project.evaluation,
        ),
    )


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
        "alike": alike,
    }
    environment.globals |= {"change": units.change, "counted": units.counted}
    text = resource("report.html.jinja").read_text(encoding="utf-8")
    after = {layer.name: layer for layer in report.after.layers}
    return environment.from_string(text).render(report=report, after=after)


def _latency(latency: Latency | None) -> str:
    if latency is None:
        return "–"
    low, high = units.milliseconds(latency.low_ms), units.milliseconds(latency.high_ms)
    return f"{units.milliseconds(latency.median_ms)} (95 %: {low} – {high}, {latency.runs} runs)"
