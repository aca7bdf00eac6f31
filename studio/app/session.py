"""What the faces call: one session per window. Its `view` is one frozen record.

Everything here runs on the owner's thread. Decisions (undoable) and facts go through the `desk`,
work through the `lanes`; `opening` and `deeds` hold what takes more than a line.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from studio.app import deeds, file, opening, presets
from studio.app.board import Board, Listener
from studio.app.desk import Desk
from studio.app.export import Exported
from studio.app.home import Home, Recoverable, first_of
from studio.app.jobs import Limits
from studio.app.lanes import Lanes
from studio.app.project import Project
from studio.app.store import Store
from studio.app.view import View
from studio.base import units
from studio.base.errors import StudioError
from studio.base.resources import resource
from studio.records.base import replace
from studio.records.measure import DataSpec
from studio.records.presets import Preset
from studio.records.steps import AnySettings, Slot
from studio.records.task import Answer, DescribeData, DescribeLayer, InputSizes


class _Keep:
    """Says of an argument: leave this as it is."""


KEEP: Final = _Keep()


class Session:
    """Everything that faces call.

    Args:
        post: runs a call on the owner's thread (Qt: a queued signal; else `Inbox.post`).
        folder: of the studio's own files; None = the user's data folder.
        command: what to start as a worker; None = this program.
        limits: of a question to the ask lane (reading a model, planning).
        clock: seconds since the epoch.

    Attributes:
        recent: paths of models and projects opened lately, newest first.
    """

    def __init__(
        self,
        post: Callable[[Callable[[], None]], None],
        folder: Path | None = None,
        *,
        command: list[str] | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        home = Home(folder)
        board = Board(clock)
        lanes = Lanes(board, post, home.session / "jobs", command, limits)
        self._desk = Desk(board, lanes, home, Store(home.session / "models"))
        self._autosaved: Project | None = None
        self.recent: tuple[str, ...] = home.recent()

    @property
    def view(self) -> View:
        """Everything a face shows."""
        return self._desk.board.view

    def listen(self, callback: Listener) -> Callable[[], None]:
        """Call `callback(old, new)` after every change; returns what ends that."""
        return self._desk.board.listen(callback)

    # ------------------------------------------------------------ opening and saving

    def open_model(self, path: str | Path) -> int:
        """Open an ONNX file as a new project; returns the job's id."""
        return opening.open_model(self._desk, Path(path).absolute(), self._remember)

    def open_sample(self) -> int:
        """Open the bundled model with its data; returns the job's id."""
        sample = resource("sample")
        calibration = DataSpec(path=str(sample / "calibration.npz"))
        evaluation = DataSpec(path=str(sample / "evaluation.npz"))
        model = sample / "fashion_cnn.onnx"
        # Not remembered: among the recent files it would come back without its data.
        return opening.open_model(self._desk, model, lambda _path: None, calibration, evaluation)

    def open_project(self, path: str | Path) -> int:
        """Open a saved project; returns the job's id."""
        return opening.open_project(self._desk, Path(path).absolute(), self._remember)

    def close(self) -> None:
        """Close the project; unsaved work is gone."""
        opening.close(self._desk)

    def save(self, path: str | Path | None = None, then: Callable[[], None] = lambda: None) -> int:
        """Save the project where it was saved before, or at `path`; returns the job's id.

        Raises:
            StudioError: it was never saved and no path is given.
        """
        target = None if path is None else Path(path).absolute()
        return opening.save(self._desk, target, self._remember, then)

    def autosave(self) -> None:
        """Keep unsaved work for after a crash; cheap when nothing has changed."""
        project = self.view.project
        if project is not None and self.view.modified and project is not self._autosaved:
            self._autosaved = project
            opening.autosave(self._desk, project)

    def recover(self) -> tuple[Recoverable, ...]:
        """Projects that a crash left unsaved, newest first; folders without one are cleared away."""
        return file.recoverable(self._desk.home.orphans())

    def open_recovered(self, found: Recoverable) -> int:
        """Open what a crash left; returns the job's id."""
        return opening.open_recovered(self._desk, found)

    def discard_recovered(self, found: Recoverable) -> None:
        """Remove what a crash left."""
        file.discard(Path(found.folder))

    def shutdown(self) -> None:
        """End all workers and remove the session's folder; unsaved work is gone."""
        self._desk.board.silence()
        self._desk.lanes.close()
        self._desk.home.remove_session()

    def _remember(self, path: Path) -> None:
        self.recent = first_of(str(path), self.recent)
        self._desk.lanes.file_quietly(lambda: self._desk.home.remember(path))

    # ------------------------------------------------------------ questions

    def describe_layer(
        self, layer: str, settings: AnySettings | None, then: Callable[[Answer], None]
    ) -> None:
        """Ask what a layer's weights look like; `then` gets LayerDetail or Failed. The newest wins."""
        task = DescribeLayer(
            model=self._desk.head.file,
            layer=layer,
            settings=settings,
            calibration=self._desk.project.calibration,
        )
        self._desk.lanes.ask(task, then, key="describe")

    def preview_data(self, spec: DataSpec, then: Callable[[Answer], None]) -> None:
        """Ask what the model would receive of a data set; `then` gets DataPreview or Failed."""
        folder = self._desk.home.session / "preview"
        folder.mkdir(exist_ok=True)
        task = DescribeData(model=self._desk.head.file, spec=spec, folder=str(folder))
        self._desk.lanes.ask(task, then, key="preview data")

    # ------------------------------------------------------------ decisions

    def set_treatment(self, layers: Iterable[str], slot: Slot, settings: AnySettings | None) -> None:
        """Stage a treatment on some layers of the head; None takes it back."""
        self.set_treatments(slot, [(layers, settings)])

    def set_treatments(self, slot: Slot, groups: Iterable[tuple[Iterable[str], AnySettings | None]]) -> None:
        """Stage different settings of one slot on several groups of layers, as one decision."""
        project = self._desk.project
        chosen = [(tuple(layers), settings) for layers, settings in groups]
        for layers, settings in chosen:
            project = project.with_treatment(layers, slot, settings)
        chips = dict.fromkeys(settings.chip if settings else f"No {slot}" for _, settings in chosen)
        names = tuple(name for layers, _ in chosen for name in layers)
        text = f"{', '.join(chips)} on {units.counted(len(names), 'layer')}"
        self._desk.decide(text, project, merge=f"{slot} {names}")

    def stage_preset(self, preset: Preset, layers: Iterable[str] = ()) -> None:
        """Stage what a preset chooses, on these layers or on all; what refuses it gets 8-bit weights where that runs.

        Raises:
            StudioError: none of them holds float weights that can be treated.
        """
        presets.stage(self._desk, preset, layers)

    def clear_treatments(self, layers: Iterable[str] | None = None) -> None:
        """Take back what is staged on these layers (None: on all)."""
        self._desk.decide("Clear treatments", self._desk.project.without_treatments(layers))

    def go_to(self, version_id: int) -> None:
        """Move the head."""
        project = self._desk.project
        self._desk.decide(f"Go to {project.version(version_id).name}", project.with_head(version_id))

    def rename(self, version_id: int, name: str) -> None:
        """Give a version another name.

        Raises:
            StudioError: the name is empty.
        """
        if not name.strip():
            raise StudioError("A version needs a name")
        project = self._desk.project
        version = project.version(version_id)
        renamed = replace(version, name=name.strip())
        self._desk.decide(f"Rename {version.name}", project.with_version(renamed))

    def annotate(self, version_id: int, note: str) -> None:
        """Write a version's note."""
        project = self._desk.project
        version = project.version(version_id)
        noted = project.with_version(replace(version, note=note))
        self._desk.decide(f"Note on {version.name}", noted, merge=f"note {version_id}")

    def remove_version(self, version_id: int) -> None:
        """Remove a version and those made from it (undo brings them back).

        Raises:
            StudioError: it is the original.
        """
        project = self._desk.project
        name = project.version(version_id).name
        self._desk.decide(f"Remove {name}", project.without_version(version_id))

    def set_data(
        self, *, calibration: DataSpec | _Keep | None = KEEP, evaluation: DataSpec | _Keep | None = KEEP
    ) -> None:
        """Choose the data for calibration, for evaluation, or for both."""
        project = self._desk.project
        if not isinstance(calibration, _Keep):
            project = replace(project, calibration=calibration, calibration_summary=None)
        if not isinstance(evaluation, _Keep):
            project = replace(project, evaluation=evaluation, evaluation_summary=None)
        self._desk.decide("Choose data", project)

    def set_input_sizes(self, sizes: InputSizes) -> None:
        """Choose the size of every dynamic dimension."""
        self._desk.decide("Input sizes", replace(self._desk.project, input_sizes=tuple(sizes)))

    def set_threads(self, threads: int) -> None:
        """Choose how many threads the runtime uses; 0 = its own choice."""
        self._desk.decide("Threads", replace(self._desk.project, threads=threads))

    def set_seed(self, seed: int) -> None:
        """Choose the seed of all randomness."""
        self._desk.decide("Seed", replace(self._desk.project, seed=seed))

    def undo(self) -> None:
        """Put the decisions before the last one back."""
        self._desk.undo()

    def redo(self) -> None:
        """Take the decision that was undone last again."""
        self._desk.redo()

    # ------------------------------------------------------------ deeds

    def compress(self, *, agreed: bool = False) -> int:
        """Carry out the staged treatments: a new version, measured; returns the job's id.

        Args:
            agreed: the plans' questions were answered with yes.

        Raises:
            StudioError: nothing is staged.
        """
        job = deeds.compress(self._desk, agreed=agreed)
        with contextlib.suppress(StudioError):  # what was staged for long work should outlive a kill
            self.autosave()
        return job

    def measure(self, version_ids: Iterable[int]) -> int:
        """Measure versions, interleaved with the original; returns the job's id."""
        return deeds.measure(self._desk, version_ids)

    def profile(self, version_id: int) -> int:
        """Time every layer of a version; returns the job's id."""
        return deeds.profile(self._desk, version_id)

    def scan(self, settings: AnySettings, layers: Sequence[str] = ("*",)) -> int:
        """Treat every layer alone and compare outputs; returns the job's id."""
        return deeds.scan(self._desk, settings, layers)

    def export(
        self, version_id: int, path: str | Path, then: Callable[[Exported], None] = lambda _e: None
    ) -> int:
        """Write a version as an ONNX file and check it; returns the job's id."""
        return deeds.export(self._desk, version_id, Path(path).absolute(), then)

    def cancel(self, job_id: int) -> None:
        """Ask a job to stop."""
        self._desk.lanes.cancel(job_id)

    def finish(self, job_id: int) -> None:
        """Ask training to end soon and keep the best so far; other work goes on."""
        self._desk.lanes.finish(job_id)

    def pause(self, job_id: int, *, on: bool) -> None:
        """Let a running job stand still, or go on where it stood."""
        self._desk.lanes.pause(job_id, on=on)

    def cancel_all(self) -> None:
        """Ask all jobs to stop."""
        self._desk.lanes.cancel_all()
