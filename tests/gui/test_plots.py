"""The plots on canned records, and their soak: PySide6 6.12 on Python 3.11 died of a few thousand calls."""

from __future__ import annotations

import msgspec
import pytest
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from studio.app.view import Live, View
from studio.gui.plots import PlotsPanel
from studio.gui.plots.trade_off import place_labels
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from studio.records.steps import QuantizeStatic
from tests.support.canned import FakeSession, busy_view, measurement, plan_of, project_of, resnet_layers


@pytest.fixture
def panel(fake_session: FakeSession, selection: Selection, theme: Theme, qtbot: QtBot) -> PlotsPanel:
    panel = PlotsPanel(fake_session, selection, theme)  # type: ignore[arg-type]
    qtbot.addWidget(panel)
    panel.resize(1000, 250)
    panel.show()
    qtbot.waitExposed(panel)
    return panel


def staged_view() -> View:
    project = project_of(resnet_layers()).with_treatment(("fc", "conv1"), "quantize", QuantizeStatic())
    plan = plan_of(project, ("fc", "conv1"))
    return View(project=project, plans=(plan,), predicted=plan.after)


def test_empty_plots_say_what_will_appear_and_offer_to_measure(
    panel: PlotsPanel, fake_session: FakeSession, qtbot: QtBot
) -> None:
    assert not panel.size_plot.has_plot
    assert not panel.trade_off_plot.has_plot
    assert panel.trade_off_plot.empty.button.isHidden()
    project = project_of(resnet_layers())
    bare = msgspec.structs.replace(project.versions[0], measurement=None)
    fake_session.show_view(View(project=msgspec.structs.replace(project, versions=(bare,))))
    qtbot.mouseClick(panel.trade_off_plot.empty.button, Qt.MouseButton.LeftButton)
    assert fake_session.asked == [("measure", (0,))]


def test_staged_treatments_are_drawn_as_predicted(panel: PlotsPanel, fake_session: FakeSession) -> None:
    fake_session.show_view(staged_view())
    curve = panel.size_plot.curve
    assert panel.size_plot.status.text() == "PREDICTED"
    assert len(curve.done) == 1
    assert curve.predicted is not None
    assert curve.predicted[1] < curve.done[0][1] == curve.original
    assert not panel.latency_plot.has_plot


def test_a_running_job_is_live_and_keeps_its_promise_in_sight(
    panel: PlotsPanel, fake_session: FakeSession
) -> None:
    view = staged_view()
    fake_session.show_view(view)
    promised = panel.size_plot.curve.predicted
    start = view.project.current.info.cost.bytes  # type: ignore[union-attr]
    live = Live(job=7, total=2, start_bytes=start, start_ms=20.0)
    fake_session.show(live=live)
    assert panel.size_plot.status.text() == "LIVE"
    assert panel.size_plot.curve.predicted == promised
    fake_session.show(
        live=msgspec.structs.replace(live, sizes=((1, start - 10**6),), times=((1, 19.0, 18.5, 19.6),))
    )
    assert panel.size_plot.curve.done[-1] == (1.0, (start - 10**6) / 1e6)
    assert panel.latency_plot.curve.band[-1] == (1.0, 18.5, 19.6)
    assert panel.latency_plot.curve.original == pytest.approx(21.4)
    ended = msgspec.structs.replace(live, sizes=((1, start - 10**6), (2, start // 4)), running=False)
    fake_session.show(live=ended, plans=(), predicted=None)
    assert panel.size_plot.status.text() == ""
    assert panel.size_plot.curve.predicted is None
    assert panel.size_plot.has_plot
    assert "after 2 of 2 layers" in panel.size_plot.view.accessibleDescription()


def test_new_treatments_replace_the_curve_of_the_last_job(
    panel: PlotsPanel, fake_session: FakeSession
) -> None:
    view = busy_view()
    assert view.live is not None
    fake_session.show_view(
        msgspec.structs.replace(view, live=msgspec.structs.replace(view.live, running=False))
    )
    assert panel.size_plot.status.text() == "PREDICTED"
    assert not panel.latency_plot.has_plot


def test_the_curves_end_with_the_version_that_was_made(panel: PlotsPanel, fake_session: FakeSession) -> None:
    project = project_of(resnet_layers())
    parent = project.versions[0]
    made = msgspec.structs.replace(parent, id=1, parent=0, measurement=measurement(12.0, 11.0, 0.92))
    project = msgspec.structs.replace(project, versions=(parent, made), head=1)
    start, end = 21.4, 12.0
    live = Live(
        job=1,
        total=3,
        start_bytes=10,
        start_ms=2 * start,
        sizes=((1, 8), (2, 6)),  # the third layer is kept as it is
        times=((2, start, start, start),),
        running=False,
        made=made.id,
    )
    fake_session.show_view(View(project=project, live=live))
    assert panel.latency_plot.curve.done == (
        (0.0, start), (2.0, start / 2), (3.0, end)
    )  # fmt: skip
    weighs = made.info.cost.bytes if made.info else 0
    sizes = [round(size * 1e6) for _, size in panel.size_plot.curve.done]
    assert sizes == [10, 8, 6, weighs]
    assert panel.size_plot.curve.done[-1][0] == live.total


def test_one_noisy_interval_does_not_flatten_the_line(panel: PlotsPanel, fake_session: FakeSession) -> None:
    live = Live(
        job=1, total=3, start_bytes=10, start_ms=5.0, times=((1, 5.0, 4.9, 5.2), (2, 5.1, 4.0, 900.0))
    )
    fake_session.show_view(View(project=project_of(resnet_layers()), live=live))
    top = panel.latency_plot.area.viewRange()[1][1]
    assert top < 60


def test_a_click_on_a_point_goes_to_its_version(
    panel: PlotsPanel, fake_session: FakeSession, qtbot: QtBot
) -> None:
    fake_session.show_view(busy_view())
    plot = panel.trade_off_plot
    point = next(p for p in plot.points if p.name.startswith("INT8, all"))
    qtbot.waitUntil(lambda: plot.plot_rect().width() > 50)
    QApplication.processEvents()
    place = plot.in_widget(point.ms, point.quality).toPoint()
    QTest.mouseMove(plot.view.viewport(), place)
    QTest.mouseClick(plot.view.viewport(), Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, place)
    qtbot.waitUntil(lambda: fake_session.asked == [("go_to", point.version)])


def test_a_label_keeps_clear_of_the_line_where_it_can() -> None:
    dot, room = QPointF(50, 50), QRectF(0, 0, 300, 100)
    (free,) = place_labels([(dot, 4.0)], [(60, 12)], room)
    (clear,) = place_labels([(dot, 4.0)], [(60, 12)], room, (dot, QPointF(200, 50)))
    assert free.left() > 50  # to the right, where the line would run through it
    assert clear.top() > 50 or clear.bottom() < 50 or clear.right() < 50


def test_labels_of_versions_do_not_overlap(
    panel: PlotsPanel, fake_session: FakeSession, qtbot: QtBot
) -> None:
    fake_session.show_view(busy_view())
    plot = panel.trade_off_plot
    qtbot.waitUntil(lambda: len(plot.labels) >= 4)
    boxes = [item.mapRectToScene(item.boundingRect()).adjusted(1, 1, -1, -1) for item in plot.labels]
    for i, box in enumerate(boxes):
        assert not any(box.intersects(other) for other in boxes[:i])


def test_the_version_at_the_head_has_the_accent(panel: PlotsPanel, fake_session: FakeSession) -> None:
    fake_session.show_view(busy_view())
    assert [p.name for p in panel.trade_off_plot.points if p.current] == ["Original"]
    assert panel.trade_off_plot.status.text() == "TOP-1 (%) VS LATENCY (MS)"


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_plots_follow_the_theme(
    panel: PlotsPanel, fake_session: FakeSession, theme: Theme, mode: str
) -> None:
    fake_session.show_view(busy_view())
    theme.set_mode(mode)  # type: ignore[arg-type]
    image = panel.grab().toImage()
    ground = theme.color("panel").name()
    assert image.pixelColor(4, image.height() - 4).name() == ground


@pytest.mark.slow
def test_three_thousand_live_updates_leave_the_window_alive(
    panel: PlotsPanel, fake_session: FakeSession
) -> None:
    project = project_of(resnet_layers())
    total, start = 300, 44_700_000
    for update in range(3000):
        done = update % total + 1
        live = Live(
            job=1 + update // total,
            total=total,
            start_bytes=start,
            start_ms=21.0,
            sizes=tuple((i, start - i * 100_000) for i in range(1, done + 1)),
            times=tuple(
                (i, 21.0 - i * 0.03, 20.5 - i * 0.03, 21.5 - i * 0.03) for i in range(1, done + 1, 5)
            ),
        )
        if update % 100 == 0:
            version = msgspec.structs.replace(
                project.versions[0], measurement=measurement(20 + update / 1000, 40, 0.9)
            )
            project = msgspec.structs.replace(project, versions=(version,))
        fake_session.show_view(View(project=project, live=live))
        if update % 10 == 0:
            QApplication.processEvents()
    assert panel.size_plot.curve.done[-1] == (float(total), (start - total * 100_000) / 1e6)
