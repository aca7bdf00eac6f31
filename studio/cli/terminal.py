"""The terminal as a face: progress bars where there is one, tables, JSON, and tasks in workers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from studio.app.jobs import Driver, Limits, default_limits, expect, run_task, subject_of
from studio.cli.options import check_sizes
from studio.records.task import AnswerBase, InputSizes, Inspect, Inspected, News, Progressed, Task

A = TypeVar("A", bound=AnswerBase)

_PIPE_WIDTH = 220
READ_LIMIT_S = 120.0


class Terminal:
    """Runs tasks one after the other, showing how far they are.

    A context: it keeps one worker until it ends. Bars go to standard error and only when that is a terminal; results go to standard output.
    """

    def __init__(self) -> None:
        out = sys.stdout.isatty()
        self._out = Console(file=sys.stdout, width=None if out else _PIPE_WIDTH, highlight=False, emoji=False)
        self._bars = sys.stderr.isatty()
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        self._driver: Driver | None = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._driver is not None:
            self._driver.close()

    # ------------------------------------------------------------ work

    def ask(
        self,
        task: Task,
        kind: type[A],
        news: Callable[[News], None] = lambda _news: None,
        *,
        limits: Limits | None = None,
        fresh: bool = False,
    ) -> A:
        """Run a task in a worker and hand on its news; `fresh`: in a process of its own."""

        def hear(item: News) -> None:
            if isinstance(item, Progressed):
                self._move(item.share, item.words)
            news(item)

        subject, limits = subject_of(task), limits or default_limits(seconds=0, share=0.85)
        self._open_bar(subject)
        try:
            if fresh:
                return run_task(task, kind, hear, limits=limits, subject=subject)
            return expect(self._worker().ask(task, hear, limits, subject), kind)
        finally:
            self._close_bar()

    def _worker(self) -> Driver:
        if self._driver is None or not self._driver.alive:
            self._driver = Driver()
        return self._driver

    def inspect(self, path: Path, input_sizes: InputSizes = ()) -> Inspected:
        """List a model.

        Raises:
            StudioError: it cannot be read, or has no dynamic dimension of a name in `input_sizes`.
        """
        task = Inspect(model=str(path), input_sizes=input_sizes)
        found = self.ask(task, Inspected, limits=default_limits(READ_LIMIT_S))
        check_sizes(input_sizes, found.info)
        return found

    def _move(self, share: float, words: str) -> None:
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, completed=share, words=words)

    def _open_bar(self, subject: str) -> None:
        if not self._bars:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._bar = self._progress.add_task(subject, total=1.0, words="")
        self._progress.start()

    def _close_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._bar = None

    # ------------------------------------------------------------ results

    @property
    def width(self) -> int:
        """Characters on a line."""
        return self._out.width

    def line(self, text: str = "") -> None:
        """A line on standard output."""
        self._out.print(text, markup=False, soft_wrap=True)

    def table(
        self, heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, *, wrap: bool = False
    ) -> None:
        """A table; the first `left` columns are flush left, the others flush right.

        Where the terminal is too narrow, the first column folds, or all with `wrap`.
        """
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for number, head in enumerate(heads):
            justify: JustifyMethod = "left" if number < left else "right"
            table.add_column(head, justify=justify, overflow="fold", no_wrap=number > 0 and not wrap)
        for row in rows:
            table.add_row(*(_plain(cell) for cell in row))
        self._out.print(table)

    def json(self, content: object) -> None:
        """JSON on standard output; records become objects."""
        plain = msgspec.to_builtins(content)
        sys.stdout.write(json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def _plain(cell: str) -> Any:
    from rich.text import Text

    return Text(cell)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Elapsed."""
        return round(time.monotonic() - self._started, 3)
