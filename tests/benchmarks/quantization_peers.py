"""What other quantizers make of real models, beside the studio: same data, same threads, timed in turns.

    python tests/benchmarks/quantization_peers.py --cases FOLDER [--only CASE …] [--method METHOD …]
        [--environments FOLDER] [--limit N] [--threads N] [--no-speed]

FOLDER is the folder of evaluation cases (cases.py). A method is one of `--list`, or `ours:STEP` with a step as on the
command line. Every peer runs from its PyPI package in a virtual environment of its own below --environments, which is
made when it is missing; the project's own environment is never touched. Prints one row a case and method: the case's
own metric, SQNR, KL, agreement, KiB, seconds and peak memory of the quantizer with its imports, and the speed: fp32
time / its time, all results of a case timed in turns in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TORCH = "torch==2.13.0"  # a plain torch brings gigabytes of drivers: it is installed first and held
PACKAGES = {
    "onnxruntime": [TORCH, "onnx==1.23.2", "onnxruntime==1.32.0", "onnx-ir", "sympy"],
    "nncf": [TORCH, "nncf==3.4.0", "onnx==1.18.0", "onnxruntime==1.22.1"],
    "aimet": [TORCH, "aimet-onnx==2.42.0"],
}
OURS = (
    "ours:quantize_static",
    "ours:quantize_dynamic",
    "ours:quantize_weights:bits=4,block=32,preset=careful",
)
BLOCK = 32
BATCH = 8

Feed = dict[str, Any]


# ---------------------------------------------------------------- the peers; each runs in its own environment


def feeds(data: Path) -> list[Feed]:
    """Calibration feeds of an exported case: batches of one file, or a file each."""
    import numpy as np

    if data.is_dir():
        return [
            dict(np.load(path)) for path in sorted(data.glob("*.npz"), key=lambda p: (len(p.stem), p.stem))
        ]
    arrays = {name: array for name, array in np.load(data).items() if not name.startswith("label")}
    count = len(next(iter(arrays.values())))
    return [{n: a[i : i + BATCH] for n, a in arrays.items()} for i in range(0, count, BATCH)]


def ort_static(model: Path, data: Path, out: Path) -> None:
    """U8S8, MinMax, per channel: the fastest form on processors with VNNI."""
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(feeds(data))

        def get_next(self) -> Feed | None:
            return next(self._left, None)

    q.quantize_static(
        str(model), str(out), Reader(), per_channel=True,
        activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
    )  # fmt: skip


def ort_dynamic(model: Path, data: Path, out: Path) -> None:
    """Dynamic int8, per channel."""
    del data
    from onnxruntime import quantization as q

    q.quantize_dynamic(str(model), str(out), per_channel=True)


def ort_four_bits(model: Path, data: Path, out: Path, algorithm: str) -> None:
    """MatMulNBits, 4 bits in blocks of 32: plain rounding (asymmetric) or HQQ."""
    del data
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as q

    loaded = onnx.load(str(model))
    if algorithm == "hqq":
        config = q.HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=4)
        work = q.MatMulNBitsQuantizer(loaded, block_size=BLOCK, is_symmetric=False, algo_config=config)
    else:
        work = q.MatMulNBitsQuantizer(loaded, block_size=BLOCK, is_symmetric=False, accuracy_level=4)
    work.process()
    work.model.save_model_to_file(str(out))


def nncf_static(model: Path, data: Path, out: Path, model_type: str) -> None:
    """NNCF post-training int8; with the transformer scheme where asked."""
    import nncf
    import onnx

    samples = feeds(data)
    kind = nncf.ModelType.TRANSFORMER if model_type == "transformer" else None
    done = nncf.quantize(
        onnx.load(str(model)), nncf.Dataset(samples), subset_size=len(samples), model_type=kind
    )
    onnx.save(done, str(out))


def nncf_four_bits(model: Path, data: Path, out: Path, *, awq: bool) -> None:
    """NNCF weights in 4 bits, groups of 32, with or without AWQ."""
    import nncf
    import onnx

    samples = feeds(data)
    # Layers whose inputs are no multiple of the group stay as they are.
    fitting = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.IGNORE)
    done = nncf.compress_weights(
        onnx.load(str(model)), mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=BLOCK, ratio=1.0,
        awq=awq or None, dataset=nncf.Dataset(samples) if awq else None, advanced_parameters=fitting,
    )  # fmt: skip
    onnx.save(done, str(out))


def aimet_static(model: Path, data: Path, out: Path) -> None:
    """AIMET int8, its default scheme, written as Q/DQ."""
    import onnx
    from aimet_onnx.quantsim import QuantizationSimModel

    sim = QuantizationSimModel(onnx.load(str(model)))
    sim.compute_encodings(feeds(data))
    onnx.save(sim.to_onnx_qdq(), str(out))


METHODS: dict[str, tuple[str, Callable[[Path, Path, Path], None]]] = {
    "ort-static": ("onnxruntime", ort_static),
    "ort-dynamic": ("onnxruntime", ort_dynamic),
    "ort-4bit": ("onnxruntime", lambda m, d, o: ort_four_bits(m, d, o, "default")),
    "ort-hqq": ("onnxruntime", lambda m, d, o: ort_four_bits(m, d, o, "hqq")),
    "nncf": ("nncf", lambda m, d, o: nncf_static(m, d, o, "")),
    "nncf-transformer": ("nncf", lambda m, d, o: nncf_static(m, d, o, "transformer")),
    "nncf-4bit": ("nncf", lambda m, d, o: nncf_four_bits(m, d, o, awq=False)),
    "nncf-awq": ("nncf", lambda m, d, o: nncf_four_bits(m, d, o, awq=True)),
    "aimet": ("aimet", aimet_static),
}


def ours(step: str, model: Path, data: Path, out: Path) -> None:
    """The studio's own command line."""
    command = [
        sys.executable, "-m", "studio", "compress", model, "-o", out, "--step", step, "--calibration", data,
        "--no-measure", "--yes", "--json",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or "the command failed")


def child(method: str, model: Path, data: Path, out: Path) -> None:
    """Quantize, and print seconds and peak memory as JSON; what the quantizer itself prints goes to stderr."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    started = time.perf_counter()
    if method.startswith("ours:"):
        ours(method.removeprefix("ours:"), model, data, out)
    else:
        METHODS[method][1](model, data, out)
    seconds = time.perf_counter() - started
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": seconds, "peak_kib": peak}), file=answer, flush=True)


# ---------------------------------------------------------------- timing


def speeds(models: list[Path], feed: Feed, threads: int, rounds: int = 40) -> list[float]:
    """fp32 time / time of each model (the first is fp32), in turns forwards and backwards."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = [ort.InferenceSession(str(m), options, providers=["CPUExecutionProvider"]) for m in models]

    def once(sess: Any, repeats: int) -> float:
        begun = time.perf_counter()
        for _ in range(repeats):
            sess.run(None, feed)
        return (time.perf_counter() - begun) / repeats

    repeats = max(1, round(0.01 / max(1e-6, min(once(sessions[0], 3) for _ in range(3)))))
    times: list[list[float]] = [[] for _ in sessions]
    for turn in range(rounds):
        order = range(len(sessions)) if turn % 2 == 0 else reversed(range(len(sessions)))
        for index in order:
            times[index].append(once(sessions[index], repeats))
    base = statistics.median(times[0])
    return [base / statistics.median(t) for t in times]


def one_sample(data: Path) -> Feed:
    """The first feed of evaluation data, one sample of it."""
    first = feeds(data)[0]
    return first if data.is_dir() else {name: array[:1] for name, array in first.items()}


# ---------------------------------------------------------------- the table


def environment(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, made when it is missing.

    Raises:
        RuntimeError: its packages cannot be installed for this Python.
    """
    python = folder / name / "bin" / "python"
    if not python.exists():
        print(f"making {folder / name}: {' '.join(PACKAGES[name])}", file=sys.stderr)
        venv.create(folder / name, with_pip=True)
        held = folder / "held.txt"
        held.write_text(TORCH + "\n", encoding="utf-8")
        for packages in (
            [p for p in PACKAGES[name] if p == TORCH],
            [p for p in PACKAGES[name] if p != TORCH],
        ):
            if packages:
                command = [str(python), "-m", "pip", "install", "-q", "-c", str(held), *packages]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    version = ".".join(map(str, sys.version_info[:2]))
                    raise RuntimeError(
                        f"{name} cannot be installed on Python {version}: {done.stderr.strip()[-200:]}"
                    )
    return python


def split(folder: Path, name: str) -> Path:
    """A split of an exported case: a file, or a folder of feeds."""
    return folder / name if (folder / name).is_dir() else folder / f"{name}.npz"


def quantized(method: str, case: Path, out: Path, environments: Path) -> dict[str, Any]:
    """What a method says of its work; {"error": …} where it failed."""
    try:
        own = method.startswith("ours:")
        python = Path(sys.executable) if own else environment(METHODS[method][0], environments)
    except RuntimeError as error:
        return {"error": str(error)}
    command = [python, __file__, "--child", method, case / "model.onnx", split(case, "calibration"), out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode or not out.exists():
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:120]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def scored(kit: Path, name: str, model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The line of the neutral scorer; {"error": …} where the model does not run."""
    command = [sys.executable, kit, "score", name, model, "--threads", arguments.threads]
    command += ["--limit", arguments.limit] if arguments.limit else []
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it does not run"])[-1][:120]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def rows(kit: Path, name: str, scratch: Path, arguments: argparse.Namespace) -> Iterator[str]:
    """The table's lines of one case: first what failed, then the others."""
    case = scratch / name
    subprocess.run([sys.executable, str(kit), "export", name, str(case)], check=True, capture_output=True)
    done: list[tuple[str, dict[str, Any], Path]] = []
    for number, method in enumerate(arguments.method):
        out = case / f"{number}.onnx"
        told = quantized(method, case, out, arguments.environments)
        if "error" not in told:
            told |= scored(kit, name, out, arguments)
        if "error" in told:
            yield f"{name:20} {method:44} {told['error']}"
        else:
            done.append((method, told, out))
    fast = [1.0] + [float("nan")] * len(done)
    if not arguments.no_speed and done:
        models = [case / "model.onnx", *(out for _method, _told, out in done)]
        fast = speeds(models, one_sample(split(case, "evaluation")), arguments.threads)
    for (method, told, _out), speed in zip(done, fast[1:], strict=True):
        yield line(name, method, told, speed)


def line(name: str, method: str, told: dict[str, Any], speed: float) -> str:
    """One row."""

    def shown(key: str, form: str) -> str:
        return "–" if told.get(key) is None else format(told[key], form)

    return (
        f"{name:20} {method:44} {shown(told['metric'], '.4f'):>7} {shown('sqnr_db', '.1f'):>6} {shown('kl', '.5f'):>8} "
        f"{shown('agreement', '.4f'):>7} {told['bytes'] / 1024:8.0f} {told['seconds']:7.1f} "
        f"{told['peak_kib'] / 1024:6.0f} {speed:6.2f}"
    )


def main(given: Iterable[str] | None = None) -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, default=ROOT.parent / "shared" / "cases")
    parser.add_argument("--only", nargs="*", help="cases; all of them by default")
    parser.add_argument("--method", nargs="*", default=[*METHODS, *OURS])
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "featherweight-peers")
    parser.add_argument("--limit", type=int, default=0, help="evaluation samples; 0 = all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--list", action="store_true", help="print the methods")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.child:
        method, *paths = arguments.child
        child(method, *map(Path, paths))
        return
    if arguments.list:
        print("\n".join([*METHODS, *OURS]))
        return
    unknown = [m for m in arguments.method if m not in METHODS and not m.startswith("ours:")]
    if unknown:
        parser.error(f"no such method: {', '.join(unknown)}")
    kit = arguments.cases / "cases.py"
    every = subprocess.run([sys.executable, str(kit), "list"], capture_output=True, text=True, check=True)
    arguments.environments.mkdir(parents=True, exist_ok=True)
    print(
        f"{'case':20} {'method':44} {'score':>7} {'dB':>6} {'KL':>8} {'agree':>7} {'KiB':>8} {'s':>7} {'MiB':>6} {'speed':>6}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only or every.stdout.split():
            for row in rows(kit, name, Path(scratch), arguments):
                print(row, flush=True)


if __name__ == "__main__":
    main()
