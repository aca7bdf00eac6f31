"""How long the window stalls: a 5 ms heartbeat while a 200 MB model is opened, drawn and compressed.

    python tests/benchmarks/window_stalls.py [--megabytes 200] [--external-megabytes 1024] [--show]

Prints for each phase how late the heartbeat came (p50, p99, greatest; aims: p99 ≤ 50 ms, greatest ≤ 100 ms
on a quiet machine), the time from the program's start to a usable window (aim ≤ 1.5 s), and for a model with
external data the time until its layers are listed (≤ 3 s) and the studio's own memory (< 400 MB).
Every part runs in a process of its own. Without --show it draws off screen.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
STARTED = time.perf_counter()
BEAT_MS, WIDTH = 5, 2048


# ------------------------------------------------------------------ models


def write_model(path: Path, megabytes: int, *, external: bool) -> None:
    """A chain of MatMul, Add and Relu of about this size; the external weights are a hole in a file."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    blocks = max(1, round(megabytes * 1e6 / (WIDTH * WIDTH * 4)))
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for i in range(blocks):
        if external:
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            for key, entry in (
                ("location", f"{path.name}.data"),
                ("offset", i * WIDTH * WIDTH * 4),
                ("length", WIDTH * WIDTH * 4),
            ):
                tensor.external_data.add(key=key, value=str(entry))
        else:
            tensor = numpy_helper.from_array(rng.standard_normal((WIDTH, WIDTH), np.float32) / 45, f"w{i}")
        weights.append(tensor)
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"], name=f"block{i}/matmul"))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"], name=f"block{i}/relu"))
        value = f"r{i}"
    shape = ["n", WIDTH]
    graph = helper.make_graph(
        nodes, "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)], weights,
    )  # fmt: skip
    path.write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        ).SerializeToString()
    )
    if external:
        with path.with_name(f"{path.name}.data").open("wb") as hole:
            hole.truncate(blocks * WIDTH * WIDTH * 4)
    assert onnx.__version__


# ------------------------------------------------------------------ the window


class Bench:
    """A window on a session of its own, and its heart."""

    def __init__(self, home: Path) -> None:
        from PySide6.QtCore import QSettings, Qt, QTimer

        from studio.app.session import Session
        from studio.gui.app import Poster, make_application
        from studio.gui.main_window import MainWindow
        from studio.gui.theme import Theme

        self.app = make_application()
        theme = Theme("dark")
        theme.apply()
        self._poster = Poster()
        self.session = Session(self._poster.post, home)
        settings = QSettings(str(home / "window.ini"), QSettings.Format.IniFormat)
        self.window = MainWindow(self.session, theme, settings)
        self.window.resize(1440, 900)
        self.window.show()
        self.app.processEvents()
        self.shown = time.perf_counter() - STARTED
        self.window.finish()
        self.app.processEvents()
        self.usable = time.perf_counter() - STARTED
        self._late: list[float] = []
        self._last = time.perf_counter()
        self._heart = QTimer()
        self._heart.setTimerType(Qt.TimerType.PreciseTimer)
        self._heart.setInterval(BEAT_MS)
        self._heart.timeout.connect(self._beat)

    def _beat(self) -> None:
        now = time.perf_counter()
        self._late.append(max(0.0, (now - self._last) * 1000 - BEAT_MS))
        self._last = now

    def until(self, done: Callable[[], bool], seconds: float = 300) -> float:
        """Let the window live until something is so; returns the seconds it took."""
        from PySide6.QtCore import QEventLoop, QTimer

        start, loop, watch = time.perf_counter(), QEventLoop(), QTimer()
        watch.timeout.connect(
            lambda: loop.quit() if done() or time.perf_counter() - start > seconds else None
        )
        watch.start(20)
        loop.exec()
        watch.stop()
        return time.perf_counter() - start

    def phase(self, words: str, done: Callable[[], bool]) -> float:
        """Like `until`, with the heart beating; prints how late it beat."""
        self._late.clear()
        self._last = time.perf_counter()
        self._heart.start()
        taken = self.until(done)
        self._heart.stop()
        late = sorted(self._late) or [0.0]
        p50, p99 = statistics.median(late), late[int(len(late) * 0.99) - (len(late) > 99)]
        print(
            f"{words:34s} {taken:6.1f} s   late p50 {p50:5.1f}   p99 {p99:6.1f}   greatest {late[-1]:6.1f} ms   n {len(late)}"
        )
        return taken

    def listed(self) -> bool:
        """Whether a model is open with its layers."""
        project = self.session.view.project
        return bool(project and project.current and project.current.info)

    def quiet(self) -> bool:
        """Whether nothing runs."""
        return not self.session.view.planning and not any(j.active for j in self.session.view.jobs)

    def leave(self) -> None:
        """Close without questions."""
        self.window.leave_unasked()
        self.app.processEvents()


def memory_mb() -> float:
    """Resident memory of this process alone, without its workers."""
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


def run_start(_model: Path, home: Path) -> None:
    """Start-up."""
    bench = Bench(home)
    print(
        f"window shown {bench.shown:.2f} s, with graph and plots {bench.usable:.2f} s after the interpreter; {memory_mb():.0f} MB"
    )
    bench.leave()


def run_stalls(model: Path, home: Path) -> None:
    """Open, draw, measure, plan, compress."""
    from studio.records.steps import QuantizeWeights

    bench = Bench(home)
    bench.until(lambda: False, 1.5)
    bench.session.open_model(model)
    bench.phase("opening", bench.listed)
    bench.phase("drawing, timing, measuring", bench.quiet)
    project = bench.session.view.project
    assert project is not None
    assert project.current is not None
    names = [layer.name for layer in project.current.layers]
    settings = QuantizeWeights(bits=8)
    bench.session.set_treatment(names, settings.slot, settings)
    bench.phase("planning", lambda: bench.quiet() and bool(bench.session.view.plans))
    bench.session.compress(agreed=True)
    bench.phase("compressing, then measuring", bench.quiet)
    print(
        f"studio {memory_mb():.0f} MB; jobs: {', '.join(f'{j.title} {j.state}' for j in bench.session.view.jobs)}"
    )
    bench.leave()


def run_listing(model: Path, home: Path) -> None:
    """External data."""
    bench = Bench(home)
    bench.until(lambda: False, 1.0)
    bench.session.open_model(model)
    taken = bench.phase("listing external data", bench.listed)
    bench.until(lambda: False, 3.0)
    print(f"layers listed in {taken:.2f} s; studio {memory_mb():.0f} MB")
    bench.leave()


ROLES = {"start": run_start, "stalls": run_stalls, "listing": run_listing}


def main() -> None:
    """Write the models, then run every part in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--external-megabytes", type=int, default=1024)
    parser.add_argument("--show", action="store_true", help="on the screen")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not asked.show:
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    if asked.role:
        ROLES[asked.role](asked.model, asked.home)
        return
    with tempfile.TemporaryDirectory() as folder:
        inside, outside = Path(folder) / "inside.onnx", Path(folder) / "outside.onnx"
        write_model(inside, asked.megabytes, external=False)
        write_model(outside, asked.external_megabytes, external=True)
        for role, model in (("start", inside), ("start", inside), ("stalls", inside), ("listing", outside)):
            home = tempfile.mkdtemp(dir=folder)
            words = [sys.executable, __file__, "--role", role, "--model", str(model), "--home", home]
            quiet = subprocess.run(
                [*words, *(["--show"] if asked.show else [])], stderr=subprocess.PIPE, text=True, check=False
            )
            if quiet.returncode:
                print(f"{role} failed:\n{quiet.stderr[-2000:]}")


if __name__ == "__main__":
    main()
