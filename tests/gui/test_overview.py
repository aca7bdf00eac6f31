"""The native overview, and the graph panel that shows it where Netron cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from PySide6.QtCore import QCoreApplication, QEvent, QPoint, QPointF, Qt
from pytestqt.qtbot import QtBot

from studio.app.project import Version
from studio.app.view import View
from studio.gui.graph_view import GraphPanel
from studio.gui.overview import Overview
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from studio.records.model import Outline, OutlineNode
from tests.support.canned import FakeSession, busy_view, info_of, layer, outline_of, project_of, resnet_layers

Make = Callable[[View], GraphPanel]


@pytest.fixture
def make(
    fake_session: FakeSession,
    selection: Selection,
    theme: Theme,
    qtbot: QtBot,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Make]:
    """A panel without a web engine."""
    panels: list[GraphPanel] = []
    monkeypatch.setattr("studio.gui.graph_view.panel.web_engine_ready", lambda: False)

    def panel(view: View) -> GraphPanel:
        fake_session.show_view(view)
        made = GraphPanel(fake_session, selection, theme)  # type: ignore[arg-type]
        panels.append(made)
        made.resize(900, 320)
        made.show()
        qtbot.waitUntil(lambda: view.project is None or drawn(made))
        return made

    yield panel
    # Gone before the patch is: else a web engine would start in a panel that is on its way out.
    for made in panels:
        made.close()
        made.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)


def drawn(panel: GraphPanel) -> bool:
    canvas = panel.canvas
    return isinstance(canvas, Overview) and canvas.place_of(next(iter(canvas.layers_drawn()), "")) is not None


def overview(panel: GraphPanel) -> Overview:
    assert isinstance(panel.canvas, Overview)
    return panel.canvas


def click(
    panel: GraphPanel, name: str, qtbot: QtBot, key: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier
) -> None:
    place = overview(panel).place_of(name)
    assert place is not None
    qtbot.mouseClick(overview(panel), Qt.MouseButton.LeftButton, key, place.toPoint())


def test_without_a_model_it_says_what_will_appear(make: Make) -> None:
    assert make(View()).canvas is None


def test_clicks_select_and_keys_add_and_take_away(make: Make, selection: Selection, qtbot: QtBot) -> None:
    panel = make(busy_view())
    click(panel, "layer3.0.conv2", qtbot)
    assert selection.layers == ("layer3.0.conv2",)
    click(panel, "fc", qtbot, Qt.KeyboardModifier.ControlModifier)
    click(panel, "conv1", qtbot, Qt.KeyboardModifier.ShiftModifier)
    assert selection.layers == ("layer3.0.conv2", "fc", "conv1")
    click(panel, "fc", qtbot, Qt.KeyboardModifier.ControlModifier)
    assert selection.layers == ("layer3.0.conv2", "conv1")


def test_a_click_on_the_ground_selects_nothing(make: Make, selection: Selection, qtbot: QtBot) -> None:
    panel = make(busy_view())
    selection.set(("fc",))
    qtbot.mouseClick(overview(panel), Qt.MouseButton.LeftButton, pos=QPoint(3, 3))
    assert selection.layers == ()


def test_a_drag_moves_the_graph_and_selects_nothing(make: Make, selection: Selection, qtbot: QtBot) -> None:
    panel = make(busy_view())
    canvas = overview(panel)
    before = canvas.place_of("fc")
    assert before is not None
    qtbot.mousePress(canvas, Qt.MouseButton.LeftButton, pos=QPoint(300, 100))
    qtbot.mouseMove(canvas, QPoint(340, 120))
    qtbot.mouseRelease(canvas, Qt.MouseButton.LeftButton, pos=QPoint(340, 120))
    assert selection.layers == ()
    canvas.fit()
    assert canvas.place_of("fc") == before


def test_a_layer_selected_elsewhere_comes_into_sight(make: Make, selection: Selection) -> None:
    panel = make(busy_view())
    canvas = overview(panel)
    for _ in range(12):
        panel.zoom_in()
    for name in ("conv1", "fc"):
        selection.set((name,))
        place = canvas.place_of(name)
        assert place is not None
        assert canvas.rect().contains(place.toPoint())


def test_fitting_shows_every_node(make: Make) -> None:
    panel = make(busy_view())
    for _ in range(9):
        panel.zoom_in()
    panel.fit()
    canvas = overview(panel)
    for one in resnet_layers():
        place = canvas.place_of(one.name)
        assert place is not None
        assert canvas.rect().contains(place.toPoint())


def test_a_node_of_no_layer_is_neutral_and_selects_nothing(
    make: Make, selection: Selection, qtbot: QtBot
) -> None:
    layers = (layer("a"),)
    nodes = (*outline_of(layers).nodes, OutlineNode(key="x", op="Add", name="add"))
    outline = Outline(nodes=nodes, edges=((0, 1), (1, 2)))
    panel = make(View(project=_with(project_of(layers).versions[0], outline)))
    canvas = overview(panel)
    found = [canvas.node_at(QPointF(x, canvas.height() / 2)) for x in range(0, canvas.width(), 8)]
    assert {node.op for node in found if node is not None} == {"Conv", "Relu", "Add"}
    place = canvas.place_of("a")
    assert place is not None
    add = next(
        x
        for x in range(0, canvas.width(), 8)
        if (n := canvas.node_at(QPointF(x, place.y()))) and n.op == "Add"
    )
    selection.set(("a",))
    qtbot.mouseClick(canvas, Qt.MouseButton.LeftButton, pos=QPoint(add, int(place.y())))
    assert selection.layers == ()


def test_a_layer_in_a_subgraph_is_shown_by_the_node_that_holds_it(
    make: Make, selection: Selection, qtbot: QtBot
) -> None:
    layers = (layer("if_7/then_branch/conv"),)
    outline = Outline(nodes=(OutlineNode(key="y", op="If", name="if_7"),), edges=())
    panel = make(View(project=_with(project_of(layers).versions[0], outline)))
    assert overview(panel).place_of("if_7/then_branch/conv") is not None


def test_the_search_counts_marks_and_goes_round(make: Make, qtbot: QtBot) -> None:
    panel = make(busy_view())
    panel.focus_search()
    qtbot.keyClicks(panel.bar.search, "downsample.0")
    assert panel.bar.count.text() == "1 of 6"
    qtbot.keyClick(panel.bar.search, Qt.Key.Key_Return)
    assert panel.bar.count.text() == "2 of 6"
    qtbot.keyClick(panel.bar.search, Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier)
    qtbot.keyClick(panel.bar.search, Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier)
    assert panel.bar.count.text() == "6 of 6"
    qtbot.keyClick(panel.bar.search, Qt.Key.Key_Escape)
    assert panel.bar.count.text() == ""
    qtbot.keyClicks(panel.bar.search, "nowhere")
    assert panel.bar.count.text() == "not found"


def test_colours_follow_the_chosen_column_and_say_what_they_mean(make: Make) -> None:
    panel = make(busy_view())
    assert panel.bar.chooser.text() == "Coloured by: Sensitivity (INT8) ▾"
    panel.color_by("size")
    assert panel.bar.chooser.text() == "Coloured by: Size (MB) ▾"
    assert panel.bar.heat.accessibleName() == "Colours from 0 (low) to 9.44 (high)"
    panel.color_by("none")
    assert panel.bar.heat.isHidden()


def test_a_figure_that_is_not_known_gives_way_to_one_that_is(make: Make) -> None:
    panel = make(View(project=project_of(resnet_layers(), known=False)))
    panel.color_by("sensitivity")
    assert panel.bar.chooser.text() == "Coloured by: Size (MB) ▾"
    assert panel.bar.note.text() == "Sensitivity is not known yet"


def test_turning_the_graph_lays_it_out_anew(make: Make, qtbot: QtBot) -> None:
    panel = make(busy_view())
    canvas = overview(panel)
    canvas.set_direction("vertical")
    qtbot.waitUntil(
        lambda: (a := canvas.place_of("conv1")) is not None and abs(a.x() - canvas.place_of("fc").x()) < 1
    )  # type: ignore[union-attr]


def test_both_themes_paint_at_every_zoom(make: Make, theme: Theme) -> None:
    panel = make(busy_view())
    for mode in ("light", "dark"):
        theme.set_mode(mode)  # type: ignore[arg-type]
        for factor in (0.01, 3, 8, 12, 3):
            overview(panel).zoom(factor)
            assert not overview(panel).grab().isNull()


def test_a_large_graph_is_laid_out_between_events(make: Make, selection: Selection) -> None:
    layers = tuple(layer(f"layer{i}", key=f"k{i}") for i in range(5000))
    panel = make(View(project=_with(project_of(layers).versions[0], outline_of(layers))))
    selection.set(tuple(one.name for one in layers[::50]))
    assert not overview(panel).grab().isNull()
    assert info_of(layers).layers == layers


def _with(version: Version, outline: Outline):  # type: ignore[no-untyped-def]
    import msgspec

    from studio.app.project import Project

    return Project(name="m", versions=(msgspec.structs.replace(version, outline=outline),), head=0)
