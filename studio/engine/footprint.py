"""How much memory a process needs to load and run a model: measured in a fresh process.

    peak_bytes = peak resident memory while loading and running − resident memory before loading

The process has imported the runtime and holds the samples before; what it had needed until then does not count.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil

from studio.base.errors import StudioError
from studio.base.process import Child
from studio.base.progress import Progress
from studio.engine.dataset import open_for
from studio.engine.execute import run, session
from studio.engine.graph import load
from studio.records.base import decode, encode
from studio.records.measure import DataSpec
from studio.records.task import Ask, Failed, Footprint, Footprinted, FromWorker, Reply

_RUNS = 3


def footprint(task: Footprint, progress: Progress) -> Footprinted:
    """Load and run a model in this process, which must be fresh, and say what that took.

    Raises:
        StudioError: the model or the data cannot be used.
        Cancelled: at a tick.
    """
    import onnxruntime  # noqa: F401 - its own memory is not the model's

    spec = task.evaluation or DataSpec(kind="random", limit=1)
    feed = open_for(load(Path(task.model)), spec, dict(task.input_sizes)).first()
    before = psutil.Process().memory_info().rss
    _forget_peak()
    progress.tick(0.1, "loading the model")
    sess = session(Path(task.model), threads=task.threads)
    for done in range(_RUNS):
        progress.tick(0.5 + 0.5 * done / _RUNS, "running the model")
        run(sess, feed)
    return Footprinted(peak_bytes=max(0, _peak() - before))


def footprint_in_child(task: Footprint, progress: Progress) -> int:
    """Ask a fresh worker process for the peak memory of a model, in bytes.

    Raises:
        StudioError: the model cannot be run, or the process died.
        Cancelled: at a tick.
    """
    progress.tick(0.0, "measuring memory")
    child = Child()
    try:
        child.send(encode(Ask(id=1, task=task)))
        while (frame := child.receive()) is not None:
            progress.tick(0.5, "measuring memory")
            message: FromWorker = decode(frame, FromWorker)  # type: ignore[arg-type]
            if isinstance(message, Reply):
                match message.answer:
                    case Footprinted(peak_bytes=peak):
                        return peak
                    case Failed(what=what, why=why, hint=hint, details=details):
                        raise StudioError(what, why, hint, details)
                    case other:
                        raise StudioError("The memory could not be measured", f"the answer was {other}")
        raise StudioError("The memory could not be measured", f"the process was {child.how_it_ended()}")
    finally:
        child.close()


def _forget_peak() -> None:
    """On Linux, start the record of the peak anew, so that importing libraries does not count."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    """Peak resident bytes of this process."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
