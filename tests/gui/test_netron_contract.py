"""Netron's insides, driven with real mouse events: what `resources/graph/*.js` rely on.

The one test that must be looked at when the pinned Netron is raised.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper
from PySide6.QtCore import QPoint, Qt, QUrl
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QMenu, QWidget
from pytestqt.qtbot import QtBot

from studio.app.project import Project
from studio.app.view import View
from studio.engine.layers import inspect
from studio.gui.graph_view import GraphPanel
from studio.gui.graph_view.netron_view import NetronView
from studio.gui.graph_view.scheme import Files, is_ours, web_engine_ready
from studio.gui.overview import Overview
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from tests.support.canned import FakeSession, project_of

# Chromium's own words on a machine without a graphics card or a message bus.
pytestmark = pytest.mark.qt_log_ignore(
    "QRhi",
    "RHI",
    "Vulkan",
    "vulkan",
    "GBM",
    "Sandboxing",
    "dbus",
    "GPU",
    "gpu",
    "libva",
    "propagateSizeHints",
    "js:",
)

WAIT = 60_000  # Chromium starts slowly on a busy machine


def branching_model(path: Path) -> Path:
    """Conv → If: both branches hold a Conv of equal keys → Add; the middle is one without weights."""

    def weights(name: str) -> onnx.TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, (4, 4, 3, 3), [0.1] * 144)

    def branch(name: str) -> onnx.GraphProto:
        conv = helper.make_node("Conv", ["stem_out", f"{name}_w"], ["inner"], name="conv", pads=[1, 1, 1, 1])
        out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
        return helper.make_graph([conv], name, [], [out], [weights(f"{name}_w")])

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["stem_out"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["stem_out"], ["relu_out"], name="relu"),
        helper.make_node(
            "If", ["which"], ["if_out"], name="choose", then_branch=branch("t"), else_branch=branch("e")
        ),
        helper.make_node("Add", ["if_out", "relu_out"], ["y"], name="add"),
    ]
    image = [1, 4, 8, 8]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, image),
        helper.make_tensor_value_info("which", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, image)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weights("w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def project(model: Path) -> Project:
    """The model as the studio would hold it, inspected and stripped."""
    found = inspect(model, {}, model.with_suffix(".stripped"))
    made = project_of(found.info.layers)
    version = msgspec.structs.replace(
        made.versions[0],
        info=found.info,
        outline=found.outline,
        stripped=found.stripped,
        digest=found.info.digest,
    )
    scans = tuple(msgspec.structs.replace(scan, digest=version.digest) for scan in version.scans)
    return msgspec.structs.replace(made, versions=(msgspec.structs.replace(version, scans=scans),))


class Driver:
    """A graph panel with Netron in it, and a person in front of it."""

    def __init__(self, panel: GraphPanel, session: FakeSession, qtbot: QtBot) -> None:
        self.panel, self.session, self.qtbot = panel, session, qtbot

    @property
    def view(self) -> NetronView:
        assert isinstance(self.panel.canvas, NetronView)
        return self.panel.canvas

    def ask(self, script: str) -> Any:
        """What a script returns, through JSON: arrays and objects do not come back on their own."""
        answers: list[Any] = []
        self.view.page.runJavaScript(f"JSON.stringify({script})", answers.append)
        self.qtbot.waitUntil(lambda: bool(answers), timeout=WAIT)
        return json.loads(answers[0] or "null")

    def settle(self, script: str, wanted: Callable[[Any], bool]) -> Any:
        """Ask until the answer is as wanted."""
        found: list[Any] = []

        def asked() -> bool:
            found.append(self.ask(script))
            return wanted(found[-1])

        self.qtbot.waitUntil(asked, timeout=WAIT)
        return found[-1]

    def place(self, name: str) -> QPoint:
        """The middle of the node whose title is `name`, in pixels of the page."""
        box = self.ask(
            "(() => { const n = window.studio._all().find(({ node, path }) =>"
            f" (path ? path + '/' : '') + node.value.name === {json.dumps(name)});"
            " const r = n.node.element.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; })()"
        )
        x, y, width, height = box
        return QPoint(round(x + width / 2), round(y + min(height / 2, 18)))

    def click(
        self,
        place: QPoint,
        key: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier,
        *,
        twice: bool = False,
        button: Qt.MouseButton = Qt.MouseButton.LeftButton,
    ) -> None:
        """A real click, or two, through the widget that Chromium draws into."""
        target = self.view.focusProxy()
        assert isinstance(target, QWidget)
        inner = target.focusProxy() or target
        QTest.mouseMove(inner, place)
        QTest.mouseClick(inner, button, key, place)
        if twice:
            QTest.mouseClick(inner, button, key, place)

    def marked(self) -> list[str]:
        return sorted(
            self.ask("window.studio._all().filter(({ node }) => node.element.classList.contains('select'))"
                     ".map(({ node, path }) => (path ? path + '/' : '') + node.value.name)")
        )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return branching_model(tmp_path_factory.mktemp("netron") / "branching.onnx")


@pytest.fixture
def driver(
    model: Path, qtbot: QtBot, theme: Theme, selection: Selection, qapp: QApplication
) -> Iterator[Driver]:
    if not web_engine_ready():
        pytest.skip("QtWebEngine is not installed")
    session = FakeSession(View(project=project(model)))
    panel = GraphPanel(session, selection, theme)  # type: ignore[arg-type]
    panel.resize(1100, 620)
    panel.show()
    qtbot.waitUntil(lambda: panel.canvas is not None, timeout=WAIT)
    made = Driver(panel, session, qtbot)
    with qtbot.waitSignal(made.view.ready, timeout=WAIT):
        pass
    yield made
    if isinstance(panel.canvas, NetronView):
        with qtbot.waitSignal(panel.canvas.page.destroyed, timeout=WAIT):
            panel.shut()
    panel.close()
    panel.deleteLater()


def test_netron_draws_selects_colours_searches_and_turns(
    driver: Driver, selection: Selection, theme: Theme
) -> None:
    """One long walk: starting Chromium is dear."""
    layers = {
        layer.name
        for layer in project(Path(driver.session.view.project.versions[0].info.path)).versions[0].layers
    }  # type: ignore[union-attr]
    assert layers == {"stem", "choose/then_branch/conv", "choose/else_branch/conv"}

    # Every node is there, those of both branches too, although their keys are equal.
    names = driver.ask(
        "window.studio._all().map(({ node, path }) => (path ? path + '/' : '') + node.value.name)"
    )
    assert set(names) == layers | {"relu", "choose", "add"}

    # Clicks select, Ctrl adds, and the page marks what is selected.
    driver.click(driver.place("stem"))
    driver.qtbot.waitUntil(lambda: selection.layers == ("stem",), timeout=WAIT)
    driver.click(driver.place("choose/else_branch/conv"), Qt.KeyboardModifier.ControlModifier)
    driver.qtbot.waitUntil(lambda: selection.layers == ("stem", "choose/else_branch/conv"), timeout=WAIT)
    assert driver.marked() == ["choose/else_branch/conv", "stem"]
    driver.click(driver.place("stem"), Qt.KeyboardModifier.ShiftModifier)
    driver.qtbot.waitUntil(lambda: selection.layers == ("choose/else_branch/conv",), timeout=WAIT)

    # A node without weights is marked, and no layer is selected; no side panel of Netron's opens.
    driver.click(driver.place("relu"))
    driver.qtbot.waitUntil(lambda: selection.layers == (), timeout=WAIT)
    assert driver.marked() == ["relu"]
    assert driver.ask("window.__view__._sidebar.identifier") in (None, "")

    # What is selected elsewhere is marked here.
    selection.set(("choose/then_branch/conv", "stem"))
    driver.settle("window.studio.selected.length", lambda n: n == 2)
    assert driver.marked() == ["choose/then_branch/conv", "stem"]

    # Layers wear the heat colours, others none; the words of the tooltip say the figure.
    colors = driver.settle(
        "Object.fromEntries(window.studio._all().map(({ node, path }) => [(path ? path + '/' : '') + node.value.name,"
        " [node.element.style.getPropertyValue('--ground'), getComputedStyle(node.element.querySelector('path')).fill]]))",
        lambda found: bool(found["stem"][0]),
    )
    assert colors["stem"][0] == theme.heat(1.0).name()
    red, green, blue, _ = theme.heat(1.0).getRgb()  # type: ignore[misc]
    assert colors["stem"][1] == f"rgb({red}, {green}, {blue})"
    assert colors["relu"][0] == ""
    words = driver.ask("document.querySelector('.node.heat > title').textContent")
    assert "Sensitivity (INT8): 0.5" in words

    # Both themes: Netron's own dark rules are switched with ours.
    rule = "window.studio.darkRules.map((rule) => rule.media.mediaText)"
    assert len(driver.ask(rule)) >= 3
    assert set(driver.ask(rule)) == {"all"}
    theme.set_mode("light")
    driver.settle(rule, lambda found: set(found) == {"not all"})
    ground = driver.settle(
        "getComputedStyle(document.body).backgroundColor", lambda c: c == "rgb(246, 248, 250)"
    )
    assert ground
    theme.set_mode("dark")

    # Search marks and counts.
    driver.panel.bar.search.setText("conv")
    driver.qtbot.waitUntil(lambda: driver.panel.bar.count.text() == "1 of 3", timeout=WAIT)
    driver.panel.bar.search.clear()

    # The other button offers what can be done with a layer.
    driver.click(driver.place("stem"), button=Qt.MouseButton.RightButton)
    driver.qtbot.waitUntil(lambda: any(m.isVisible() for m in driver.panel.findChildren(QMenu)), timeout=WAIT)
    menu = next(m for m in driver.panel.findChildren(QMenu) if m.isVisible())
    assert [action.text() for action in menu.actions()] == [
        "Treat 2 layers with",
        "Show in table",
        "Copy name",
    ]
    menu.close()

    # Zoom and fit.
    before = driver.ask("window.__view__.target.zoom")
    driver.panel.zoom_in()
    assert driver.settle("window.__view__.target.zoom", lambda z: z > before) <= 2.5
    for _ in range(8):
        driver.panel.zoom_in()
    driver.panel.fit()
    fits = "(() => { const c = document.getElementById('canvas').getBoundingClientRect(); return [c.width <= innerWidth + 1, c.height <= innerHeight + 1]; })()"
    driver.settle(fits, lambda found: found == [True, True])

    # Turned from top to bottom, everything that was marked and coloured still is.
    with driver.qtbot.waitSignal(driver.view.ready, timeout=WAIT):
        driver.view.set_direction("vertical")
    stem, add = driver.place("stem"), driver.place("add")
    assert add.y() - stem.y() > abs(add.x() - stem.x())
    assert driver.marked() == ["choose/then_branch/conv", "stem"]

    # Shapes beside the lines.
    with driver.qtbot.waitSignal(driver.view.ready, timeout=WAIT):
        driver.view.set_shapes(True)
    assert any(
        "4×8×8" in text
        for text in driver.ask("[...document.querySelectorAll('.edge-label')].map((e) => e.textContent)")
    )

    # A double click opens Netron's side panel, with the attributes of the node.
    driver.click(driver.place("relu"), twice=True)
    shown = "document.getElementById('sidebar-content').textContent + document.querySelector('.sidebar-title').textContent"
    driver.settle(shown, lambda text: "Node Properties" in text and "relu" in text)

    # Nothing outside can be reached, nor a file that is not ours.
    for address in (
        "https://example.com/",
        "file:///etc/passwd",
        "studio-graph://netron/../boot.js",
        "studio-graph://netron/server.py",
    ):
        tried = f"window.tried = ''; fetch({json.dumps(address)}).then((r) => {{ window.tried = 'got ' + r.status; }}, () => {{ window.tried = 'refused'; }})"
        driver.view.page.runJavaScript(f"{tried}; undefined")
        assert driver.settle("window.tried", bool) in {"refused", "got 404"}


def test_what_netron_cannot_draw_is_drawn_by_the_overview(driver: Driver) -> None:
    netron = driver.view
    netron.page.runJavaScript("window.studio.failed('the model is odd'); undefined")
    driver.qtbot.waitUntil(lambda: isinstance(driver.panel.canvas, Overview), timeout=WAIT)
    assert driver.panel.bar.note.text() == "Overview, because the model is odd"


def test_a_killed_render_process_leaves_the_overview(driver: Driver) -> None:
    netron = driver.view
    os.kill(netron.page.renderProcessPid(), signal.SIGKILL)
    driver.qtbot.waitUntil(lambda: isinstance(driver.panel.canvas, Overview), timeout=WAIT)
    assert driver.panel.bar.note.text() == "Overview, because the web engine stopped"


def test_the_files_served_are_netrons_ours_and_one_model(tmp_path: Path) -> None:
    served = Files()
    assert served.read("/view.js") is not None
    page = served.read("/index.html")
    assert page is not None
    text = page[0].decode()
    assert "default-src 'self'" in text
    assert "studio/boot.js" in text
    assert 'src="index.js"' not in text
    for path in (
        "/server.py",
        "/__init__.py",
        "/../netron/view.js",
        "/model/1.onnx",
        "/studio/../boot.js",
        "/studio/fonts/../x.otf",
        "/",
    ):
        assert served.read(path) is None
    (tmp_path / "a.onnx").write_bytes(b"a")
    (tmp_path / "b.onnx").write_bytes(b"b")
    assert served.read(f"/{served.offer(tmp_path / 'a.onnx', 1)}") == (b"a", "application/octet-stream")
    served.offer(tmp_path / "b.onnx", 2)
    assert served.read("/model/1.onnx") is None
    assert served.read("/model/2.onnx") == (b"b", "application/octet-stream")


def test_only_our_own_addresses_are_asked_for() -> None:
    assert is_ours(QUrl("studio-graph://netron/view.js"))
    for address in ("https://netron/", "file:///x", "studio-graph://other/x", "http://localhost/", "qrc:/x"):
        assert not is_ours(QUrl(address))
