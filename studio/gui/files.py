"""Opening, saving and closing from the window, with the questions that belong to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PySide6.QtWidgets import QFileDialog, QMessageBox, QWidget

from studio.app.file import SUFFIX
from studio.app.session import Session
from studio.base.errors import StudioError
from studio.gui.dialogs import ask_stop, ask_unsaved

MODELS = f"Models and projects (*.onnx *.ort *{SUFFIX});;ONNX models (*.onnx *.ort);;Projects (*{SUFFIX});;All files (*)"
AWAITED = {"compress", "scan", "export", "save", "train", "search"}
DATA_ENDINGS = {".npz", ".npy", ".csv"}
PROJECTS = f"Featherweight projects (*{SUFFIX})"


class Files:
    """The file commands of one window."""

    def __init__(self, window: QWidget, session: Session) -> None:
        self._window, self._session = window, session

    def ask_open(self) -> None:
        """Ask for a model or a project and open it."""
        path, _ = QFileDialog.getOpenFileName(self._window, "Open", self._folder(), MODELS)
        if path:
            self.open(path)

    def open(self, path: str | Path) -> None:
        """Open a model or a project, after asking about unsaved work.

        Raises:
            StudioError: there is no such file.
        """
        path = Path(path)
        if not path.exists():
            raise StudioError(
                f"Cannot open {path.name}", f"there is no file {path}", "It may have been moved."
            )
        if path.suffix.lower() in DATA_ENDINGS:
            raise StudioError(
                f"{path.name} holds data, not a model",
                hint="Choose it under Model → Data once a model is open.",
            )
        opener = self._session.open_project if is_project(path) else self._session.open_model
        self.leaving(lambda: opener(path))

    def open_sample(self) -> None:
        """Open the bundled model with its data."""
        self.leaving(self._session.open_sample)

    def save(self, then: Callable[[], None] = lambda: None) -> bool:
        """Save where the project was saved before, or ask; False when the user cancels."""
        project = self._session.view.project
        if project is None or not project.path:
            return self.save_as(then)
        self._session.save(then=then)
        return True

    def save_as(self, then: Callable[[], None] = lambda: None) -> bool:
        """Ask where to save the project; False when the user cancels."""
        project = self._session.view.project
        if project is None:
            return False
        start = project.path or str(Path(self._folder()) / f"{project.name}{SUFFIX}")
        path, _ = QFileDialog.getSaveFileName(self._window, "Save project", start, PROJECTS)
        if not path:
            return False
        target = Path(path)
        self._session.save(target if target.suffix else target.with_suffix(SUFFIX), then)
        return True

    def close(self) -> None:
        """Close the project, after asking about unsaved work."""
        self.leaving(self._session.close)

    @property
    def must_ask(self) -> bool:
        """Whether leaving needs a question first."""
        view = self._session.view
        return bool(self._running) or (view.project is not None and view.modified)

    @property
    def _running(self) -> str:
        """The job that leaving would end and that somebody waits for; '' when there is none."""
        return next((job.title for job in self._session.view.jobs if job.active and job.kind in AWAITED), "")

    def leaving(self, go_on: Callable[[], object]) -> bool:
        """Ask about running jobs and unsaved work, then `go_on`; False when the user would rather stay."""
        view = self._session.view
        if self._running and not ask_stop(self._window, self._running):
            return False
        if view.project is None or not view.modified:
            go_on()
            return True
        match ask_unsaved(self._window, view.project.name):
            case QMessageBox.StandardButton.Save:
                return self.save(then=lambda: _ignore(go_on()))
            case QMessageBox.StandardButton.Discard:
                go_on()
                return True
            case _:
                return False

    def _folder(self) -> str:
        recent = next((Path(p).parent for p in self._session.recent), Path.home())
        return str(recent)


def is_project(path: Path) -> bool:
    """Whether a path is a saved project rather than a model."""
    return path.is_dir() or path.suffix == SUFFIX


def _ignore(_result: object) -> None:
    return None
