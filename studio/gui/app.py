"""Start-up: the application object, the theme, one session, one window; slow things after it shows."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QObject, QSettings, Qt, QTimer, Signal, Slot
from PySide6.QtGui import QIcon
from PySide6.QtWidgets import QApplication

from studio.app.session import Session
from studio.base.resources import resource
from studio.gui.dialogs import install_crash_hook
from studio.gui.main_window import MainWindow
from studio.gui.theme import MODES, Theme


class Poster(QObject):
    """Runs calls of other threads on the window's thread, in the order they come."""

    _posted = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._posted.connect(self._run, Qt.ConnectionType.QueuedConnection)

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` on the thread of this object, soon; nothing happens once the window is gone."""
        with contextlib.suppress(RuntimeError):  # Qt has deleted this object
            self._posted.emit(call)

    @Slot(object)
    def _run(self, call: Callable[[], None]) -> None:
        call()


def settings_of(folder: Path) -> QSettings:
    """Layout, theme and columns, in a file beside the studio's other files."""
    return QSettings(str(folder / "window.ini"), QSettings.Format.IniFormat)


def make_application() -> QApplication:
    """The application object; before it, what Qt wants to know first."""
    from studio.gui.graph_view import register_scheme

    register_scheme()
    app = QApplication(sys.argv[:1])
    app.setApplicationName("featherweight")
    app.setApplicationDisplayName("Featherweight")
    app.setDesktopFileName("featherweight")
    app.setWindowIcon(QIcon(str(resource("icons/featherweight.svg"))))
    app.setAttribute(Qt.ApplicationAttribute.AA_DontShowIconsInMenus, False)
    return app


def run(path: str = "", *, sample: bool = False) -> int:
    """Open the window, with the model or project at `path`, or the sample; returns the exit code."""
    from studio.app.home import default_home

    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl+C ends at once; what was autosaved is offered next time
    app = make_application()
    settings = settings_of(default_home())
    stored = str(settings.value("theme", "system"))
    theme = Theme(next((mode for mode in MODES if mode == stored), "system"))
    theme.apply()
    poster = Poster()
    session = Session(poster.post)
    window = MainWindow(session, theme, settings)
    install_crash_hook(lambda: window)
    window.show()

    def finish() -> None:
        window.finish()
        window.offer_recovery()
        if path:
            window.actions_.guard(lambda: window.files.open(path))()
        elif sample:
            window.files.open_sample()

    QTimer.singleShot(0, window, finish)
    code = app.exec()
    session.shutdown()
    return code
