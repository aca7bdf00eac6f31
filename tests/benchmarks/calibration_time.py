"""How long static int8 takes, preset fast, beside the bare inference over the same calibration set.

    python tests/benchmarks/calibration_time.py MODEL.onnx CALIBRATION [ROUNDS]

Each measurement has a process of its own; imports and reading the data are not counted, loading the model is. Prints
seconds (and processor seconds, which other programs disturb less), their ratio, and the peak memory of each process.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

THREADS = 2
BATCH = 1


def main() -> None:
    model, data = Path(sys.argv[1]), sys.argv[2]
    if len(sys.argv) > 3 and sys.argv[3] in {"bare", "fast"}:
        print(json.dumps(measure(sys.argv[3], model, data)))
        return
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    found: dict[str, list[dict[str, float]]] = {"bare": [], "fast": []}
    for _ in range(rounds):
        for kind, results in found.items():
            done = subprocess.run(
                [sys.executable, __file__, str(model), data, kind], capture_output=True, text=True, check=True
            )
            results.append(json.loads(done.stdout.splitlines()[-1]))
    for kind, results in found.items():
        medians = {key: statistics.median(r[key] for r in results) for key in results[0]}
        print(f"{kind}: " + ", ".join(f"{key} {value:.2f}" for key, value in medians.items()))
    for key in ("seconds", "processor_seconds"):
        ratio = statistics.median(f[key] / b[key] for f, b in zip(found["fast"], found["bare"], strict=True))
        print(f"ratio of {key}: {ratio:.2f}")


def measure(kind: str, model: Path, data: str) -> dict[str, float]:
    """One deed, timed."""
    from studio.engine import execute, graph
    from studio.engine.dataset import open_data
    from studio.engine.layers import list_layers
    from studio.engine.planning import plan_step
    from studio.engine.techniques import find
    from studio.engine.techniques.contract import Context
    from studio.records import steps
    from studio.records.measure import DataSpec

    listing = list_layers(graph.load(model))
    samples = open_data(DataSpec(path=data), listing.inputs, dict(listing.input_sizes))
    settings = steps.QuantizeStatic()
    find(settings)  # imports what it needs

    def bare() -> None:
        session = execute.session(model, threads=THREADS)
        for feed in samples.feeds(BATCH):
            execute.run(session, feed)

    def fast() -> None:
        context = Context(calibration=samples, threads=THREADS)
        plan = plan_step(listing, steps.Step(settings=settings), context)
        find(settings).apply(listing, plan, context)

    deed: Callable[[], None] = bare if kind == "bare" else fast
    wall, cpu = time.perf_counter(), time.process_time()
    deed()
    return {
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
