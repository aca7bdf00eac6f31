"""The one door of the engine: a task in, news on the way, one answer out.

The worker speaks frames (`base/process`) over its standard streams. One thread listens, so that
Cancel and the end of input are noticed while the main thread works; when input ends, so does the
process. Standard output belongs to the frames alone: whatever prints is sent to standard error.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias, cast

from studio.base.errors import Cancelled, StudioError
from studio.base.process import read_frame, write_frame
from studio.base.progress import Progress
from studio.records import task as t
from studio.records.base import decode, encode

if TYPE_CHECKING:
    from studio.engine.layers import Listing

News: TypeAlias = Callable[[t.News], None]
_NEWS_INTERVAL = 0.05  # seconds between two Progressed


def serve() -> int:
    """Answer tasks until standard input ends."""
    source, target = _own_streams()
    asks: queue.SimpleQueue[t.Ask] = queue.SimpleQueue()
    cancelled: set[int] = set()  # ids of tasks; one that has ended does no harm here
    finished: set[int] = set()
    threading.Thread(target=_listen, args=(source, asks, cancelled, finished), daemon=True).start()
    while True:
        ask = asks.get()
        started = time.monotonic()
        answer = _answer(ask, target, cancelled, finished)
        seconds = time.monotonic() - started
        write_frame(target, encode(t.Reply(id=ask.id, answer=answer, seconds=seconds)))


def _own_streams() -> tuple[IO[bytes], IO[bytes]]:
    """The frames' streams; afterwards descriptor 1 (also of native libraries) is standard error."""
    source = os.fdopen(os.dup(0), "rb")
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return source, target


def _listen(
    source: IO[bytes], asks: queue.SimpleQueue[t.Ask], cancelled: set[int], finished: set[int]
) -> None:
    try:
        while (frame := read_frame(source)) is not None:
            message: t.ToWorker = decode(frame, cast("type[t.ToWorker]", t.ToWorker))
            match message:
                case t.Ask() as ask:
                    asks.put(ask)
                case t.Cancel(id=task_id):
                    cancelled.add(task_id)
                case t.Finish(id=task_id):
                    finished.add(task_id)
    finally:  # also when a frame cannot be read: a worker that hears nothing must not stay
        os._exit(0)


def _answer(ask: t.Ask, target: IO[bytes], cancelled: set[int], finished: set[int]) -> t.Answer:
    def news(item: t.News) -> None:
        write_frame(target, encode(t.Note(id=ask.id, news=item)))

    last = 0.0

    def report(share: float, words: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _NEWS_INTERVAL:
            last = now
            news(t.Progressed(share=share, words=words))

    try:
        progress = Progress(report, lambda: ask.id in cancelled)
        return perform(ask.task, progress, news, lambda: ask.id in finished)
    except Cancelled:
        return t.Stopped()
    except StudioError as error:
        return t.Failed(what=error.what, why=error.why, hint=error.hint, details=error.details)
    except MemoryError:
        return t.Failed(
            what="There is not enough memory for this",
            why="the machine refused to give the worker more",
            hint="Close other programs, or choose smaller input sizes or less data.",
        )
    except Exception as error:  # noqa: BLE001 - the door: whatever it is, the studio must hear of it
        return t.Failed(
            what="Something went wrong that should not have",
            why=f"{type(error).__name__}: {error}",
            hint="Please report it with the details.",
            details=traceback.format_exc(),
            bug=True,
        )


# ------------------------------------------------------------------ tasks


@dataclass(frozen=True)
class _Warm:
    """The model that read-only tasks asked for last, listed, and the file's state then."""

    path: Path
    stamp: tuple[int, int]
    asked: t.InputSizes
    listing: Listing


_warm: _Warm | None = None


def _listing(model: str, sizes: t.InputSizes | None = None) -> Listing:
    """The model listed, from memory when the file is still the same; None = at any input sizes."""
    global _warm
    from studio.engine.graph import load
    from studio.engine.layers import list_layers

    path = Path(model)
    stamp = _stamp(path)
    same = _warm is not None and (_warm.path, _warm.stamp) == (path, stamp)
    if _warm is not None and same and sizes in {None, _warm.asked}:
        return _warm.listing
    loaded = _warm.listing.model if _warm is not None and same else load(path)
    _warm = _Warm(path, stamp, sizes or (), list_layers(loaded, dict(sizes or ())))
    return _warm.listing


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does; zeros where there is none, and reading it says so in words."""
    with contextlib.suppress(OSError):
        state = path.stat()
        return state.st_mtime_ns, state.st_size
    return 0, 0


def perform(
    task: t.Task, progress: Progress, news: News, enough: Callable[[], bool] = lambda: False
) -> t.Answer:
    """Carry out one task; what a task needs is imported when one comes."""
    match task:
        case t.Inspect():
            return _inspect(task)
        case t.PreviewSteps():
            from studio.engine.planning import preview

            return preview(task, progress, _listing(task.model, task.input_sizes))
        case t.Forecast():
            from studio.engine.forecast import forecast

            return forecast(task, progress, _listing(task.model, task.input_sizes))
        case t.DescribeLayer():
            return _describe_layer(task, progress)
        case t.DescribeData():
            from studio.engine.dataset import describe_data

            return describe_data(task, progress)
        case t.Apply():
            from studio.engine.run import apply

            return apply(task, progress, news, enough)
        case t.Import():
            from studio.engine.importing import import_model

            return import_model(task, progress)
        case t.Scan():
            from studio.engine.sensitivity import scan

            return scan(task, progress, news)
        case t.Measure():
            from studio.engine.measure import measure

            return measure(task, progress, news)
        case t.Profile():
            from studio.engine.profile import profile

            return profile(task, progress)
        case t.Footprint():
            from studio.engine.footprint import footprint

            return footprint(task, progress)
        case t.CheckExport():
            from studio.engine.export_check import check_export

            return check_export(task, progress)
        case _:
            raise StudioError(f"This engine cannot do '{type(task).__name__}'")


def _inspect(task: t.Inspect) -> t.Inspected:
    from studio.engine.layers import describe

    stripped = Path(task.stripped) if task.stripped else None
    return describe(_listing(task.model, task.input_sizes), Path(task.model), stripped)


def _describe_layer(task: t.DescribeLayer, progress: Progress) -> t.LayerDetail:
    from studio.engine.dataset import open_for
    from studio.engine.describe import describe_layer

    listing = _listing(task.model)
    spec = task.calibration
    data = None if spec is None else open_for(listing.model, spec, listing.input_sizes)
    return describe_layer(listing, task.layer, task.settings, data, progress)
