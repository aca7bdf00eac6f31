"""A person's way through the window, with real workers on the bundled sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PySide6.QtCore import QPoint, QSettings, Qt
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from studio.app.session import Session
from studio.gui.app import Poster
from studio.gui.export_dialog import ExportDialog
from studio.gui.graph_view.netron_view import NetronView
from studio.gui.main_window import MainWindow
from studio.gui.theme import Theme
from studio.records.steps import QuantizeStatic

LONG_MS = 120_000
WHERE = """(() => {{
    const box = window.studio._nodes.get({key})[0].node.element.getBoundingClientRect();
    return JSON.stringify([box.x + box.width / 2, box.y + box.height / 2]);
}})()"""

pytestmark = pytest.mark.slow


@pytest.fixture
def window(qapp: QApplication, qtbot: QtBot, tmp_path: Path) -> Iterator[MainWindow]:
    theme = Theme("dark")
    theme.apply()
    poster = Poster()
    session = Session(poster.post, tmp_path / "home")
    window = MainWindow(session, theme, QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat))
    qtbot.addWidget(window, before_close_func=lambda window: window.leave_unasked())
    window.resize(1600, 1000)
    window.show()
    qtbot.waitExposed(window)
    window.finish()
    yield window
    session.shutdown()


@pytest.fixture
def sample_open(window: MainWindow, qtbot: QtBot) -> MainWindow:
    qtbot.mouseClick(window.welcome.sample, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: window.session.view.project is not None, timeout=LONG_MS)
    settle(window, qtbot)
    return window


def settle(window: MainWindow, qtbot: QtBot) -> None:
    """Wait until nothing runs and the version in view is listed."""

    def settled() -> bool:
        view = window.session.view
        listed = (
            view.project is not None
            and view.project.current is not None
            and view.project.current.info is not None
        )
        return listed and not view.planning and not any(job.active for job in view.jobs)

    qtbot.waitUntil(settled, timeout=LONG_MS)
    failed = [job for job in window.session.view.jobs if job.state == "failed"]
    assert not failed, failed[0].error


def click_in_graph(window: MainWindow, qtbot: QtBot, keys: list[str]) -> None:
    """Click nodes with the mouse: the first alone, the others with Ctrl."""
    assert window.graph is not None
    canvas = window.graph.canvas
    if not isinstance(canvas, NetronView):
        pytest.skip("there is no web engine on this machine")
    ask_page(canvas, qtbot, "JSON.stringify(window.studio.ready)", until=lambda answer: answer is True)
    window.graph.fit()
    target = canvas.focusProxy().focusProxy() or canvas.focusProxy()
    for i, key in enumerate(keys):
        x, y = ask_page(canvas, qtbot, WHERE.format(key=json.dumps(key)), until=bool)
        modifier = Qt.KeyboardModifier.ControlModifier if i else Qt.KeyboardModifier.NoModifier
        qtbot.mouseClick(target, Qt.MouseButton.LeftButton, modifier, QPoint(round(x), round(y)))
        qtbot.waitUntil(lambda i=i: len(window.selection.layers) == i + 1, timeout=LONG_MS)


def ask_page(canvas: NetronView, qtbot: QtBot, script: str, until: Callable[[object], bool]) -> object:
    """Ask the page until the answer fits."""
    holder: list[object] = [None]

    def asked() -> bool:
        canvas.page.runJavaScript(script, lambda answer: holder.__setitem__(0, json.loads(answer or "null")))
        qtbot.wait(100)
        return until(holder[0])

    qtbot.waitUntil(asked, timeout=LONG_MS)
    return holder[0]


def test_from_the_sample_to_a_smaller_file_that_runs(
    sample_open: MainWindow, qtbot: QtBot, tmp_path: Path
) -> None:
    window, session = sample_open, sample_open.session
    layers = session.view.project.current.layers

    click_in_graph(window, qtbot, [layer.key for layer in layers[1:4]])
    assert set(window.selection.layers) == {layer.name for layer in layers[1:4]}
    rows = window.table.view.selectionModel().selectedRows()
    assert len(rows) == 3

    session.scan(QuantizeStatic())
    settle(window, qtbot)
    scan = session.view.project.current.scans[-1]
    assert scan.complete
    assert len(scan.layers) == len(layers)

    ranked = sorted((s for s in scan.layers if s.score is not None), key=lambda s: s.score)
    chosen = [s.layer for s in ranked[:2]]
    window.selection.set(chosen)
    box = window.inspector.treatment.slots["quantize"].box
    row = next(i for i in range(box.count()) if box.itemData(i) is QuantizeStatic)
    box.setCurrentIndex(row)
    box.activated.emit(row)
    qtbot.waitUntil(lambda: session.view.predicted is not None, timeout=LONG_MS)
    assert "predicted" in window.headline.cells[0].accessibleName()
    assert set(session.view.project.staged) == set(chosen)

    qtbot.mouseClick(window.toolbar.button("compress.run"), Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: len(session.view.project.versions) == 2, timeout=LONG_MS)
    settle(window, qtbot)
    assert len(session.view.live.sizes) == 2
    assert session.view.live.times
    made = session.view.project.current
    assert made.parent == 0
    assert made.measurement is not None
    assert made.measurement.latency is not None
    assert made.measurement.accuracy is not None
    assert made.measurement.file_bytes < session.view.project.original.measurement.file_bytes
    assert made.info.cost.bytes == made.plans[-1].after.bytes

    window.actions_["edit.undo"].trigger()
    assert session.view.project.head == 0
    assert set(session.view.project.staged) == set(chosen)
    window.actions_["edit.redo"].trigger()
    assert session.view.project.head == made.id

    target = tmp_path / "smaller.onnx"
    window.export()
    dialog = window.findChildren(ExportDialog)[0]
    dialog.path.setText(str(target))
    dialog._start()
    qtbot.waitUntil(lambda: dialog.exported is not None, timeout=LONG_MS)
    assert dialog.exported.sound
    assert "quantize_static" in dialog.recipe.toPlainText()
    assert dialog.command.toPlainText().startswith("featherweight compress")
    dialog.close()
    import onnxruntime as ort

    outputs = ort.InferenceSession(str(target)).run(None, {"image": np.zeros((1, 1, 28, 28), np.float32)})
    assert np.isfinite(outputs[0]).all()


def test_a_job_stopped_in_the_middle_leaves_everything_as_it_was(
    sample_open: MainWindow, qtbot: QtBot
) -> None:
    window, session = sample_open, sample_open.session
    layers = session.view.project.current.layers
    session.set_treatment([layer.name for layer in layers], "quantize", QuantizeStatic(preset="careful"))
    qtbot.waitUntil(lambda: session.view.predicted is not None, timeout=LONG_MS)
    before = session.view.project
    job = session.compress()
    qtbot.waitUntil(lambda: session.view.job(job).share > 0, timeout=LONG_MS)
    window.actions_["compress.cancel"].trigger()
    assert session.view.job(job).state in {"cancelling", "cancelled"}
    qtbot.waitUntil(lambda: not session.view.job(job).active, timeout=5_000)
    assert session.view.job(job).state == "cancelled"
    assert session.view.project.versions == before.versions
    assert session.view.project.treatments == before.treatments
    assert not list((session._desk.home.session / "jobs").iterdir())


def test_a_scan_that_is_stopped_keeps_what_is_known(sample_open: MainWindow, qtbot: QtBot) -> None:
    window, session = sample_open, sample_open.session
    job = session.scan(QuantizeStatic())
    qtbot.waitUntil(
        lambda: session.view.scan_live is not None and len(session.view.scan_live.layers) >= 1,
        timeout=LONG_MS,
    )
    window.actions_["compress.cancel"].trigger()
    qtbot.waitUntil(lambda: not session.view.job(job).active, timeout=10_000)
    scans = session.view.project.current.scans
    assert scans
    assert scans[-1].layers
