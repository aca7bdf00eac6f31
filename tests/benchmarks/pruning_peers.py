"""Structured pruning beside Torch-Pruning: accuracy without training, size, time, speed.

    python tests/benchmarks/pruning_peers.py MODEL.onnx CALIBRATION.npz EVALUATION.npz [RATIO ...]
        [--torch-module FILE.pt --input-shape 1,1,28,28]

Ours works on the ONNX file. Torch-Pruning needs the model as a TorchScript-free module; with
`--torch-module` (a file of torch.save(module), trusted, since it is unpickled here) and torch_pruning
installed, it prunes that module by the same ratios and its export is scored beside ours.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from studio.base.errors import StudioError
from studio.engine.dataset import open_for
from studio.engine.execute import run, session
from studio.engine.graph import Model, load, save
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import PruneChannels, Step

_ROUNDS = 15


def ours(path: Path, calibration: Path, settings: PruneChannels) -> tuple[Model, float]:
    """The pruned model and the seconds it took, planning included."""
    started = time.perf_counter()
    model = load(path)
    listing = list_layers(model)
    data = open_for(model, DataSpec(path=str(calibration)))
    context = Context(calibration=data)
    plan = plan_step(listing, Step(settings=settings), context)
    return find(settings).apply(listing, plan, context), time.perf_counter() - started


def theirs(module_file: Path, shape: tuple[int, ...], ratio: float, folder: Path) -> tuple[Path, float]:
    """Torch-Pruning's magnitude pruner at the same ratio, exported; the last layer is ignored."""
    import torch
    import torch_pruning as tp

    module = torch.load(module_file, weights_only=False).eval()
    example = torch.randn(*shape)
    started = time.perf_counter()
    last = [m for m in module.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))][-1]
    pruner = tp.pruner.MagnitudePruner(
        module, example, tp.importance.MagnitudeImportance(p=1), pruning_ratio=ratio, ignored_layers=[last]
    )
    pruner.step()
    seconds = time.perf_counter() - started
    target = folder / "torch_pruning.onnx"
    torch.onnx.export(
        module, (example,), str(target), dynamo=False, input_names=["input"], dynamic_axes={"input": {0: "N"}}
    )
    return target, seconds


def accuracy(model: Model | Path, evaluation: Path) -> float:
    """Share of right answers of output 0."""
    with np.load(evaluation) as data:
        arrays = {name: data[name] for name in data.files}
    labels = arrays.pop("labels")
    sess = session(model)
    names = [i.name for i in sess.get_inputs()]
    if set(names) != set(arrays) and len(names) == 1 and len(arrays) == 1:
        arrays = {names[0]: next(iter(arrays.values()))}
    hits = 0
    for start in range(0, len(labels), 100):
        feed = {name: array[start : start + 100] for name, array in arrays.items()}
        hits += int((run(sess, feed)[0].argmax(axis=-1) == labels[start : start + 100]).sum())
    return hits / len(labels)


def speed(model: Model | Path, reference: Path, calibration: Path) -> float:
    """Reference time / this time at batch 1, medians of interleaved rounds."""
    with np.load(calibration) as data:
        arrays = {name: data[name][:1] for name in data.files if name != "labels"}
    both = session(reference), session(model)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(_ROUNDS + 3):
        for side in (0, 1) if number % 2 else (1, 0):
            feed = dict(zip([i.name for i in both[side].get_inputs()], arrays.values(), strict=True))
            started = time.perf_counter()
            for _ in range(10):
                run(both[side], feed)
            if number >= 3:
                times[side].append(time.perf_counter() - started)
    return float(np.median(times[0]) / np.median(times[1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("ratios", nargs="*", type=float, default=[0.25, 0.5, 0.7])
    parser.add_argument("--torch-module", type=Path)
    parser.add_argument("--input-shape", default="1,1,28,28")
    asked = parser.parse_args()
    size = asked.model.stat().st_size
    print(f"{'method':34} {'seconds':>8} {'bytes':>7} {'accuracy':>9} {'speed':>6}")
    print(f"{'original':34} {'':8} {1:7.2f} {accuracy(asked.model, asked.evaluation):9.4f} {1:6.2f}")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "ours.onnx"
        for ratio in asked.ratios:
            for name, settings in (
                (f"L1, plain, −{ratio:.0%}", PruneChannels(ratio=ratio, criterion="l1", refit=False)),
                (f"L1, refit, −{ratio:.0%}", PruneChannels(ratio=ratio, criterion="l1")),
                (f"OBS, refit, −{ratio:.0%}", PruneChannels(ratio=ratio)),
            ):
                try:
                    model, seconds = ours(asked.model, asked.calibration, settings)
                except StudioError as error:
                    print(f"{name:34} {error.sentence}")
                    continue
                share = save(model, target) / size
                print(
                    f"{name:34} {seconds:8.1f} {share:7.2f} {accuracy(target, asked.evaluation):9.4f} "
                    f"{speed(target, asked.model, asked.calibration):6.2f}"
                )
            if asked.torch_module is not None:
                shape = tuple(int(d) for d in asked.input_shape.split(","))
                path, seconds = theirs(asked.torch_module, shape, ratio, Path(folder))
                print(
                    f"{f'Torch-Pruning, L1, −{ratio:.0%}':34} {seconds:8.1f} {path.stat().st_size / size:7.2f} "
                    f"{accuracy(path, asked.evaluation):9.4f} {speed(path, asked.model, asked.calibration):6.2f}"
                )


if __name__ == "__main__":
    main()
