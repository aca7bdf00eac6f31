"""The work of the larger deeds, as functions that run on the do lane's thread.

Each captures all that it needs when it is made; its result is applied on the owner's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from studio.app.export import Exported, write_model
from studio.app.jobs import Run
from studio.app.project import Project, Version
from studio.app.store import MODEL, Store
from studio.records.measure import Measurement
from studio.records.steps import Recipe
from studio.records.task import Applied, Apply, Measure, Measurements

__all__ = ["Exported", "compress", "export", "measure"]


def compress(
    project: Project, parent: Version, recipe: Recipe, store: Store, *, agreed: bool
) -> Callable[[Run], Version]:
    """Apply a recipe to a version; the result is a new one (its id is given by the session)."""

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
        )
        applied = run.task(task, Applied)
        run.check()
        kept = store.adopt(output, applied.digest)
        return Version(
            id=-1,
            name=_name_of(recipe),
            digest=applied.digest,
            parent=parent.id,
            file=str(kept),
            file_bytes=applied.file_bytes,
            recipe=recipe,
            calibration=project.calibration,
            plans=applied.plans,
            notes=applied.notes,
        )

    return work


def _name_of(recipe: Recipe) -> str:
    chips = dict.fromkeys(step.settings.chip for step in recipe.steps)
    return " + ".join(chips)


def measure(task: Measure) -> Callable[[Run], tuple[Measurement, ...]]:
    """Measure models in a process of its own."""
    return lambda run: run.task(task, Measurements).measurements


def export(project: Project, version: Version, target: Path) -> Callable[[Run], Exported]:
    """Write a version's model to `target` and check what was written.

    Raises:
        StudioError: the target is a file that the project reads from.
    """
    inputs = [Path(v.file) for v in project.versions]
    return lambda run: write_model(
        run,
        Path(version.file),
        version.file_bytes,
        target,
        inputs,
        evaluation=project.evaluation,
        input_sizes=project.input_sizes,
    )
