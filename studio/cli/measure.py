"""`featherweight measure`: models against the first, interleaved; and tables of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studio.base import units
from studio.cli.options import data, input_sizes
from studio.cli.terminal import Terminal
from studio.records.measure import DataSpec, Latency, Measurement
from studio.records.task import InputSizes, Measure, Measurements
from studio.records.verdict import alike, cautions


def measure(
    models: Sequence[Path], evaluation: str, threads: int, sizes: Sequence[str], *, as_json: bool
) -> None:
    """Measure models and print what was found."""
    with Terminal() as terminal:
        asked, spec = input_sizes(sizes), data(evaluation)
        if asked:
            terminal.inspect(models[0], asked)  # are there such dimensions?
        found = measured(terminal, models, spec, threads, asked)
        if as_json:
            rows = [{"model": str(path), "measurement": m} for path, m in zip(models, found, strict=True)]
            terminal.json({"baseline": str(models[0]), "measurements": rows})
        else:
            names = [path.name for path in models]
            print_measurements(terminal, names, found)
            print_cautions(terminal, names, found)


def measured(
    terminal: Terminal,
    models: Sequence[Path],
    evaluation: DataSpec | None,
    threads: int,
    sizes: InputSizes,
    calibration: DataSpec | None = None,
) -> tuple[Measurement, ...]:
    """Measure models against the first."""
    task = Measure(
        models=tuple(map(str, models)),
        evaluation=evaluation,
        calibration=calibration,
        threads=threads,
        input_sizes=sizes,
    )
    return terminal.ask(task, Measurements, fresh=True).measurements


def print_measurements(terminal: Terminal, names: Sequence[str], found: Sequence[Measurement]) -> None:
    """A table, a column a model, and the conditions below it."""
    columns = [_figures(found[0], m) for m in found]
    rows = [(head, *(column[head] for column in columns)) for head in columns[0]]
    shown = [row for row in rows if any(row[1:])]
    terminal.table(("measured", *names), shown, left=1 + len(names), wrap=True)
    terminal.line(conditions(found))
    if words := next((m.unscored for m in found if m.unscored), ""):
        terminal.line(f"no accuracy: {words}")


def print_cautions(terminal: Terminal, names: Sequence[str], found: Sequence[Measurement]) -> None:
    """What speaks against each model: it is slower than the first, or answers otherwise elsewhere."""
    for name, measurement in zip(names, found, strict=True):
        for words in cautions(measurement):
            terminal.line(f"caution: {name}: {words}")


def _figures(base: Measurement, m: Measurement) -> dict[str, str]:
    other = m is not base
    change = f" ({units.change(base.file_bytes, m.file_bytes)})" if other else ""
    accuracy, elsewhere = m.accuracy, m.portability
    return {
        "size": units.file_size(m.file_bytes) + change,
        "deflated": units.file_size(m.compressed_bytes) if m.compressed_bytes else "",
        "latency": latency(m.latency),
        "speed-up": speed(m.latency) if other else "",
        "memory": units.file_size(m.peak_bytes) if m.peak_bytes else "",
        "accuracy": f"{units.percent(accuracy.value, 2)} {accuracy.metric} (n={accuracy.samples})"
        if accuracy
        else "",
        "outputs": alike(m.error) if other else "",
        "without optimization": alike(elsewhere.optimization) if elsewhere else "",
        "without VNNI": alike(elsewhere.saturation) if elsewhere else "",
    }


def latency(latency: Latency | None) -> str:
    """Median and its interval."""
    if latency is None:
        return ""
    low, high = units.milliseconds(latency.low_ms), units.milliseconds(latency.high_ms)
    return f"{units.milliseconds(latency.median_ms)} ({low} – {high})"


def speed(latency: Latency | None) -> str:
    """How many times faster than the baseline, with its interval."""
    if latency is None or latency.ratio is None:
        return ""
    interval = ""
    if latency.ratio_low is not None and latency.ratio_high is not None:
        interval = f" ({latency.ratio_low:.2f} – {latency.ratio_high:.2f})"
    return f"{latency.ratio:.2f}×{interval}"


def conditions(found: Sequence[Measurement]) -> str:
    """Under which conditions the figures hold."""
    first = found[0]
    parts = [first.runtime or "onnxruntime"]
    timed = [m.latency for m in found if m.latency is not None]
    if timed:
        threads = f"{timed[0].threads} threads" if timed[0].threads != 1 else "1 thread"
        parts += [
            threads,
            f"{min(t.runs for t in timed)} interleaved runs each",
            f"input {timed[0].input_shapes}",
        ]
        if any(t.busy for t in timed):
            parts.append("the machine was busy: take the times with care")
    return "; ".join(part for part in parts if part)
