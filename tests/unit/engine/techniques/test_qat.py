"""Quantization-aware training: quantizers in the graph, better than rounding alone, the same answers in both runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from support.nets import Net

from studio.base.errors import Cancelled
from studio.base.progress import Progress
from studio.engine import execute, graph
from studio.engine.dataset import Dataset, open_data
from studio.engine.graph import Model
from studio.engine.layers import Listing, list_layers
from studio.engine.planning import plan_step
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.engine.trainable import GraphModule
from studio.records.measure import DataSpec
from studio.records.steps import Qat, Step


def conv_net(folder: Path) -> tuple[Listing, Dataset]:
    net = Net(seed=8)
    net.add("Conv", ["x", net.weight("w1", 8, 1, 3, 3), net.weight("b1", 8)], "c1", pads=[1, 1, 1, 1])
    net.add("Relu", ["c1"], "r1")
    net.add(
        "Conv",
        ["r1", net.weight("w2", 16, 8, 3, 3), net.weight("b2", 16)],
        "c2",
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    )
    net.add("Relu", ["c2"], "r2")
    net.add("GlobalAveragePool", ["r2"], "p")
    net.add("Flatten", ["p"], "f")
    net.add("Gemm", ["f", net.weight("w3", 6, 16), net.weight("b3", 6)], "y", transB=1)
    proto = net.build({"x": (TensorProto.FLOAT, ["N", 1, 8, 8])}, {"y": (TensorProto.FLOAT, ["N", 6])})
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    listing = list_layers(graph.load(folder / "net.onnx"))
    x = np.random.default_rng(0).normal(size=(300, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=x)
    return listing, open_data(
        DataSpec(path=str(folder / "data.npz")), listing.inputs, dict(listing.input_sizes)
    )


def residual_net(folder: Path) -> tuple[Listing, Dataset]:
    """Two residual blocks, whose sums are where rounding is judged."""
    net = Net(seed=8)
    net.add("Conv", ["x", net.weight("w0", 8, 1, 3, 3), net.weight("b0", 8)], "y0", pads=[1, 1, 1, 1])
    for n in (1, 2):
        before = f"y{n - 1}"
        net.add(
            "Conv",
            [before, net.weight(f"w{n}", 8, 8, 3, 3), net.weight(f"b{n}", 8)],
            f"c{n}",
            pads=[1, 1, 1, 1],
        )
        net.add("Relu", [f"c{n}"], f"r{n}")
        net.add("Conv", [f"r{n}", net.weight(f"v{n}", 8, 8, 1, 1), net.weight(f"d{n}", 8)], f"e{n}")
        net.add("Add", [f"e{n}", before], f"y{n}")
    net.add("GlobalAveragePool", ["y2"], "p")
    net.add("Flatten", ["p"], "f")
    net.add("Gemm", ["f", net.weight("w3", 6, 8), net.weight("b3", 6)], "y", transB=1)
    proto = net.build({"x": (TensorProto.FLOAT, ["N", 1, 8, 8])}, {"y": (TensorProto.FLOAT, ["N", 6])})
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    listing = list_layers(graph.load(folder / "net.onnx"))
    np.savez(folder / "data.npz", x=np.random.default_rng(0).normal(size=(300, 1, 8, 8)).astype(np.float32))
    data = DataSpec(path=str(folder / "data.npz"))
    return listing, open_data(data, listing.inputs, dict(listing.input_sizes))


def outputs(model: Model, data: Dataset) -> np.ndarray:
    return np.concatenate([o[0] for o in execute.outputs(model, data.feeds(), Progress(), threads=1)])


def trained(listing: Listing, data: Dataset, how: Qat) -> Model:
    context = Context(calibration=data, threads=1)
    plan = plan_step(listing, Step(settings=how), context)
    model = find(how).apply(listing, plan, context)
    assert list_layers(model, dict(listing.input_sizes)).cost == plan.after
    return model


@pytest.mark.parametrize("bits", [3, 8])
def test_training_beats_rounding_and_the_file_needs_no_conversion(tmp_path: Path, bits: int) -> None:
    listing, data = conv_net(tmp_path)
    wanted = outputs(listing.model, data)
    start = trained(listing, data, Qat(weights=bits, steps=1, rate=1e-9, batch=32))
    done = trained(listing, data, Qat(weights=bits, steps=80, rate=5e-3, batch=32))
    errors = [float(np.square(outputs(m, data) - wanted).mean()) for m in (start, done)]
    assert errors[1] < (0.7 if bits == 3 else 1.05) * errors[0]
    kinds = {layer.dtype for layer in list_layers(done).layers}
    assert kinds == {"int4" if bits <= 4 else "int8"}


@pytest.mark.parametrize("residual", [False, True])
def test_learned_rounding_beats_the_nearest_and_repeats_bit_for_bit(tmp_path: Path, residual: bool) -> None:
    listing, data = residual_net(tmp_path) if residual else conv_net(tmp_path)
    wanted = outputs(listing.model, data)
    nearest = trained(listing, data, Qat(weights=3, steps=1, rate=1e-9, batch=32))
    how = Qat(weights=3, steps=100, batch=64, learns="rounding")
    learned, again = trained(listing, data, how), trained(listing, data, how)
    errors = [float(np.square(outputs(m, data) - wanted).mean()) for m in (nearest, learned)]
    assert errors[1] < 0.8 * errors[0]
    assert graph.to_bytes(learned) == graph.to_bytes(again)


def test_torch_and_onnxruntime_choose_the_same_classes(tmp_path: Path) -> None:
    listing, data = conv_net(tmp_path)
    model = trained(listing, data, Qat(weights=4, steps=20, rate=2e-3, batch=32))
    module = GraphModule(model)
    ours = np.concatenate([module.numpy(feed)["y"] for feed in data.feeds()])
    theirs = outputs(model, data)
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.99
    np.testing.assert_allclose(ours, theirs, atol=float(np.ptp(theirs)) / 64)


def test_narrow_weights_still_run_on_the_runtimes_integer_kernels(tmp_path: Path) -> None:
    listing, data = conv_net(tmp_path)
    model = trained(listing, data, Qat(weights=4, steps=1, batch=32))
    written = tmp_path / "optimized.onnx"
    execute.session(model, threads=1, optimized=written)
    ops = [n.op_type for n in graph.nodes(graph.load(written))]
    assert ops.count("QLinearConv") == 2
    assert "Conv" not in ops


def test_without_samples_it_is_refused(tmp_path: Path) -> None:
    listing, _ = conv_net(tmp_path)
    plan = plan_step(listing, Step(settings=Qat()), Context())
    assert not plan.actions
    assert all("samples" in r.reason for r in plan.refusals)


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.engine.training.checkpoint._FIRST", 0.0)
    monkeypatch.setattr("studio.engine.training.checkpoint._SHARE", 1e9)
    monkeypatch.setattr("studio.engine.training.checkpoint._SELDOM", 0.0)
    listing, data = conv_net(tmp_path)
    how = Qat(weights=4, steps=20, rate=2e-3, batch=32)
    plan = plan_step(listing, Step(settings=how), Context(calibration=data, threads=1))
    whole = find(how).apply(listing, plan, Context(calibration=data, threads=1))
    seen: list[int] = []
    dying = Context(
        progress=Progress(cancelled=lambda: len(seen) >= 12), calibration=data, threads=1,
        scratch=tmp_path / "scratch", trained=lambda step, *_: seen.append(step),
    )  # fmt: skip
    with pytest.raises(Cancelled):
        find(how).apply(listing, plan, dying)
    notes: list[str] = []
    again = Context(calibration=data, threads=1, scratch=tmp_path / "scratch", note=notes.append)
    resumed = find(how).apply(listing, plan, again)
    assert "going on at step 1" in notes[0]
    assert graph.to_bytes(resumed) == graph.to_bytes(whole)


@pytest.mark.parametrize("seen_before", [7, 20, 32])
def test_learning_to_round_goes_on_in_the_block_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_before: int
) -> None:
    monkeypatch.setattr("studio.engine.training.checkpoint._FIRST", 0.0)
    monkeypatch.setattr("studio.engine.training.checkpoint._SHARE", 1e9)
    monkeypatch.setattr("studio.engine.training.checkpoint._SELDOM", 0.0)
    listing, data = conv_net(tmp_path)
    how = Qat(weights=3, steps=12, batch=64, learns="rounding")  # 3 blocks
    plan = plan_step(listing, Step(settings=how), Context(calibration=data, threads=1))
    whole = find(how).apply(listing, plan, Context(calibration=data, threads=1))
    seen: list[int] = []
    dying = Context(
        progress=Progress(cancelled=lambda: len(seen) >= seen_before), calibration=data, threads=1,
        scratch=tmp_path / "scratch", trained=lambda step, *_: seen.append(step),
    )  # fmt: skip
    with pytest.raises(Cancelled):
        find(how).apply(listing, plan, dying)
    first: list[int] = []
    again = Context(
        calibration=data, threads=1, scratch=tmp_path / "scratch", trained=lambda step, *_: first.append(step)
    )
    resumed = find(how).apply(listing, plan, again)
    assert seen_before <= first[0] <= seen_before + 1
    assert graph.to_bytes(resumed) == graph.to_bytes(whole)


def test_learning_to_round_can_be_ended_early_and_tells_how_far_it_is(tmp_path: Path) -> None:
    listing, data = conv_net(tmp_path)
    how = Qat(weights=3, steps=50, batch=64, learns="rounding")
    seen: list[tuple[int, int]] = []
    context = Context(
        calibration=data, threads=1, enough=lambda: len(seen) >= 60,
        trained=lambda step, total, *_: seen.append((step, total)),
    )  # fmt: skip
    plan = plan_step(listing, Step(settings=how), context)
    model = find(how).apply(listing, plan, context)
    assert seen[-1] == (60, 150)
    assert list_layers(model, dict(listing.input_sizes)).cost == plan.after
