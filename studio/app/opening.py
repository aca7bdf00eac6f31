"""How a project comes into a session and leaves it: open, save, autosave, recover."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from studio.app import deeds, file, home
from studio.app.desk import Desk
from studio.app.jobs import Failure, Run
from studio.app.project import Project, Version
from studio.base import units
from studio.base.errors import StudioError
from studio.records.base import replace
from studio.records.measure import DataSpec
from studio.records.task import Answer, Failed, Inspect, Inspected, Stopped

Remember = Callable[[Path], None]


def open_model(
    desk: Desk,
    path: Path,
    remember: Remember,
    calibration: DataSpec | None = None,
    evaluation: DataSpec | None = None,
) -> int:
    """Inspect an ONNX file, show it as a new project, and profile and measure it in the background."""
    board = desk.board
    job = board.add_job("open", f"Open {path.name}")

    def then(answer: Answer) -> None:
        match answer:
            case Inspected(info=info):
                board.end_job(job, "done", units.counted(len(info.layers), "layer"))
                desk.show(_new_project(path, answer, calibration, evaluation))
                remember(path)
                board.say(
                    f"Opened {path.name}: {units.counted(len(info.layers), 'layer')}, {units.counted(info.nodes, 'node')}"
                )
                deeds.profile(desk, 0, background=True)
                deeds.measure(desk, (0,), background=True)
            case Failed():
                board.fail_job(job, answer)
            case Stopped():
                board.end_job(job, "cancelled", "Cancelled")
            case _:
                pass

    desk.lanes.ask_as_job(job, Inspect(model=str(path), stripped=desk.stripped_path()), then)
    return job


def _new_project(
    path: Path, inspected: Inspected, calibration: DataSpec | None, evaluation: DataSpec | None
) -> Project:
    info = inspected.info
    original = Version(
        id=0,
        name="Original",
        digest=info.digest,
        file=str(path),
        file_bytes=info.file_bytes,
        info=info,
        outline=inspected.outline,
        stripped=inspected.stripped,
    )
    return Project(
        name=path.stem,
        versions=(original,),
        head=0,
        calibration=calibration,
        evaluation=evaluation,
        input_sizes=info.input_sizes,
    )


def open_project(desk: Desk, path: Path, remember: Remember) -> int:
    """Open a saved project."""
    models = desk.store.folder

    def done(project: Project) -> None:
        desk.show(project)
        remember(path)
        desk.board.say(f"Opened the project {path.name}")

    return desk.lanes.file("open", f"Open {path.name}", lambda run: file.load(path, models, run.say), done)


def close(desk: Desk) -> None:
    """Show no project; unsaved work is gone."""
    autosave_path(desk).unlink(missing_ok=True)
    desk.show(None)


def save(desk: Desk, path: Path | None, remember: Remember, then: Callable[[], None]) -> int:
    """Save the project where it was saved before, or at `path`.

    Raises:
        StudioError: it was never saved and no path is given.
    """
    project = desk.project
    if path is None and not project.path:
        raise StudioError("The project has no place yet", hint="Choose where to save it.")
    target = path or Path(project.path)
    content = replace(project, path=str(target), name=target.stem)

    def done(_result: None) -> None:
        desk.board.mark_saved(content)
        desk.board.change(project=replace(desk.project, path=content.path, name=content.name))
        autosave_path(desk).unlink(missing_ok=True)
        remember(target)
        desk.board.say(f"Saved {target.name}")
        then()

    def work(run: Run) -> None:
        file.save(content, target, run)

    return desk.lanes.file("save", f"Save {target.name}", work, done)


# ---------------------------------------------------------------- crashes


def autosave_path(desk: Desk) -> Path:
    """Where this session's unsaved work is kept."""
    return desk.home.session / home.AUTOSAVE


def autosave(desk: Desk, project: Project) -> None:
    """Keep unsaved work for after a crash."""
    target = autosave_path(desk)

    def failed(failure: Failure) -> None:
        desk.board.say(f"Autosave failed: {failure.why or failure.what}", "caution")

    desk.lanes.file_quietly(lambda: home.write_whole(target, file.autosaved(project)), failed)


def open_recovered(desk: Desk, found: home.Recoverable) -> int:
    """Open what a crash left; it is cleared away once this session has autosaved it."""
    folder = Path(found.folder)

    def done(project: Project) -> None:
        desk.show(project, saved=False)
        autosave(desk, project)
        desk.lanes.file_quietly(lambda: file.discard(folder))
        desk.board.say(f"Recovered {project.name}")

    return desk.lanes.file(
        "open", f"Recover {found.name}", lambda _run: file.recover(folder, desk.store), done
    )
