"""How far apart the protocol puts two sessions of one file: the spread of an A/A ratio.

    python tests/benchmarks/measure_noise.py MODEL.onnx [TIMES] [THREADS]

A truthful protocol puts 1.00 into about 95 % of its intervals.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from studio.engine.dataset import open_for
from studio.engine.graph import load
from studio.engine.latency import measure_latency
from studio.records.measure import DataSpec


def main(path: Path, times: int, threads: int) -> None:
    """Print the ratio, its interval and the spread over `times` measurements."""
    feed = open_for(load(path), DataSpec(kind="random", limit=1)).first()
    ratios, holds, busy = [], 0, 0
    for number in range(times):
        started = time.monotonic()
        _, second = measure_latency([path, path], feed, threads)
        assert second.ratio is not None
        assert second.ratio_low is not None
        assert second.ratio_high is not None
        ratios.append(second.ratio)
        holds += second.ratio_low <= 1 <= second.ratio_high
        busy += second.busy
        print(
            f"{number + 1:3}  {second.median_ms:8.3f} ms  A/A {second.ratio:.4f} "
            f"({second.ratio_low:.4f} – {second.ratio_high:.4f})  {second.runs} runs, "
            f"{time.monotonic() - started:.1f} s{'  busy' if second.busy else ''}"
        )
    print(
        f"mean {np.mean(ratios):.4f}, deviation {np.std(ratios):.4f}, "
        f"widest {max(abs(r - 1) for r in ratios):.4f}; "
        f"1.00 in {holds} of {times} intervals; busy {busy} times"
    )


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else 10,
        int(sys.argv[3]) if len(sys.argv) > 3 else 0,
    )
