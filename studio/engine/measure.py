"""Everything that is measured of models: size, latency, memory, output error, accuracy.

What is known is told at once (`Measured`), so that the window fills while the rest is still running.
"""

from __future__ import annotations

import datetime as dt
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from studio.base.progress import Progress
from studio.base.units import file_size
from studio.engine.accuracy import Reference, accuracy_of
from studio.engine.dataset import Dataset, open_for
from studio.engine.footprint import footprint_in_child
from studio.engine.graph import digest, file_bytes, load
from studio.engine.graph.read import external_files
from studio.engine.latency import Protocol, measure_latency
from studio.records.measure import DataSpec, Measurement
from studio.records.task import Footprint, Measure, Measured, Measurements, News

Clock = Callable[[], dt.datetime]

_CHUNK = 1 << 20
# Without evaluation data, outputs are compared on so many random samples, and marked so.
_RANDOM_SAMPLES = 8
_BUDGET_S = 15.0  # of latency, a model


def _utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def measure(
    task: Measure, progress: Progress, emit: Callable[[News], None], clock: Clock = _utc
) -> Measurements:
    """Measure models against the first, and tell every figure as soon as it is known.

    Raises:
        StudioError: a model or the data cannot be used.
        Cancelled: at any tick.
    """
    paths = [Path(name) for name in task.models]
    board = _Board(emit, clock().isoformat(timespec="seconds"))
    progress.tick(0.0, "opening models and data")
    spec = task.evaluation or DataSpec(kind="random", limit=_RANDOM_SAMPLES)
    data = open_for(load(paths[0]), spec, dict(task.input_sizes))
    for path in paths:
        board.start(path)
    shares = _Shares(progress, latency=task.latency)
    if task.latency:
        protocol = Protocol(budget_s=_BUDGET_S * len(paths))
        timed = measure_latency(paths, data.first(), task.threads, shares.latency, protocol)
        for path, latency in zip(paths, timed, strict=True):
            board.add(path, latency=latency)
    _answers(task, paths, data, board, shares.answers)
    for path, part in _parts(paths, shares.memory):
        memory = Footprint(
            model=str(path), evaluation=task.evaluation, input_sizes=task.input_sizes, threads=task.threads
        )
        board.add(path, peak_bytes=footprint_in_child(memory, part))
    for path, part in _parts(paths, shares.packing):
        board.add(path, compressed_bytes=compressed_bytes(path, part))
    progress.tick(1.0)
    return Measurements(measurements=tuple(board.rows[path] for path in paths))


def _answers(task: Measure, paths: list[Path], data: Dataset, board: _Board, progress: Progress) -> None:
    """Output error and accuracy of every model; the reference has no error, only an accuracy."""
    truth = Path(task.reference) if task.reference else paths[0]
    reference = Reference(truth, data, task.threads)
    for path, part in _parts(paths, progress):
        if path == truth:
            board.add(path, accuracy=accuracy_of(path, data, part, task.threads))
            continue
        error, accuracy = reference.compare(path, part)
        board.add(path, error=error, accuracy=accuracy)


def compressed_bytes(path: Path, progress: Progress | None = None) -> int:
    """Bytes of a model and its external data when deflated (zlib, level 6): what zeros are worth.

    Raises:
        Cancelled: at a tick.
    """
    done = packed = 0
    total = max(1, file_bytes(path))
    for part in (path, *external_files(path)):
        packer = zlib.compressobj()
        with part.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                packed += len(packer.compress(chunk))
                done += len(chunk)
                if progress is not None:
                    progress.tick(done / total, f"compressing {file_size(done)}")
        packed += len(packer.flush())
    return packed


@dataclass
class _Board:
    """The measurements so far; every addition is told."""

    emit: Callable[[News], None]
    when: str
    rows: dict[Path, Measurement] = field(default_factory=dict)

    def start(self, path: Path) -> None:
        import onnxruntime as ort

        self.rows[path] = Measurement(
            digest=digest(path),
            file_bytes=file_bytes(path),
            runtime=f"onnxruntime {ort.__version__}, CPU",
            when=self.when,
        )
        self.emit(Measured(measurement=self.rows[path]))

    def add(self, path: Path, **figures: object) -> None:
        self.rows[path] = msgspec.structs.replace(self.rows[path], **figures)
        self.emit(Measured(measurement=self.rows[path]))


class _Shares:
    """How the progress of a measurement is divided."""

    def __init__(self, progress: Progress, *, latency: bool) -> None:
        end = 0.5 if latency else 0.05
        self.latency = progress.part(0.02, end)
        self.answers = progress.part(end, 0.85)
        self.memory = progress.part(0.85, 0.93)
        self.packing = progress.part(0.93, 1.0)


def _parts(paths: list[Path], progress: Progress) -> list[tuple[Path, Progress]]:
    count = len(paths)
    return [(path, progress.part(i / count, (i + 1) / count)) for i, path in enumerate(paths)]
