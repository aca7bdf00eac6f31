"""The one door of the engine: a task in, news on the way, one answer out.

The worker speaks frames (`base/process`) over its standard streams. One thread listens, so that
Cancel and the end of input are noticed while the main thread works; when input ends, so does the
process. Standard output belongs to the frames alone: whatever prints is sent to standard error.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeAlias, cast

from studio.base.errors import Cancelled, StudioError
from studio.base.process import read_frame, write_frame
from studio.base.progress import Progress
from studio.records import task as t
from studio.records.base import decode, encode

News: TypeAlias = Callable[[t.News], None]
_NEWS_INTERVAL = 0.05  # seconds between two Progressed


def serve() -> int:
    """Answer tasks until standard input ends."""
    source, target = _own_streams()
    asks: queue.SimpleQueue[t.Ask] = queue.SimpleQueue()
    cancelled: set[int] = set()  # ids of tasks; one that has ended does no harm here
    threading.Thread(target=_listen, args=(source, asks, cancelled), daemon=True).start()
    while True:
        ask = asks.get()
        started = time.monotonic()
        answer = _answer(ask, target, cancelled)
        seconds = time.monotonic() - started
        write_frame(target, encode(t.Reply(id=ask.id, answer=answer, seconds=seconds)))


def _own_streams() -> tuple[IO[bytes], IO[bytes]]:
    """The frames' streams; afterwards descriptor 1 (also of native libraries) is standard error."""
    source = os.fdopen(os.dup(0), "rb")
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return source, target


def _listen(source: IO[bytes], asks: queue.SimpleQueue[t.Ask], cancelled: set[int]) -> None:
    try:
        while (frame := read_frame(source)) is not None:
            message: t.ToWorker = decode(frame, cast("type[t.ToWorker]", t.ToWorker))
            match message:
                case t.Ask() as ask:
                    asks.put(ask)
                case t.Cancel(id=task_id):
                    cancelled.add(task_id)
    finally:  # also when a frame cannot be read: a worker that hears nothing must not stay
        os._exit(0)


def _answer(ask: t.Ask, target: IO[bytes], cancelled: set[int]) -> t.Answer:
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
        return perform(ask.task, Progress(report, lambda: ask.id in cancelled), news)
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


def perform(task: t.Task, progress: Progress, news: News) -> t.Answer:  # noqa: ARG001
    """Carry out one task."""
    match task:
        case t.Inspect():
            from studio.engine.layers import inspect

            stripped = Path(task.stripped) if task.stripped else None
            return inspect(Path(task.model), dict(task.input_sizes), stripped)
        case _:
            raise StudioError(f"This engine cannot do '{type(task).__name__}' yet")
