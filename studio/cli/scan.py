"""`featherweight scan`: which layers are sensitive to a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studio.app.jobs import WorkFailed
from studio.app.recipe import parse_step, step_text
from studio.base import units
from studio.base.errors import Cancelled
from studio.cli.options import data, input_sizes
from studio.cli.terminal import Stopwatch, Terminal
from studio.records.measure import Sensitivity
from studio.records.task import News, Scan, Scanned, ScannedLayer

_BAR = 24  # characters of the longest bar


def scan(
    model: Path,
    step: str,
    layers: Sequence[str],
    calibration: str,
    seed: int,
    threads: int,
    sizes: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """Scan a model; what is known when it is interrupted is printed."""
    watch = Stopwatch()
    parsed = parse_step(step)
    task = Scan(
        model=str(model),
        settings=parsed.settings,
        layers=tuple(layers) or parsed.layers,
        calibration=data(calibration),
        input_sizes=input_sizes(sizes),
        seed=seed,
        threads=threads,
    )
    partial: list[Sensitivity] = []

    def hear(news: News) -> None:
        if isinstance(news, ScannedLayer):
            partial.append(news.sensitivity)

    with Terminal() as terminal:
        if task.input_sizes:
            terminal.inspect(model, task.input_sizes)  # are there such dimensions?
        try:
            scanned = terminal.ask(task, Scanned, hear)
        except (Cancelled, WorkFailed):
            if partial:
                found = Scanned(layers=tuple(partial), samples=0, seconds=watch.seconds)
                _show(terminal, task, found, complete=False, as_json=as_json)
            raise
        _show(terminal, task, scanned, complete=True, as_json=as_json)


def _show(terminal: Terminal, task: Scan, scanned: Scanned, *, complete: bool, as_json: bool) -> None:
    ranked = sorted(scanned.layers, key=lambda s: -1.0 if s.score is None else s.score, reverse=True)
    if as_json:
        rows = [{"layer": s.layer, "score": s.score, "result": s} for s in ranked]
        terminal.json(
            {
                "model": task.model,
                "step": step_text(task.settings),
                "complete": complete,
                "samples": scanned.samples,
                "seconds": scanned.seconds,
                "layers": rows,
            }
        )
        return
    top = max((s.score or 0.0 for s in ranked), default=0.0)
    terminal.table(
        ("most sensitive first", "", "score", "SQNR", "KL"), [_row(s, top) for s in ranked], left=2
    )
    data = next((f" ({s.error.data})" for s in ranked if s.error is not None and s.error.data), "")
    words = f"{step_text(task.settings)}, {units.counted(scanned.samples, 'sample')}{data}, {scanned.seconds:.1f} s"
    terminal.line(words if complete else f"{words}, incomplete")


def _row(s: Sensitivity, top: float) -> tuple[str, ...]:
    if s.error is None or s.score is None:
        return (s.layer, f"refused: {s.refused}", "", "", "")
    bar = "█" * round(_BAR * s.score / top) if top > 0 else ""
    kl = f"{s.error.kl:.2e}" if s.error.kl is not None else ""
    return (s.layer, bar, f"{s.score:.2e}", f"{s.error.sqnr_db:.1f} dB", kl)
