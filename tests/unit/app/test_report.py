from __future__ import annotations

from html.parser import HTMLParser

import pytest
from support.canned import info_of, measurement, plan_of, project_of, resnet_layers

from studio.app import report
from studio.app.project import Project, Version
from studio.base.errors import StudioError
from studio.records.base import replace
from studio.records.plan import Refusal
from studio.records.steps import Recipe


def compressed() -> Project:
    project = project_of(resnet_layers())
    assert project.original is not None
    assert project.original.info is not None
    plan = replace(
        plan_of(project, ["fc"]),
        refusals=(Refusal(layer="conv1", reason="<it> is the stem", hint="Keep it."),),
    )
    made = Version(
        id=1, name="INT8", digest="d1", parent=0, file="1.onnx", recipe=Recipe(steps=(plan.step,)), plans=(plan,),
        info=info_of(project.original.layers, "small"), measurement=measurement(10.0, 12.0, 0.91, 30.0), notes=("opset raised",),
    )  # fmt: skip
    return project.with_version(made)


class Page(HTMLParser):
    """Collects what stands in a page, and complains of tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_says_what_was_done_what_it_cost_and_how_it_was_measured() -> None:
    project = compressed()
    page = Page()
    page.feed(report.to_html(report.of_version(project, project.version(1))))
    page.close()
    assert not page.open
    for words in ("resnet18: INT8", "21.4 ms (95 %", "92.40 %", "91.00 %", "-1.40 points", "n = 1000", "SQNR 30.0 dB",
                  "40 runs", "INT8, static: 1 layer treated", "<it> is the stem", "opset raised", "technique: quantize_static",
                  "featherweight compress"):  # fmt: skip
        assert words in page.text


def test_what_was_not_measured_is_said_so() -> None:
    project = compressed()
    bare = replace(project.version(1), measurement=None)
    assert "were not measured" in report.to_html(report.of_version(project, bare))


def test_what_is_better_left_alone_is_not_called_refused() -> None:
    project = compressed()
    version = project.version(1)
    kept = Refusal(layer="stem", reason="it is small.", better=True)
    plans = (replace(version.plans[0], refusals=(kept,)),)
    page = report.to_html(report.of_version(project, replace(version, plans=plans)))
    assert "Better left alone:" in page
    assert "stem: it is small. " in page
    assert "Refused:" not in page


def test_without_an_inspection_there_is_no_report() -> None:
    project = compressed()
    with pytest.raises(StudioError, match="no report yet"):
        report.of_version(project, replace(project.version(1), info=None))
