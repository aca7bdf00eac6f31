"""Every technique on every real model: sizes, scores and speed, through the command line.

    python tests/benchmarks/techniques_on_cases.py [--cases FOLDER] [--only NAME …] [--step TEXT …] [--latency]

FOLDER is the folder of evaluation cases (cases.py); outputs go into a temporary folder. Prints one
row for each model and step: the case's own metric, agreement, SQNR and, with --latency, the ratio
fp32 time / its time from interleaved runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = (
    "fp16",
    "quantize_weights:bits=8",
    "quantize_weights:bits=4,block=32",
    "quantize_weights:bits=4,form=qdq",
    "quantize_dynamic",
    "quantize_static",
    "sparsify:ratio=0.5",
    "sparsify:pattern=2:4",
)


def run(*command: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output and error of a command."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def data_of(folder: Path, split: str) -> Path:
    """A split of an exported case: one file, or a folder of feeds."""
    return folder / split if (folder / split).is_dir() else folder / f"{split}.npz"


def main() -> None:
    """Export, compress, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, default=ROOT.parent / "shared" / "cases")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--step", nargs="*", default=STEPS)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--limit", type=int, default=0)
    arguments = parser.parse_args()
    kit = arguments.cases / "cases.py"
    names = arguments.only or run(sys.executable, kit, "list")[1].split()
    print(
        f"{'case':20} {'step':34} {'s':>5} {'KB':>7} {'size':>6} {'score':>8} {'agree':>6} {'dB':>6} {'speed':>6}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            folder = Path(scratch) / name
            run(sys.executable, kit, "export", name, folder)
            for step in arguments.step:
                print(row(name, step, folder, kit, arguments), flush=True)


def row(name: str, step: str, folder: Path, kit: Path, arguments: argparse.Namespace) -> str:
    """One line of the table."""
    output = folder / "out.onnx"
    output.unlink(missing_ok=True)
    head = f"{name:20} {step:34}"
    started = time.perf_counter()
    code, told, error = run(
        sys.executable, "-m", "studio", "compress", folder / "model.onnx", "-o", output, "--step", step, "--yes",
        "--calibration", data_of(folder, "calibration"), "--json",
        "--measure" if arguments.latency else "--no-measure",
    )  # fmt: skip
    seconds = time.perf_counter() - started
    if code:
        return f"{head} {seconds:5.1f} exit {code}: {error.strip().splitlines()[-1] if error.strip() else ''}"
    options = ["--threads", "2", *(["--limit", str(arguments.limit)] if arguments.limit else [])]
    code, out, error = run(sys.executable, kit, "score", name, output, *options)
    if code:
        return f"{head} {seconds:5.1f} cannot be scored: {error.strip().splitlines()[-1]}"
    line = json.loads(out.strip().splitlines()[-1])
    speed = "     –"
    if arguments.latency:
        latency = json.loads(told)["measurements"][1]["measurement"]["latency"]
        speed = f"{latency['ratio']:6.2f}{' (busy)' if latency['busy'] else ''}"
    score = line[line["metric"]]
    return (
        f"{head} {seconds:5.1f} {line['bytes'] / 1000:7.0f} {line['bytes'] / line['fp32_bytes']:6.1%}"
        f" {score if score is not None else float('nan'):8.4f} {line['agreement']:6.3f} {line['sqnr_db']:6.1f} {speed}"
    )


if __name__ == "__main__":
    main()
