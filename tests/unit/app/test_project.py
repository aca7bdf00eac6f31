"""What a project says of its versions."""

from __future__ import annotations

from studio.app.project import Project, Version
from studio.records.measure import Latency, Measurement


def version(number: int, latency: Latency | None) -> Version:
    measured = None
    if latency is not None:
        measured = Measurement(digest=str(number), file_bytes=1, runtime="", when="", latency=latency)
    return Version(
        id=number,
        name=str(number),
        digest=str(number),
        parent=0 if number else None,
        file=f"{number}.onnx",
        file_bytes=1,
        measurement=measured,
    )


def timed(median: float, ratio: float | None = None, *, busy: bool = False, threads: int = 2) -> Latency:
    return Latency(
        median_ms=median,
        low_ms=median * 0.9,
        high_ms=median * 1.1,
        ratio=ratio,
        ratio_low=None if ratio is None else ratio * 0.8,
        ratio_high=None if ratio is None else ratio * 1.25,
        runs=30,
        threads=threads,
        busy=busy,
    )


def medians(project: Project) -> list[float]:
    return [
        v.measurement.latency.median_ms for v in project.versions if v.measurement and v.measurement.latency
    ]


def test_versions_measured_at_different_speeds_of_the_machine_are_told_in_one_time() -> None:
    project = Project(
        name="net", versions=(version(0, timed(4.0)), version(1, timed(1.0, 2.0)), version(2, None))
    )
    told = project.in_one_time(None)
    assert medians(told) == [4.0, 2.0]
    latency = told.version(1).measurement.latency  # type: ignore[union-attr]
    assert latency is not None
    assert (latency.low_ms, latency.high_ms) == (4.0 / 2.5, 4.0 / 1.6)


def test_a_disturbed_measurement_does_not_replace_the_quiet_time_of_the_original() -> None:
    project = Project(name="net", versions=(version(0, timed(9.0, busy=True)), version(1, timed(4.5, 2.0))))
    assert medians(project.in_one_time(timed(3.0))) == [3.0, 1.5]
    assert medians(project.in_one_time(timed(3.0, busy=True))) == [9.0, 4.5]


def test_times_of_other_conditions_are_left_as_they_were_measured() -> None:
    project = Project(name="net", versions=(version(0, timed(4.0)), version(1, timed(1.0, 2.0, threads=1))))
    assert medians(project.in_one_time(None)) == [4.0, 1.0]
