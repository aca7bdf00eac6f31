"""Is a written file good: does onnx's checker accept it, does onnxruntime load it, does it answer as the version does?"""

from __future__ import annotations

from pathlib import Path

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.base.units import counted
from studio.engine import graph
from studio.engine.accuracy import EQUAL_DB, compare
from studio.engine.dataset import open_for
from studio.engine.execute import session
from studio.engine.layers import list_layers
from studio.engine.quantization import kernels
from studio.records import task
from studio.records.measure import DataSpec, OutputError

# Random inputs that stand in where there are no evaluation data.
_RANDOM_SAMPLES = 4
# Enough to see whether two files are the same model.
_SAMPLES = 64


def check_export(asked: task.CheckExport, progress: Progress) -> task.ExportChecked:
    """Answer a `CheckExport`, the findings in words.

    Raises:
        StudioError: the version's own file cannot be read, or the data cannot be used.
        Cancelled: at any tick.
    """
    path, version = Path(asked.model), Path(asked.version)
    progress.tick(0.0, "Checking the file")
    objection = _objection(path)
    words = [f"onnx's checker objects: {objection}" if objection else "onnx's checker finds it valid."]
    progress.tick(0.2, "Loading it in onnxruntime")
    try:
        session(path)
    except StudioError as problem:
        return task.ExportChecked(
            valid=not objection, loads=False, words=(*words, f"It does not load: {problem.why}")
        )
    words.append("onnxruntime loads it.")
    words.extend(kernels.in_words(graph.load(path)))
    error = _compare(asked, version, path, progress.part(0.4, 1.0))
    words.append(_in_words(error, asked.evaluation))
    return task.ExportChecked(valid=not objection, loads=True, error=error, words=tuple(words))


def _objection(path: Path) -> str:
    """The first line of what onnx's checker has to say; '' when it is content."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        return str(error).strip().splitlines()[0]
    return ""


def _compare(asked: task.CheckExport, version: Path, path: Path, progress: Progress) -> OutputError:
    listing = list_layers(graph.load(version), dict(asked.input_sizes))
    spec = asked.evaluation or DataSpec(kind="random", limit=_RANDOM_SAMPLES)
    data = open_for(listing.model, spec, listing.input_sizes).take(_SAMPLES)
    return compare(version, path, data, progress)[0]


def _in_words(error: OutputError, evaluation: DataSpec | None) -> str:
    where = (
        counted(error.samples, "sample") if evaluation is not None else counted(error.samples, "random input")
    )
    if error.max_abs == 0:
        return f"Its outputs equal the version's on {where}, bit for bit."
    if error.sqnr_db >= EQUAL_DB:
        return f"Its outputs equal the version's on {where}."
    return f"Its outputs differ from the version's on {where}: {error.sqnr_db:.1f} dB, at most {error.max_abs:.3g}."
