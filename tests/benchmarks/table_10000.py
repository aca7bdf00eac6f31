"""Sorts, filters, selects and paints a table of 10,000 layers, and prints milliseconds. Aim: each under 100 ms.

python tests/benchmarks/table_10000.py
"""

# ruff: noqa: E402 - the platform and the paths come before Qt
from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication
from support.canned import FakeSession, layer, project_of

from studio.app.view import View
from studio.gui.figures import COLUMNS
from studio.gui.layer_table import LayerTable
from studio.gui.overview import Overview
from studio.gui.selection import Selection
from studio.gui.theme import Theme

COUNT, REPEATS = 10_000, 7


def timed(words: str, call: Callable[[int], object]) -> None:
    """Print the median and the worst of a few calls: on the wall, and of this thread's own time."""
    wall, own = [], []
    for i in range(REPEATS):
        start, mine = time.perf_counter(), time.thread_time()
        call(i)
        QApplication.processEvents()
        wall.append((time.perf_counter() - start) * 1000)
        own.append((time.thread_time() - mine) * 1000)
    print(
        f"{words:44s} {statistics.median(wall):8.1f} ms, worst {max(wall):7.1f}   own {statistics.median(own):7.1f}"
    )


def main() -> None:
    """Build the table, then time what a user does."""
    app = QApplication([])
    theme = Theme("dark")
    theme.apply()
    layers = tuple(
        layer(
            f"block{i // 4}.conv{i % 4}", ("Conv", "Gemm", "MatMul")[i % 3], (64 + i % 97, 32 + i % 31, 3, 3)
        )
        for i in range(COUNT)
    )
    session, selection = FakeSession(View(project=project_of(layers))), Selection()
    start = time.perf_counter()
    table = LayerTable(session, selection, theme)  # type: ignore[arg-type]
    table.resize(1000, 400)
    table.show()
    app.processEvents()
    print(f"{COUNT} rows made and shown in {(time.perf_counter() - start) * 1000:.0f} ms")
    orders = (Qt.SortOrder.AscendingOrder, Qt.SortOrder.DescendingOrder)
    for name in ("layer", "params", "latency", "sensitivity"):
        section = next(i for i, column in enumerate(COLUMNS) if column.id == name)
        timed(f"sort by {name}", lambda i, s=section: table.view.sortByColumn(s, orders[i % 2]))
    for rule in ("conv1", "op:gemm size>0.1MB", "-precision:int8 params>30k sensitivity>0.001", ""):
        timed(
            f"filter {rule!r}",
            lambda i, r=rule: (table.filter.clear(), table.filter.setText(r + " " * (i % 2))),
        )
    timed("select 2,500 scattered layers", lambda i: selection.set(one.name for one in layers[i % 4 :: 4]))
    timed("sort with 2,500 selected", lambda i: table.view.sortByColumn(3, orders[i % 2]))
    selection.set(one.name for one in layers[::4])
    projects = [project_of(layers) for _ in range(2)]
    timed("new figures, 2,500 selected", lambda i: session.show(project=projects[i % 2]))
    timed("select all, by rule", lambda _i: table.select_matching())
    timed(
        "scroll to the end and back",
        lambda i: table.view.scrollToBottom() if i % 2 else table.view.scrollToTop(),
    )

    overview = Overview(theme)
    overview.resize(1000, 400)
    overview.show()
    version = project_of(layers).versions[0]
    drawn: list[int] = []
    overview.ready.connect(drawn.append)
    wall, own = [], []
    overview.open(version)
    while not drawn:
        start, mine = time.perf_counter(), time.thread_time()
        app.processEvents()
        wall.append((time.perf_counter() - start) * 1000)
        own.append((time.thread_time() - mine) * 1000)
    print(
        f"lay out {drawn[0]} nodes: {sum(wall):.0f} ms, worst gap {max(wall):.1f} ms; own {sum(own):.0f}, {max(own):.1f} ms"
    )
    timed("paint the whole overview", lambda _i: overview.grab())
    overview.zoom(40)
    timed("paint it from near", lambda _i: overview.grab())


if __name__ == "__main__":
    main()
