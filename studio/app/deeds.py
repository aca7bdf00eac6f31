"""The deeds of a session: compress, measure, profile, scan, export.

Each captures all that its work needs when it is queued (the work runs on the lane's thread, in
worker processes) and applies the result on the owner's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from studio.app.board import Board
from studio.app.desk import Desk
from studio.app.export import Exported, write_model
from studio.app.home import training_folder
from studio.app.jobs import Run
from studio.app.project import Project, ScanResult, Version
from studio.app.store import MODEL, Store
from studio.app.view import Live
from studio.base import units
from studio.base.errors import StudioError
from studio.records.base import replace
from studio.records.measure import Measurement
from studio.records.steps import AnySettings, Recipe
from studio.records.task import (
    Applied,
    Apply,
    Measure,
    Measured,
    Measurements,
    News,
    Profile,
    Profiled,
    Scan,
    Scanned,
    ScannedLayer,
    TimedSoFar,
    Trained,
    Treated,
)
from studio.records.verdict import cautions

# ---------------------------------------------------------------- compress


def compress(desk: Desk, *, agreed: bool) -> int:
    """Carry out what is staged on the head; a new version, measured afterwards.

    Raises:
        StudioError: nothing is staged.
    """
    project, head, board = desk.project, desk.head, desk.board
    steps = project.steps()
    if not steps:
        raise StudioError("Nothing is staged", hint="Choose layers and a treatment first.")
    recipe = Recipe(steps=steps, seed=project.seed)
    title = f"Compress {units.counted(board.view.to_treat, 'layer')}"
    known = project.find(head.id, recipe, project.calibration)
    if known is not None and Path(known.file).is_file():
        return _go_to_known(desk, known, title)
    job = board.add_job("compress", title, head.id)
    board.change(live=_live(job, project, head))

    def done(made: Version) -> None:
        board.end_job(job, "done", f"{made.name} is ready")
        _add(desk, made, project)

    scratch = training_folder(desk.home.folder)
    work = _apply(project, head, recipe, desk.store, scratch, agreed=agreed)
    return desk.lanes.do(job, work, done, lambda items: _extend_live(board, job, items))


def _apply(
    project: Project, parent: Version, recipe: Recipe, store: Store, scratch: Path, *, agreed: bool
) -> Callable[[Run], Version]:
    """Work: apply a recipe to a version; the result has no id yet.

    Students follow the original, not the version that they are made from.
    """
    teacher = project.original.file if project.original and project.original != parent else ""

    def work(run: Run) -> Version:
        output = run.folder / "written" / MODEL
        output.parent.mkdir()
        task = Apply(
            model=parent.file,
            recipe=recipe,
            output=str(output),
            input_sizes=project.input_sizes,
            calibration=project.calibration,
            evaluation=project.evaluation,
            threads=project.threads,
            agreed=agreed,
            teacher=teacher,
            scratch=str(scratch),
        )
        applied = run.task(task, Applied)
        run.check()
        return Version(
            id=-1,
            name=" + ".join(dict.fromkeys(step.settings.chip for step in recipe.steps)),
            digest=applied.digest,
            parent=parent.id,
            file=str(store.adopt(output, applied.digest)),
            file_bytes=applied.file_bytes,
            recipe=recipe,
            calibration=project.calibration,
            plans=applied.plans,
            notes=applied.notes,
        )

    return work


def _live(job: int, project: Project, head: Version) -> Live:
    latency = head.measurement.latency if head.measurement else None
    return Live(
        job=job,
        total=len(project.staged),
        start_bytes=head.info.cost.bytes if head.info else 0,
        start_ms=latency.median_ms if latency else None,
    )


def _extend_live(board: Board, job: int, items: Sequence[News]) -> None:
    live = board.view.live
    if live is None or live.job != job:
        return
    for item in items:
        match item:
            case Treated():
                live = replace(
                    live,
                    total=item.total,
                    sizes=(*live.sizes, (item.done, item.bytes)),
                    words=(*live.words, (item.layer, item.words)),
                )
            case TimedSoFar():
                live = replace(live, times=(*live.times, (item.done, *_milliseconds(item, live.start_ms))))
            case Trained():
                point_of_step = (item.step, item.loss, item.accuracy)
                live = replace(live, training=(*live.training, point_of_step), training_steps=item.total)
            case _:
                pass
    if live is not board.view.live:
        board.change(live=live)


def _milliseconds(timed: TimedSoFar, start_ms: float | None) -> tuple[float, float, float]:
    """Median, low and high: by the ratio to the start, whose time is well known, or as they were timed."""
    if start_ms is None or timed.ratios is None:
        return timed.median_ms, timed.low_ms, timed.high_ms
    ratio, low, high = timed.ratios
    return start_ms / ratio, start_ms / high, start_ms / low


def _go_to_known(desk: Desk, known: Version, title: str) -> int:
    """The same recipe was carried out before: go to what it made."""
    job = desk.board.add_job("compress", title, known.id)
    project = desk.project
    if known in project.removed:
        decisions = project.decisions
        kept = tuple(i for i in decisions.removed if i != known.id)
        project = project.decide(replace(decisions, removed=kept))
    desk.decide(f"Go to {known.name}", project.without_treatments().with_head(known.id))
    desk.board.end_job(job, "done", f"{known.name} has it already")
    return job


def _add(desk: Desk, made: Version, planned: Project) -> None:
    """Add a version; the head moves to it unless something else was decided meanwhile."""
    project, board = desk.project, desk.board
    version = replace(made, id=project.next_id(), name=_fresh_name(project, made.name))
    board.change(project=project.with_version(version))
    if board.view.live is not None:
        board.change(live=replace(board.view.live, made=version.id))
    if (project.head, project.treatments) == (planned.head, planned.treatments):
        moved = desk.project.without_treatments().with_head(version.id)
        desk.decide(f"Compress into {version.name}", moved)
    for note in version.notes:
        board.say(f"{version.name}: {note}")
    measure(desk, (version.id,))


def _fresh_name(project: Project, name: str) -> str:
    taken = {v.name for v in (*project.versions, *project.removed)}
    fresh, number = name, 2
    while fresh in taken:
        fresh, number = f"{name} ({number})", number + 1
    return fresh


# ---------------------------------------------------------------- measure, profile


def measure(desk: Desk, version_ids: Iterable[int], *, background: bool = False) -> int:
    """Measure versions, interleaved with the original."""
    project, board = desk.project, desk.board
    original = project.original
    chosen = [project.version(i) for i in version_ids]
    versions = [v for v in (original,) if v is not None] + [v for v in chosen if v != original]
    known = original.measurement.latency if original is not None and original.measurement else None
    names = ", ".join(v.name for v in chosen) or versions[0].name
    job = board.add_job("measure", f"Measure {names}", versions[-1].id)
    task = Measure(
        models=tuple(v.file for v in versions),
        evaluation=project.evaluation,
        calibration=project.calibration,
        input_sizes=project.input_sizes,
        threads=project.threads,
    )

    def news(items: Sequence[News]) -> None:
        told = {i.measurement.digest: i.measurement for i in items if isinstance(i, Measured)}
        for version in versions:
            if version.digest in told:
                desk.learn(version.id, measurement=told[version.digest])

    def done(found: tuple[Measurement, ...]) -> None:
        for version, measurement in zip(versions, found, strict=True):
            desk.learn(version.id, measurement=measurement)
        board.change(project=desk.project.in_one_time(known))
        for version, measurement in zip(versions, found, strict=True):
            settings = [step.settings for step in project.recipe_of(version).steps]
            for words in cautions(measurement, settings):
                board.say(f"{version.name}: {words}", "caution")
        board.end_job(job, "done", "Measured")

    def work(run: Run) -> tuple[Measurement, ...]:
        return run.task(task, Measurements).measurements

    return desk.lanes.do(job, work, done, news, quiet=True, background=background)


def profile(desk: Desk, version_id: int, *, background: bool = False) -> int:
    """Time every layer of a version."""
    project, board = desk.project, desk.board
    version = project.version(version_id)
    job = board.add_job("profile", f"Time every layer of {version.name}", version_id)
    task = Profile(
        model=version.file,
        input_sizes=project.input_sizes,
        evaluation=project.evaluation,
        threads=project.threads,
    )

    def done(found: Profiled) -> None:
        desk.learn(version_id, profile=found)
        board.end_job(job, "done", f"{units.milliseconds(found.total_ms)} a run")

    return desk.lanes.do(job, lambda run: run.task(task, Profiled), done, quiet=True, background=background)


# ---------------------------------------------------------------- scan


def scan(desk: Desk, settings: AnySettings, layers: Sequence[str]) -> int:
    """Treat every layer of the head alone; what is known is kept, also of a cancelled scan."""
    project, head, board = desk.project, desk.head, desk.board
    job = board.add_job("scan", f"Scan {settings.chip}", head.id)
    task = Scan(
        model=head.file,
        settings=settings,
        layers=tuple(layers),
        calibration=project.calibration,
        input_sizes=project.input_sizes,
        seed=project.seed,
        threads=project.threads,
    )
    found = ScanResult(settings=settings, digest=head.digest)
    board.change(scan_live=found)

    def news(items: Sequence[News]) -> None:
        nonlocal found
        new = tuple(item.sensitivity for item in items if isinstance(item, ScannedLayer))
        if new:
            found = replace(found, layers=(*found.layers, *new))
            board.change(scan_live=found)

    def keep() -> None:
        others = [s for s in desk.project.version(head.id).scans if s.settings != settings]
        if found.layers:
            desk.learn(head.id, scans=(*others, found))
        board.change(scan_live=None)

    def done(scanned: Scanned) -> None:
        nonlocal found
        found = replace(found, layers=scanned.layers, samples=scanned.samples, complete=True)
        keep()
        board.end_job(job, "done", f"{units.counted(len(scanned.layers), 'layer')} scanned")

    return desk.lanes.do(job, lambda run: run.task(task, Scanned), done, news, ended=keep)


# ---------------------------------------------------------------- export


def export(desk: Desk, version_id: int, target: Path, then: Callable[[Exported], Any]) -> int:
    """Write a version's model and check what was written."""
    project, board = desk.project, desk.board
    version = project.version(version_id)
    inputs = [Path(v.file) for v in project.versions]
    job = board.add_job("export", f"Export {target.name}", version_id)

    def done(exported: Exported) -> None:
        board.end_job(job, "done", exported.words[0])
        board.say(f"Exported {version.name} to {target}")
        then(exported)

    def work(run: Run) -> Exported:
        return write_model(
            run,
            Path(version.file),
            version.file_bytes,
            target,
            inputs,
            evaluation=project.evaluation,
            input_sizes=project.input_sizes,
        )

    return desk.lanes.do(job, work, done)
