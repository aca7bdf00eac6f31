"""`featherweight self-test`: the bundled sample through every technique; what a packaged build proves itself by."""

from __future__ import annotations

import tempfile
from pathlib import Path

from studio.app.recipe import name_of
from studio.base import units
from studio.base.errors import StudioError
from studio.base.resources import resource
from studio.cli.terminal import Stopwatch, Terminal
from studio.records.measure import DataSpec
from studio.records.steps import SETTINGS, Recipe, Settings, Step
from studio.records.task import Applied, Apply, CheckExport, ExportChecked, Previewed, PreviewSteps


def self_test() -> bool:
    """Print a line for each part; True when all of them work."""
    model = resource("sample") / "fashion_cnn.onnx"
    with Terminal() as terminal:
        try:
            info = terminal.inspect(model).info
        except StudioError as error:
            terminal.line(f"FAILED  inspect: {error.sentence}")
            return False
        terminal.line(f"ok      inspect: {len(info.layers)} layers, {units.file_size(info.file_bytes)}")
        results = [_technique(terminal, model, info.file_bytes, kind) for kind in SETTINGS]
        good = all(results)
        terminal.line("All parts work." if good else "Something does not work; see above.")
    return good


def _technique(terminal: Terminal, model: Path, before: int, kind: type[Settings]) -> bool:
    watch = Stopwatch()
    # Training is told in steps, not minutes; labels are in the evaluation data.
    settings = kind(steps=5) if "steps" in kind.__struct_fields__ else kind()
    step = Step(settings=settings)  # type: ignore[arg-type]  # every member of the union is one
    data = "evaluation.npz" if kind.needs == "labels" else "calibration.npz"
    calibration = DataSpec(path=str(resource("sample") / data), limit=32)
    try:
        preview = PreviewSteps(model=str(model), steps=(step,), calibration=calibration)
        (plan,) = terminal.ask(preview, Previewed).plans
        if plan.actions:
            sound, words = _carry_out(terminal, model, before, step, calibration)
        else:
            reason = plan.refusals[0].reason if plan.refusals else "it has no layers"
            sound, words = bool(plan.refusals), f"refuses this model ({reason})"
    except StudioError as error:
        sound, words = False, error.sentence
    terminal.line(f"{'ok    ' if sound else 'FAILED'}  {name_of(kind)}: {words}, {watch.seconds:.1f} s")
    return sound


def _carry_out(
    terminal: Terminal, model: Path, before: int, step: Step, calibration: DataSpec
) -> tuple[bool, str]:
    """Whether the result is sound, and how large it is."""
    with tempfile.TemporaryDirectory(prefix="featherweight-") as folder:
        output = Path(folder) / "model.onnx"
        task = Apply(
            model=str(model),
            recipe=Recipe(steps=(step,)),
            output=str(output),
            calibration=calibration,
            checkpoints=False,
            agreed=True,
        )
        applied = terminal.ask(task, Applied)
        check = terminal.ask(
            CheckExport(model=str(output), version=str(output), evaluation=calibration), ExportChecked
        )
    size = f"{units.file_size(applied.file_bytes)} ({units.change(before, applied.file_bytes)})"
    return check.valid and check.loads, size
