"""Ticks, labels and the front of the plots."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from PySide6.QtCore import QPointF, QRectF
from support.canned import busy_view, measurement

from studio.gui.plots.base import round_ticks, tick_words
from studio.gui.plots.trade_off import Point, pareto, place_labels, read_points


def test_ticks_are_round_and_inside() -> None:
    assert round_ticks(0, 44.7, most=4) == (0, 15, 30)
    assert round_ticks(0, 14, most=5, whole=True) == (0, 3, 6, 9, 12)
    assert round_ticks(90, 93.2, most=4) == (90, 91, 92, 93)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.booleans())
def test_ticks_never_leave_the_range(low: float, span: float, whole: bool) -> None:
    ticks = round_ticks(low, low + span, most=5, whole=whole)
    assert len(ticks) <= 6
    assert all(low - span * 1e-6 - 1e-6 <= t <= low + span * (1 + 1e-6) + 1e-6 for t in ticks)
    assert len({tick_words(t, ticks) for t in ticks}) == len(ticks)


def point(version: int, ms: float, quality: float) -> Point:
    return Point(version, f"v{version}", ms, quality, 1000, False, "")


def test_the_front_holds_what_nothing_beats() -> None:
    points = [point(0, 20, 92), point(1, 10, 90), point(2, 8, 91), point(3, 21, 91.5), point(4, 8, 89)]
    assert [p.version for p in pareto(points)] == [2, 0]


def test_labels_overlap_neither_each_other_nor_dots() -> None:
    dots = [(QPointF(100 + i * 4, 100 + i * 3), 6.0) for i in range(6)]
    places = place_labels(dots, [(60.0, 12.0)] * 6, QRectF(0, 0, 300, 220))
    boxes = [box for box in places if box is not None]
    assert len(boxes) >= 3
    for i, box in enumerate(boxes):
        assert QRectF(0, 0, 300, 220).contains(box)
        assert not any(box.intersects(other) for other in boxes[:i])


def test_quality_is_the_best_measure_that_all_versions_have() -> None:
    project = busy_view().project
    assert project is not None
    quality, points = read_points(project)
    assert (quality.title, quality.unit) == ("Top-1", "%")
    assert len(points) == 6
    assert "92.4 %" in points[0].words
    unlabelled = msgspec.structs.replace(project.versions[1], measurement=measurement(9, 10, None, 31.0))
    quality, points = read_points(
        msgspec.structs.replace(project, versions=(project.versions[0], unlabelled))
    )
    assert quality.title == "SQNR"
    assert points[0].quality < 60
    assert "equal" in points[0].words
    assert read_points(None)[1] == ()
