"""`featherweight compress`: steps in, one checked and measured file out, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.app import recipe as recipes
from studio.app.export import check_target, written_whole
from studio.app.home import training_folder, write_whole
from studio.app.jobs import WorkFailed
from studio.app.report import Report, to_html
from studio.base import units
from studio.base.errors import StudioError
from studio.cli.measure import measured, print_measurements
from studio.cli.options import data, input_sizes
from studio.cli.terminal import Stopwatch, Terminal
from studio.records.base import replace
from studio.records.measure import DataSpec, Measurement
from studio.records.model import ModelInfo
from studio.records.plan import Plan
from studio.records.steps import Recipe, Step
from studio.records.task import Applied, Apply, CheckExport, ExportChecked
from studio.records.verdict import cautions


@dataclass(frozen=True)
class Order:
    """What the command line asked for."""

    model: Path
    output: Path
    steps: tuple[str, ...] = ()
    recipe: Path | None = None
    preset: str = ""
    layers: tuple[str, ...] = ()
    calibration: str = ""
    evaluation: str = ""
    training: str = ""
    teacher: Path | None = None
    seed: int | None = None
    threads: int = 0
    sizes: tuple[str, ...] = ()
    save_recipe: Path | None = None
    report: Path | None = None
    measure: bool = True
    agreed: bool = False
    json: bool = False


@dataclass(frozen=True)
class Outcome:
    """Everything that was found on the way."""

    order: Order
    recipe: Recipe
    before: ModelInfo
    after: ModelInfo
    applied: Applied
    check: ExportChecked
    measurements: tuple[Measurement, ...]
    command: str
    seconds: float


def compress(order: Order) -> None:
    """Carry the order out, and print what came of it.

    Raises:
        StudioError: something given cannot be used; nothing was written.
        WorkFailed: the work failed or its result is not sound; nothing was written.
    """
    watch = Stopwatch()
    recipe = recipe_of(order)
    calibration, evaluation = data(order.calibration), data(order.evaluation)
    _check_outputs(order)
    with Terminal() as terminal:
        outcome = _carry_out(terminal, order, recipe, calibration, evaluation, watch)
        if order.save_recipe is not None:
            write_whole(order.save_recipe.absolute(), recipes.to_yaml(recipe).encode())
        if order.report is not None:
            write_whole(order.report.absolute(), to_html(_report(outcome)).encode())
        if order.json:
            terminal.json(_json(outcome))
        else:
            _print(terminal, outcome)


def _check_outputs(order: Order) -> None:
    read = [path for path in (order.model, order.teacher, order.recipe) if path is not None]
    written: set[Path] = set()
    for output, suffixes in _outputs(order):
        check_target(output.absolute(), read, suffixes)
        if output.resolve() in written:
            raise StudioError(
                f"Cannot write {output} twice", "the model, the recipe and the report are a file each"
            )
        written.add(output.resolve())


def _outputs(order: Order) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """What is to be written, and how its name may end where it exists already."""
    yield order.output, (".onnx",)
    if order.save_recipe is not None:
        yield order.save_recipe, (".yaml", ".yml")
    if order.report is not None:
        yield order.report, (".html", ".htm")


def recipe_of(order: Order) -> Recipe:
    """The recipe that the order names.

    Raises:
        StudioError: it names none, or both a file and steps, or one that cannot be used.
    """
    given = [bool(order.steps), order.recipe is not None, bool(order.preset)]
    if sum(given) != 1:
        raise StudioError(
            "More than one thing says what to do" if any(given) else "Nothing says what to do",
            hint="Give one of --preset NAME, --step NAME:key=value,… (repeated, in order) and --recipe FILE.",
        )
    if order.preset and order.layers:
        raise StudioError("A preset treats the whole model", hint="--layers goes with --step.")
    if order.recipe is not None:
        recipe = recipes.read(order.recipe)
    elif order.preset:
        recipe = recipes.of_preset(order.preset)
    else:
        recipe = Recipe(steps=tuple(recipes.parse_step(text) for text in order.steps))
    steps = tuple(_narrowed(step, order.layers) for step in recipe.steps)
    seed = recipe.seed if order.seed is None else order.seed
    return replace(recipe, steps=steps, seed=seed)


def _narrowed(step: Step, layers: tuple[str, ...]) -> Step:
    return replace(step, layers=layers) if layers and step.layers == ("*",) else step


def _carry_out(
    terminal: Terminal,
    order: Order,
    recipe: Recipe,
    calibration: DataSpec | None,
    evaluation: DataSpec | None,
    watch: Stopwatch,
) -> Outcome:
    sizes = input_sizes(order.sizes)
    before = terminal.inspect(order.model, sizes).info
    target = order.output.absolute()
    with written_whole(target) as partial:
        task = Apply(
            model=str(order.model),
            recipe=recipe,
            output=str(partial),
            input_sizes=sizes,
            calibration=calibration,
            evaluation=evaluation,
            threads=order.threads,
            checkpoints=False,
            agreed=order.agreed,
            training=data(order.training),
            teacher=str(order.teacher or ""),
            scratch=str(training_folder()),
        )
        applied = terminal.ask(task, Applied)
        check = terminal.ask(
            CheckExport(model=str(partial), version=str(partial), evaluation=evaluation, input_sizes=sizes),
            ExportChecked,
        )
        if not check.loads:
            raise WorkFailed("The result does not run, so it was not written", "; ".join(check.words))
        found: tuple[Measurement, ...] = ()
        if order.measure:
            found = measured(terminal, [order.model, partial], evaluation, order.threads, sizes, calibration)
        after = terminal.inspect(partial, sizes).info
    command = _repeating(order, recipe, calibration, evaluation)
    return Outcome(order, recipe, before, after, applied, check, found, command, watch.seconds)


def _repeating(
    order: Order, recipe: Recipe, calibration: DataSpec | None, evaluation: DataSpec | None
) -> str:
    """The command that repeats the order; it names no file that is not there."""
    file = order.recipe or order.save_recipe
    return recipes.command(
        recipe,
        str(order.model),
        str(order.output),
        calibration=calibration,
        evaluation=evaluation,
        recipe_file=str(file or ""),
        more=_more(order),
    )


def _more(order: Order) -> list[str]:
    """The options that a recipe does not hold, as they were given."""
    words = ["--training", order.training] if order.training else []
    words += ["--teacher", str(order.teacher)] if order.teacher else []
    words += [word for size in order.sizes for word in ("--input-size", size)]
    words += ["--threads", str(order.threads)] if order.threads else []
    return words + (["--yes"] if order.agreed else [])


# ---------------------------------------------------------------- saying it


def _refusals(plans: tuple[Plan, ...]) -> list[dict[str, str | bool]]:
    return [
        {
            "technique": recipes.name_of(type(plan.step.settings)),
            "layer": refusal.layer,
            "reason": refusal.reason,
            "hint": refusal.hint,
            "better": refusal.better,
        }
        for plan in plans
        for refusal in plan.refusals
    ]


def _json(outcome: Outcome) -> dict[str, Any]:
    plans = outcome.applied.plans
    after = {layer.name: layer for layer in outcome.after.layers}
    treated = {action.layer for plan in plans for action in plan.actions}
    rows = [
        {
            "name": layer.name,
            "treated": layer.name in treated,
            "before": layer,
            "after": after.get(layer.name),
        }
        for layer in outcome.before.layers
    ]
    names = (str(outcome.order.model), str(outcome.order.output))
    return {
        "model": _sizes(names[0], outcome.before),
        "output": _sizes(names[1], outcome.after),
        "predicted": plans[-1].after if plans else None,
        "layers": rows,
        "plans": plans,
        "refusals": _refusals(plans),
        "notes": outcome.applied.notes,
        "cautions": _cautions(outcome),
        "check": outcome.check,
        "measurements": [
            {"model": name, "measurement": m} for name, m in zip(names, outcome.measurements, strict=False)
        ],
        "recipe": outcome.recipe,
        "command": outcome.command,
        "seconds": outcome.seconds,
    }


def _sizes(path: str, info: ModelInfo) -> dict[str, Any]:
    return {
        "path": path,
        "digest": info.digest,
        "file_bytes": info.file_bytes,
        "parameters": info.cost.parameters,
        "weight_bytes": info.cost.bytes,
        "macs": info.cost.macs,
        "activation_bytes": info.cost.activation_bytes,
        "layers": len(info.layers),
        "opset": info.opset,
        "input_sizes": dict(info.input_sizes),
    }


def _print(terminal: Terminal, outcome: Outcome) -> None:
    for plan in outcome.applied.plans:
        words = f"{plan.step.settings.title}: {units.counted(len(plan.actions), 'layer')} treated"
        better = sum(refusal.better for refusal in plan.refusals)
        refused = len(plan.refusals) - better
        words += f", {better} better left alone" if better else ""
        words += f", {refused} refused" if refused else ""
        terminal.line(words)
        for refusal in plan.refusals:
            hint = f" {refusal.hint}" if refusal.hint else ""
            terminal.line(f"  {refusal.layer}: {refusal.reason.rstrip('.')}.{hint}")
    for note in outcome.applied.notes:
        terminal.line(f"note: {note}")
    terminal.line()
    if outcome.measurements:
        names = (outcome.order.model.name, outcome.order.output.name)
        print_measurements(terminal, names, outcome.measurements)
        for caution in _cautions(outcome):
            terminal.line(f"caution: {caution}")
    else:
        before, after = outcome.before.file_bytes, outcome.after.file_bytes
        change = units.change(before, after)
        terminal.line(f"{units.file_size(before)} → {units.file_size(after)} ({change})")
    checked = "onnx's checker finds it valid" if outcome.check.valid else "onnx's checker finds fault with it"
    terminal.line(f"{checked}; onnxruntime loads and runs it.")
    terminal.line(f"Written to {outcome.order.output} in {outcome.seconds:.1f} s. Repeat it with:")
    terminal.line(f"  {outcome.command}")


def _cautions(outcome: Outcome) -> tuple[str, ...]:
    """What the measurement says against the result."""
    found = outcome.measurements[1] if len(outcome.measurements) > 1 else None
    return cautions(found, [plan.step.settings for plan in outcome.applied.plans])


def _report(outcome: Outcome) -> Report:
    return Report(
        title=outcome.order.output.name,
        before=outcome.before,
        after=outcome.after,
        plans=outcome.applied.plans,
        notes=(*outcome.applied.notes, *outcome.check.words, *_cautions(outcome)),
        baseline=outcome.measurements[0] if outcome.measurements else None,
        measurement=outcome.measurements[1] if len(outcome.measurements) > 1 else None,
        recipe=recipes.to_yaml(outcome.recipe),
        command=outcome.command,
    )
