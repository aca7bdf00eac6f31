"""Static and dynamic int8 of many models, ours beside onnxruntime's own quantizer: answers, size and speed.

    python tests/benchmarks/quantization_sweep.py OUT MODEL.onnx … [--only METHOD …] [--redo METHOD …] [--no-speed]

Samples lie beside a model: NAME.npz (also for NAME.anything.onnx) and NAME.eval.npz, which is held out, or calibration.npz
and evaluation.npz (folders of .npz files where samples do not stack). Where nothing is held out, the last third is. What was made
before is taken from OUT, unless a method is to be redone. Prints one row a model and method (SQNR of all float outputs
on held-out samples in dB, KiB, fp32 time / its time in turns on one sample), and at the end where ours is worse than
its counterpart: by more than 0.5 dB, 2 % of the size or 5 % of the time (timed again before it is said).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from quantization_peers import Feed, speeds

HELD_OUT, CALIBRATION = 64, 128
WORSE_DB, LARGER, SLOWER = 0.5, 1.02, 0.95
USABLE = 0.7  # a result slower than this is nobody's choice: ours is not compared with it
COUNTERPARTS = {"ours-static": "ort-static", "ours-dynamic": "ort-dynamic", "ours-preset": "ort-best"}


# ---------------------------------------------------------------- samples


def samples(model: Path) -> tuple[list[Feed], list[Feed]]:
    """Feeds of one sample each for calibration, and others that are held out."""
    folder, name = model.parent, model.stem
    first = _one_of(folder / f"{name}.npz", folder / name, folder / f"{name.split('.')[0]}.npz")
    rest = _one_of(folder / f"{name}.eval.npz", folder / f"{name}.eval")
    if first is None:
        first, rest = (_one_of(folder / k, folder / f"{k}.npz") for k in ("calibration", "evaluation"))
    assert first is not None
    every = _feeds(first)
    if rest is not None:
        return every[:CALIBRATION], _feeds(rest)[:HELD_OUT]
    cut = len(every) * 2 // 3
    return every[:cut][:CALIBRATION], every[cut:][:HELD_OUT]


def _one_of(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _feeds(data: Path) -> list[Feed]:
    if data.is_dir():
        paths = sorted(data.glob("*.npz"), key=lambda p: (len(p.stem), p.stem))
        return [dict(np.load(path)) for path in paths[: CALIBRATION + HELD_OUT]]
    arrays = {name: a for name, a in np.load(data).items() if not name.startswith("label")}
    count = len(next(iter(arrays.values())))
    return [{name: a[i : i + 1] for name, a in arrays.items()} for i in range(count)]


# ---------------------------------------------------------------- methods: (model, calibration feeds, result)


def ort_static(model: Path, calibration: list[Feed], out: Path) -> None:
    """onnxruntime's recommended way: pre-process, then U8S8, MinMax, per channel."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(calibration)

        def get_next(self) -> Feed | None:
            return next(self._left, None)

    ready = out.with_suffix(".ready.onnx")
    try:
        quant_pre_process(str(model), str(ready))
    except Exception:  # it fails on some models; quantizing them often works nevertheless
        ready = model
    q.quantize_static(
        str(ready), str(out), Reader(), per_channel=True,
        activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
    )  # fmt: skip


def ort_dynamic(model: Path, calibration: list[Feed], out: Path) -> None:
    """Dynamic int8, per channel."""
    del calibration
    from onnxruntime import quantization as q

    q.quantize_dynamic(str(model), str(out), per_channel=True)


def ours(model: Path, calibration: list[Feed], out: Path, kind: str) -> None:
    """One step on all layers, or the preset Fast."""
    from studio.engine import graph
    from studio.engine.dataset import open_data
    from studio.engine.layers import list_layers
    from studio.engine.planning import plan_step
    from studio.engine.techniques import find
    from studio.engine.techniques.contract import Context
    from studio.records import presets, steps
    from studio.records.measure import DataSpec

    folder = out.with_suffix(".samples")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, feed in enumerate(calibration):
        np.savez(folder / f"{number:04}.npz", **feed)
    done = graph.load(model)
    listing = list_layers(done)
    data = open_data(DataSpec(path=str(folder)), listing.inputs, dict(listing.input_sizes))
    chain = {
        "static": (steps.Step(settings=steps.QuantizeStatic()),),
        "dynamic": (steps.Step(settings=steps.QuantizeDynamic()),),
        "preset": presets.steps("fast", tuple(n.record for n in listing.nodes.values()), calibrated=True),
    }[kind]
    for step in chain:
        listing = list_layers(done)
        context = Context(calibration=data, threads=1)
        plan = plan_step(listing, step, context)
        done = find(step.settings).apply(listing, plan, context) if plan.actions else done
    graph.save(done, out)


METHODS: dict[str, Callable[[Path, list[Feed], Path], None]] = {
    "ort-static": ort_static,
    "ort-dynamic": ort_dynamic,
    "ours-static": lambda m, c, o: ours(m, c, o, "static"),
    "ours-dynamic": lambda m, c, o: ours(m, c, o, "dynamic"),
    "ours-preset": lambda m, c, o: ours(m, c, o, "preset"),
}


# ---------------------------------------------------------------- figures


def answers(model: Path, feeds: list[Feed]) -> list[list[Any]]:
    """Float outputs by feed."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    wanted = [o.name for o in session.get_outputs() if o.type == "tensor(float)"]
    return [[np.asarray(a, np.float64) for a in session.run(wanted, feed)] for feed in feeds]


def sqnr(reference: list[list[Any]], others: list[list[Any]]) -> float:
    """In dB: every output's noise as a share of its power, averaged over the outputs."""
    shares = []
    for a, b in zip(zip(*reference, strict=True), zip(*others, strict=True), strict=True):
        noise = sum(float(np.square(x - y).sum()) for x, y in zip(a, b, strict=True))
        shares.append(noise / max(sum(float(np.square(x).sum()) for x in a), 1e-30))
    return float(-10 * np.log10(max(np.mean(shares), 1e-20)))


def figures(model: Path, out: Path, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is known of each method on one model."""
    calibration, held_out = samples(model)
    out.mkdir(parents=True, exist_ok=True)
    reference = answers(model, held_out)
    found: dict[str, dict[str, Any]] = {}
    for method in arguments.only:
        path, told = out / f"{method}.onnx", out / f"{method}.json"
        if not told.exists() or method in arguments.redo:
            told.write_text(json.dumps(_made(method, model, calibration, path)))
        found[method] = json.loads(told.read_text())
        if "error" not in found[method]:
            try:
                found[method] = {
                    "db": sqnr(reference, answers(path, held_out)),
                    "kib": path.stat().st_size / 1024,
                }
            except Exception as error:  # a peer's file that does not load is a result
                found[method] = {"error": f"does not run: {_line(error)}"}
    runs = [m for m, f in found.items() if "error" not in f]
    if not arguments.no_speed and runs:
        for method, speed in zip(runs, _timed(model, out, runs, held_out[0]), strict=True):
            found[method]["speed"] = speed
    theirs = [m for m in runs if m.startswith("ort")]
    usable = [m for m in theirs if found[m].get("speed", 1.0) >= USABLE] or theirs
    if usable:
        found["ort-best"] = found[max(usable, key=lambda m: float(found[m]["db"]))]
    return found


def _made(method: str, model: Path, calibration: list[Feed], path: Path) -> dict[str, str]:
    path.unlink(missing_ok=True)
    try:
        METHODS[method](model, calibration, path)
    except Exception as error:  # so is a peer that fails
        return {"error": _line(error)}
    return {}


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:150]


def _timed(model: Path, out: Path, methods: list[str], feed: Feed, rounds: int = 15) -> list[float]:
    return speeds([model, *(out / f"{m}.onnx" for m in methods)], feed, 1, rounds)[1:]


def complaints(
    model: Path, out: Path, found: dict[str, dict[str, Any]], arguments: argparse.Namespace
) -> Iterator[str]:
    """Where ours is worse than its counterpart."""
    for mine, theirs in COUNTERPARTS.items():
        a, b = found.get(mine), found.get(theirs)
        if a is None or b is None:
            continue
        if "error" in a:
            yield f"{mine}: {a['error']}"
        if "error" in a or "error" in b or b.get("speed", 1.0) < USABLE:
            continue
        if a["db"] < b["db"] - WORSE_DB:
            yield f"{mine}: {a['db']:.1f} dB, {theirs} {b['db']:.1f}"
        if a["kib"] > b["kib"] * LARGER:
            yield f"{mine}: {a['kib']:.0f} KiB, {theirs} {b['kib']:.0f}"
        if "speed" in a and a["speed"] < b["speed"] * SLOWER:
            source = next(m for m in METHODS if found.get(m) == b)
            again = _timed(model, out, [mine, source], samples(model)[1][0], 40)
            if again[0] < again[1] * SLOWER:
                yield f"{mine}: {again[0]:.2f} times fp32's speed, {theirs} {again[1]:.2f}"


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--redo", nargs="*", default=[], choices=METHODS)
    parser.add_argument("--no-speed", action="store_true")
    arguments = parser.parse_args()
    said: list[str] = []
    for model in arguments.models:
        name = model.parent.name if model.name == "model.onnx" else model.stem
        found = figures(model, arguments.out / name, arguments)
        for method in arguments.only:
            f = found[method]
            row = (
                f.get("error")
                or f"{f['db']:6.1f} dB {f['kib']:8.0f} KiB {f.get('speed', float('nan')):6.2f}×"
            )
            print(f"{name:24} {method:13} {row}", flush=True)
        said += [f"{name:24} {words}" for words in complaints(model, arguments.out / name, found, arguments)]
    print("\nOurs is worse:", *(said or ["nowhere"]), sep="\n")


if __name__ == "__main__":
    main()
