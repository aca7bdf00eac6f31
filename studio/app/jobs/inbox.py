"""News from other threads: run on the owner's thread, progress coalesced."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from studio.records.task import News, Progressed

Post: TypeAlias = Callable[[Callable[[], None]], None]


class Inbox:
    """The owner's thread where there is no event loop (command line, tests): a queue to run from."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def post(self, call: Callable[[], None]) -> None:
        """Leave a call; from any thread."""
        self._waiting.put(call)

    def run_until(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Run what arrives until `done()`; False when `timeout` seconds pass before that."""
        end = None if timeout is None else time.monotonic() + timeout
        while not done():
            left = 0.2 if end is None else min(0.2, end - time.monotonic())
            if left <= 0:
                return False
            try:
                self._waiting.get(timeout=left)()
            except queue.Empty:
                continue
        return True


class Batch:
    """Collects news on a lane's thread and delivers it in few calls on the owner's thread.

    At most one delivery is on its way at any time, and of several progress notes in it only the
    last is kept: a worker that ticks thousands of times a second cannot flood an event loop.
    """

    def __init__(self, post: Post, deliver: Callable[[Sequence[News]], None]) -> None:
        self._post, self._deliver = post, deliver
        self._lock = threading.Lock()
        self._news: list[News] = []
        self._on_its_way = False

    def put(self, news: News) -> None:
        """Add one piece of news; from the lane's thread."""
        with self._lock:
            if isinstance(news, Progressed):
                self._news = [n for n in self._news if not isinstance(n, Progressed)]
            self._news.append(news)
            if self._on_its_way:
                return
            self._on_its_way = True
        self._post(self._flush)

    def _flush(self) -> None:
        with self._lock:
            news, self._news = self._news, []
            self._on_its_way = False
        self._deliver(news)
