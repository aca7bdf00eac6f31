"""A window on a real session whose workers are canned: real pipes and threads, no engine, no waiting."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import QSettings
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from studio.app.session import Session
from studio.gui.app import Poster
from studio.gui.main_window import MainWindow
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from tests.support.canned import FakeSession

WORKER = [sys.executable, str(Path(__file__).resolve().parents[1] / "support" / "fake_worker.py")]
THREE = ("stem", "body", "head")  # the layers of the model that those workers know


@pytest.fixture
def theme(qapp: QApplication) -> Theme:
    """The dark theme, applied."""
    theme = Theme("dark")
    theme.apply()
    return theme


@pytest.fixture
def selection(qapp: QApplication) -> Selection:
    return Selection()


@pytest.fixture
def fake_session() -> FakeSession:
    """A session that only remembers what is asked."""
    return FakeSession()


@pytest.fixture
def session(qapp: QApplication, tmp_path: Path) -> Iterator[Session]:
    """A real session with canned workers."""
    poster = Poster()
    session = Session(poster.post, tmp_path / "home", command=WORKER)
    yield session
    session.shutdown()


@pytest.fixture
def window(session: Session, theme: Theme, tmp_path: Path, qtbot: QtBot) -> MainWindow:
    """The window, shown, without the graph and the plots (they are tested on their own)."""
    window = MainWindow(session, theme, QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat))
    qtbot.addWidget(window, before_close_func=lambda window: window.leave_unasked())
    window.resize(1440, 900)
    window.show()
    qtbot.waitExposed(window)
    return window


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that the canned workers read as a network of three layers."""
    path = tmp_path / "net.onnx"
    path.write_bytes(b"canned")
    return path


@pytest.fixture
def opened(window: MainWindow, model: Path, qtbot: QtBot) -> MainWindow:
    """The window with that model open and measured."""
    window.files.open(model)
    qtbot.waitUntil(lambda: idle(window), timeout=20_000)
    return window


def idle(window: MainWindow) -> bool:
    """Whether a model is open and nothing runs."""
    view = window.session.view
    return view.project is not None and not view.planning and not any(job.active for job in view.jobs)
