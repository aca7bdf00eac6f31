"""Everything that is measured of models: size, latency, memory, output error, accuracy.

What is known is told at once (`Measured`), so that the window fills while the rest is still running.
"""

from __future__ import annotations

import datetime as dt
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.base.units import file_size, shape
from studio.engine.accuracy import Reference, accuracy_of
from studio.engine.dataset import Dataset, open_for
from studio.engine.footprint import footprint_in_child
from studio.engine.graph import digest, file_bytes, load, real_inputs
from studio.engine.graph.read import external_files
from studio.engine.latency import Protocol, measure_latency
from studio.engine.portability import portability
from studio.records.measure import DataSpec, Measurement
from studio.records.task import Footprint, Measure, Measured, Measurements, News

Clock = Callable[[], dt.datetime]

_CHUNK = 1 << 20
# Without any data, outputs are compared on so many random samples, and marked so.
_RANDOM_SAMPLES = 8
_BUDGET_S, _LIMIT_S = 4.0, 20.0  # of latency, a model


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
    progress.tick(0.0, "opening models and data")
    spec = task.evaluation or task.calibration or DataSpec(kind="random", limit=_RANDOM_SAMPLES)
    first = load(paths[0])
    for path in paths[1:]:
        _check_inputs(path, paths[0].name, {value.name for value in real_inputs(first)})
    data = open_for(first, spec, dict(task.input_sizes))
    board = _Board(paths, clock().isoformat(timespec="seconds"), emit)
    shares = _Shares(progress, latency=task.latency)
    if task.latency:
        protocol = Protocol(budget_s=_BUDGET_S * len(paths), limit_s=_LIMIT_S * len(paths))
        timed = measure_latency(paths, data.first(), task.threads, shares.latency, protocol)
        for index, latency in enumerate(timed):
            board.add(index, latency=latency)
    _answers(task, paths, data, board, shares.answers)
    called = _called(task)
    for index, part in _parts(paths, shares.elsewhere):
        if index or not paths[1:]:  # of the original nothing was changed that could make it answer otherwise
            board.add(index, portability=portability(paths[index], data, part, task.threads, called))
    for index, part in _parts(paths, shares.memory):
        memory = Footprint(
            model=str(paths[index]),
            evaluation=task.evaluation or task.calibration,
            input_sizes=task.input_sizes,
            threads=task.threads,
        )
        board.add(index, peak_bytes=footprint_in_child(memory, part))
    for index, part in _parts(paths, shares.packing):
        board.add(index, compressed_bytes=compressed_bytes(paths[index], part))
    progress.tick(1.0)
    return Measurements(measurements=tuple(board.rows))


def _check_inputs(path: Path, other: str, known: set[str | None]) -> None:
    """Refuse a model that wants what the first one does not take."""
    wanted = next((v.name for v in real_inputs(load(path)) if v.name not in known), None)
    if wanted is not None:
        raise StudioError(
            f"Cannot measure {path.name} beside {other}",
            f"it has an input '{wanted}', which {other} has not",
            "Models are compared on the same samples: measure others apart.",
        )


def _answers(task: Measure, paths: list[Path], data: Dataset, board: _Board, progress: Progress) -> None:
    """Output error and accuracy of every model; the reference has no error, only an accuracy."""
    unscored = ""
    reference = Reference(
        Path(task.reference) if task.reference else paths[0], data, task.threads, called=_called(task)
    )
    for index, part in _parts(paths, progress):
        accuracy = None
        if index == 0 and task.reference in {"", task.models[0]}:
            accuracy = accuracy_of(paths[0], data, part, task.threads)
            board.add(index, accuracy=accuracy)
        elif reference.comparable:
            error, accuracy = reference.compare(paths[index], part)
            board.add(index, error=error, accuracy=accuracy)
        if accuracy is None and data.source.labelled:
            unscored = unscored or _unscored(data)
            board.add(index, unscored=unscored)


def _unscored(data: Dataset) -> str:
    """Why labels give no accuracy."""
    labels = data.labels()
    if labels is None or not labels.size:
        return ""
    if labels.dtype.kind not in "iub":
        return "the labels are no whole numbers"
    low, high = int(labels.min()), int(labels.max())
    if high < 0:
        return "no sample has a label"
    return f"the labels, {low} to {high} in the shape {shape(labels.shape)}, number no classes of the first output"


def _called(task: Measure) -> str:
    """What the data are called beside a figure."""
    return "evaluation data" if task.evaluation is not None else "calibration data"


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


class _Board:
    """The measurements so far, in the order asked; every addition is told."""

    def __init__(self, paths: list[Path], when: str, emit: Callable[[News], None]) -> None:
        import onnxruntime as ort

        self._emit = emit
        runtime = f"onnxruntime {ort.__version__}, CPU"
        self.rows = [
            Measurement(digest=digest(path), file_bytes=file_bytes(path), runtime=runtime, when=when)
            for path in paths
        ]
        for row in self.rows:
            emit(Measured(measurement=row))

    def add(self, index: int, **figures: object) -> None:
        """Put figures into the measurement of one model."""
        self.rows[index] = msgspec.structs.replace(self.rows[index], **figures)
        self._emit(Measured(measurement=self.rows[index]))


class _Shares:
    """How the progress of a measurement is divided."""

    def __init__(self, progress: Progress, *, latency: bool) -> None:
        end = 0.5 if latency else 0.05
        self.latency = progress.part(0.02, end)
        self.answers = progress.part(end, 0.8)
        self.elsewhere = progress.part(0.8, 0.85)
        self.memory = progress.part(0.85, 0.93)
        self.packing = progress.part(0.93, 1.0)


def _parts(paths: list[Path], progress: Progress) -> list[tuple[int, Progress]]:
    count = len(paths)
    return [(index, progress.part(index / count, (index + 1) / count)) for index in range(count)]
