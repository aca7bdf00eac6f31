"""Structured pruning on every real model: how long groups, preview, prune and refit take, and what is left.

    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/prune_refit.py [--only NAME …] [--step TEXT …] [--limit N] [--no-score]

--cases names the folder of evaluation cases (cases.py). TEXT is as in `--step` of the command line. Seconds are of
the wall and of the processor, so that a busy machine shows; numpy is held to one thread, as a worker is. Groups and
preview are planned as the window does it; prune + refit includes choosing channels, verifying and refitting, and
not the import of the runtimes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from studio.app.recipe import parse_step
from studio.base.errors import StudioError
from studio.engine.graph import load, save
from studio.engine.layers import list_layers
from studio.engine.planning import open_calibration, plan_step
from studio.engine.techniques import channel_orders, find
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import Step

ROOT = Path(__file__).resolve().parents[2]
STEPS = (
    "prune_channels:ratio=0.25", "prune_channels:ratio=0.5", "prune_channels:ratio=0.7",
    *(f"prune_channels:macs={share}" for share in (0.9, 0.8, 0.7, 0.6, 0.5)),
)  # fmt: skip
T = TypeVar("T")


def timed(deed: Callable[[], T]) -> tuple[T, str]:
    """A result, and the seconds of the wall (of the processor) that it took."""
    wall, processor = time.perf_counter(), time.process_time()
    result = deed()
    return result, f"{time.perf_counter() - wall:6.2f} ({time.process_time() - processor:5.2f})"


def treated(model: Path, data: Path, step: Step, output: Path) -> str:
    """Prune one file; the row of its times and shares."""
    listing = list_layers(load(model))
    calibration = open_calibration(DataSpec(path=str(data)), listing)
    _, groups = timed(lambda: channel_orders.grouping_of(listing))
    shown = Context(calibration=calibration, preview=True)
    _, preview = timed(lambda: plan_step(listing, step, shown))
    context = Context(calibration=calibration, agreed=True)

    def prune() -> tuple[float, float]:
        plan = plan_step(listing, step, context)
        if not plan.actions:
            raise StudioError("Nothing to prune", plan.refusals[0].reason)
        save(find(plan.step.settings).apply(listing, plan, context), output)
        before, after = plan.before, plan.after
        return after.parameters / before.parameters, (after.macs or 0) / (before.macs or 1)

    (parameters, macs), whole = timed(prune)
    return f"{groups} {preview} {whole} {parameters:7.3f} {macs:6.3f}"


def scored(kit: Path, name: str, output: Path, limit: int) -> str:
    """The case's own metric and agreement with the original, by the neutral scorer."""
    command = [
        sys.executable,
        str(kit),
        "score",
        name,
        str(output),
        *(["--limit", str(limit)] if limit else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    row = json.loads(done.stdout)
    return f"{row[row['metric']]:8.4f} {row['agreement']:6.3f} {row['kl']:8.4f}"


def main() -> None:
    """Export, prune, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, default=ROOT.parent / "shared" / "cases")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--step", nargs="*", default=STEPS)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--no-score", action="store_true")
    asked = parser.parse_args()
    kit = asked.cases / "cases.py"
    listed = subprocess.run([sys.executable, str(kit), "list"], capture_output=True, text=True, check=True)
    print(
        f"{'case':20} {'step':26} {'groups s (cpu)':14} {'preview s (cpu)':15} {'prune+refit s':14} "
        f"{'params':>6} {'MACs':>6} {'score':>8} {'agree':>6} {'KL':>8}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in asked.only or listed.stdout.split():
            folder = Path(scratch) / name
            subprocess.run(
                [sys.executable, str(kit), "export", name, str(folder)], check=True, capture_output=True
            )
            data = folder / "calibration"
            for text in asked.step:
                output = Path(scratch) / "pruned.onnx"
                row = f"{name:20} {text.partition(':')[2]:26}"
                try:
                    times = treated(
                        folder / "model.onnx",
                        data if data.is_dir() else data.with_suffix(".npz"),
                        parse_step(text),
                        output,
                    )
                except StudioError as error:
                    print(f"{row} {error.sentence}", flush=True)
                    continue
                found = "" if asked.no_score else scored(kit, name, output, asked.limit)
                print(f"{row} {times} {found}", flush=True)


if __name__ == "__main__":
    main()
