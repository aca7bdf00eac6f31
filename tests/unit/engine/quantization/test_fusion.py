"""What static int8 writes really becomes integer kernels in onnxruntime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from support import nets
from support.nets import Net

from studio.base.errors import StudioError
from studio.engine import execute
from studio.engine.dataset import open_data
from studio.engine.graph import Model, infer_shapes
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization import calibrate, grids
from studio.engine.quantization import weights as integers
from studio.engine.quantization.calibrate import Watch, choose_range, observe
from studio.engine.quantization.search import Judge
from studio.engine.quantization.static import Choice, Workshop, ranges_of
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import QuantizeStatic, Step

Array = npt.NDArray[Any]


def kernels(model: Model, folder: Path) -> Counter[str]:
    path = folder / "optimized.onnx"
    execute.session(model, threads=1, optimized=path)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def quantized(model: Model, feed: dict[str, Array], keys: list[str] | None = None) -> Model:
    listing = list_layers(model, {"N": 2})
    shop = Workshop(model, listing.shapes, keys or [layer.key for layer in listing.layers])
    ranges = ranges_of(
        observe(shop.model, shop.watches(), [feed], threads=1), lambda o: choose_range(o, "minmax")
    )
    found = {key: integers.per_channel(shop.weight(key), shop.axis(key)) for key in shop.layers}
    return shop.build(Choice(found, ranges))


def sqnr(model: Model, other: Model, feed: dict[str, Array]) -> float:
    a, b = (execute.run(execute.session(m, threads=1), feed)[0] for m in (model, other))
    return grids.sqnr_db(a, b)


def test_a_residual_network_runs_on_integers_from_end_to_end(tmp_path: Path) -> None:
    model = Model(ir.from_proto(nets.cnn(constants=True, opset=12)))
    feed = nets.feed("cnn", 8)
    result = quantized(model, feed)
    found = kernels(result, tmp_path)
    assert found["QLinearConv"] == 4
    assert found["QLinearAdd"] == found["QLinearGlobalAveragePool"] == found["QGemm"] == 1
    assert not found.keys() & {"Conv", "FusedConv", "Gemm", "Relu", "Clip", "Add"}
    assert sqnr(model, result, feed) > 25


def _gated(net: Net) -> Model:
    x = net.add("Conv", ["x", net.weight("w", 8, 3, 3, 3), net.weight("b", 8)], "conv")
    x = net.add("HardSwish", [x], "swish")
    x = net.add("Mul", [x, net.constant("gain", np.float32(1.3))], "gained")
    x = net.add("Add", [x, net.constant("lift", np.float32(-0.4))], "lifted")
    p = net.add("GlobalAveragePool", [x], "pooled")
    g = net.add("Conv", [p, net.weight("w2", 8, 8, 1, 1), net.weight("b2", 8)], "gate")
    x = net.add("Mul", [x, net.add("HardSigmoid", [g], "sigmoid")], "gated")
    up = net.add(
        "Resize", [x, "", net.constant("scales", np.array([1, 1, 2, 2], np.float32))], "up", mode="nearest"
    )
    x = net.add(
        "Concat",
        [
            up,
            net.add(
                "Slice",
                [up, *(net.constant(n, np.array([v], np.int64)) for n, v in (("s", 0), ("e", 4), ("a", 1)))],
                "part",
            ),
        ],
        "joined",
        axis=1,
    )
    net.add("Conv", [x, net.weight("w3", 4, 12, 3, 3), net.weight("b3", 4)], "y", pads=[1] * 4)
    return Model(
        ir.from_proto(
            net.build(
                {"x": (TensorProto.FLOAT, ["N", 3, 10, 10])}, {"y": (TensorProto.FLOAT, ["N", 4, "H", "W"])}
            )
        )
    )


def _silu(net: Net, x: str, name: str) -> str:
    return net.add("Mul", [x, net.add("Sigmoid", [x], f"{name}_gate")], name)


def _silu_net(reach: float) -> Model:
    net = Net(7)
    x = _silu(
        net, net.add("Conv", ["x", net.weight("w", 8, 3, 3, 3), net.constant("b", _spread(reach))], "a"), "s"
    )
    p = net.add("GlobalAveragePool", [x], "pooled")
    g = net.add("Conv", [p, net.weight("w2", 8, 8, 1, 1), net.constant("b2", _spread(reach)[::-1])], "g")
    x = net.add("Mul", [x, net.add("Sigmoid", [g], "gate")], "gated")
    net.add("Conv", [x, net.weight("w3", 4, 8, 3, 3), net.weight("b3", 4)], "y")
    shape = (TensorProto.FLOAT, ["N", 3, 10, 10]), (TensorProto.FLOAT, ["N", 4, "H", "W"])
    return Model(ir.from_proto(net.build({"x": shape[0]}, {"y": shape[1]})))


def _spread(reach: float) -> Array:
    return np.linspace(-reach, reach, 8).astype(np.float32)


def test_silu_and_gates_run_on_integers(tmp_path: Path) -> None:
    model = _silu_net(2.0)
    feed = {"x": np.random.default_rng(0).normal(size=(4, 3, 10, 10)).astype(np.float32)}
    result = quantized(model, feed)
    found = kernels(result, tmp_path)
    assert found["QLinearConv"] == 3
    assert found["QLinearSigmoid"] == found["QLinearMul"] == 2
    assert found["DequantizeLinear"] == found["QuantizeLinear"] == 1, "only at the model's ends"
    assert sqnr(model, result, feed) > 25


def test_grids_leave_out_what_silu_and_gates_make_nothing_of() -> None:
    model = _silu_net(30.0)
    shop = Workshop(model, list_layers(model, {"N": 2}).shapes, ["a", "g", "y"])
    assert (shop.placed.sites["a"].low, shop.placed.sites["a"].high) == (-8.0, np.inf)
    assert shop.placed.sites["g"].low == -shop.placed.sites["g"].high == -6.24
    feed = {"x": np.random.default_rng(0).normal(size=(4, 3, 10, 10)).astype(np.float32)}
    assert sqnr(model, quantized(model, feed), feed) > 30


def test_gates_with_scales_and_shifts_cost_two_integer_operators(tmp_path: Path) -> None:
    model = _gated(Net(5))
    feed = {"x": np.random.default_rng(0).normal(size=(4, 3, 10, 10)).astype(np.float32)}
    result = quantized(model, feed)
    found = kernels(result, tmp_path)
    assert found["QLinearConv"] == 3
    assert found["QLinearAdd"] == 1, "the shift inside hardswish; lift and gain are part of a grid"
    assert found["QLinearMul"] == 2
    assert found["QLinearConcat"] == found["Resize"] == 1
    assert found["DequantizeLinear"] == found["QuantizeLinear"] == 1, "only at the model's ends"
    assert sqnr(model, result, feed) > 25
    off = execute.run(execute.session(result, threads=1, optimize="off"), feed)[0]
    on = execute.run(execute.session(result, threads=1), feed)[0]
    assert grids.sqnr_db(off, on) > 40, "the fused kernels answer as the standard says"


def test_a_pool_of_largest_values_does_not_keep_its_neighbours_from_integers(tmp_path: Path) -> None:
    net = Net(6)
    x = net.add("Conv", ["x", net.weight("w", 8, 3, 3, 3), net.weight("b", 8)], "first")
    x = net.add("MaxPool", [net.add("Relu", [x], "bent")], "small", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Conv", [x, net.weight("w2", 4, 8, 1, 1), net.weight("b2", 4)], "y")
    proto = net.build(
        {"x": (TensorProto.FLOAT, ["N", 3, 10, 10])}, {"y": (TensorProto.FLOAT, ["N", 4, 4, 4])}
    )
    feed = {"x": np.random.default_rng(0).normal(size=(4, 3, 10, 10)).astype(np.float32)}
    model = Model(ir.from_proto(proto))
    result = quantized(model, feed)
    assert kernels(result, tmp_path)["QLinearConv"] == 2
    assert sqnr(model, result, feed) > 25


def test_a_dead_channel_keeps_its_bias() -> None:
    net = Net(7)
    weight = net.rng.normal(size=(8, 3, 3, 3)).astype(np.float32)
    weight[0] = 1e-12
    bias = np.full(8, 3.0, np.float32)
    x = net.add("Conv", ["x", net.constant("w", weight), net.constant("b", bias)], "first")
    net.add("Conv", [x, net.weight("w2", 4, 8, 1, 1), net.weight("b2", 4)], "y")
    proto = net.build(
        {"x": (TensorProto.FLOAT, ["N", 3, 10, 10])}, {"y": (TensorProto.FLOAT, ["N", 4, 8, 8])}
    )
    feed = {"x": np.random.default_rng(0).normal(size=(4, 3, 10, 10)).astype(np.float32)}
    model = Model(ir.from_proto(proto))
    assert sqnr(model, quantized(model, feed), feed) > 30


def test_layers_that_were_not_asked_for_stay_in_float(tmp_path: Path) -> None:
    model = Model(ir.from_proto(nets.cnn()))
    found = kernels(quantized(model, nets.feed("cnn", 8), ["stem"]), tmp_path)
    assert found["QLinearConv"] == 1


def test_no_samples_and_values_that_are_no_numbers_are_refused_in_words() -> None:
    model = Model(ir.from_proto(nets.cnn()))
    watches = [Watch("stem_relu", 4, 0.0)]
    with pytest.raises(StudioError, match="no sample"):
        observe(model, watches, [], threads=1)
    bad = nets.feed("cnn", 1)
    bad["image"][0, 0, 0, 0] = np.nan
    with pytest.raises(StudioError, match="NaN"):
        observe(model, [Watch("point", 4)], [bad], threads=1)


def test_ranges_and_means_are_those_of_the_values() -> None:
    model = Model(ir.from_proto(nets.cnn()))
    feeds = [nets.feed("cnn", 3, seed) for seed in range(3)]
    seen = observe(model, [Watch("point", 4), Watch("logits", 2)], feeds, threads=1, samples=True)
    values = list(execute.stream(model, ["point", "logits"], feeds, threads=1))
    point, logits = (np.concatenate([v[n] for v in values]) for n in ("point", "logits"))
    assert seen["point"].low == pytest.approx(point.min())
    assert seen["point"].high == pytest.approx(point.max())
    np.testing.assert_allclose(seen["point"].mean, point.mean(axis=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(seen["logits"].mean, logits.mean(axis=0), rtol=1e-3, atol=1e-4)
    assert set(seen["point"].sample) <= set(point.ravel())


def test_shapes_tell_nothing_that_breaks_a_constant_model() -> None:
    model = Model(ir.from_proto(nets.cnn(constants=True)))
    shop = Workshop(model, infer_shapes(model, {"N": 2}), [])
    assert not shop.layers
    assert not shop.placed.sites


def test_what_a_gate_closes_takes_no_part_of_the_grid() -> None:
    model = _gated(Net(5))
    shop = Workshop(model, infer_shapes(model, {"N": 2}), ["conv"])
    (name,) = {shop.source("conv"), "conv"} - {"x"}
    assert shop.placed.sites[name].low == -3, "below, hardswish is zero"
    feed = {"x": 9 * np.random.default_rng(0).normal(size=(4, 3, 10, 10)).astype(np.float32)}
    seen = observe(shop.model, shop.watches(), [feed], threads=1, samples=True)
    assert seen[name].low == seen[name].sample.min() == -3
    assert sqnr(model, quantized(model, feed), feed) > 25


def test_the_walk_over_the_data_ends_when_ranges_have_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_FEWEST_BYTES", 0)
    model = Model(ir.from_proto(nets.cnn()))
    read = []

    def feeds() -> Any:
        for seed in range(200):
            read.append(seed)
            yield nets.feed("cnn", 1, seed)

    some = observe(model, [Watch("point", 4)], feeds(), threads=1, settle=True)
    assert 16 <= len(read) < 200
    every = observe(model, [Watch("point", 4)], feeds(), threads=1)
    assert some["point"].high == pytest.approx(every["point"].high, rel=0.3)


def test_a_few_bytes_are_read_to_their_end_for_they_may_begin_with_silence() -> None:
    model = Model(ir.from_proto(nets.cnn()))
    quiet, loud = ({k: v * by for k, v in nets.feed("cnn", 1, 0).items()} for by in (0.01, 1.0))
    feeds = [*[quiet] * 60, loud]
    some = observe(model, [Watch("point", 4)], feeds, threads=1, settle=True)
    assert some["point"].high == observe(model, [Watch("point", 4)], [loud], threads=1)["point"].high


def test_the_judge_learns_on_the_walk_what_the_model_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_FEWEST_BYTES", 0)
    model = Model(ir.from_proto(nets.cnn()))
    feeds = [nets.feed("cnn", 1, seed % 2) for seed in range(60)]
    judge = Judge(threads=1, most=40)
    read = iter(feeds)
    observe(model, [Watch("point", 4)], read, threads=1, settle=True, judge=judge)
    walked = len(feeds) - len(list(read))
    assert judge.feeds == feeds[:walked]
    assert judge.noise(model) < 1e-9
    assert not judge.full
    observe(model, [Watch("point", 4)], feeds, threads=1, judge=judge)
    assert judge.full
    assert len(judge.feeds) == 40


@pytest.mark.parametrize("preset", ["fast", "careful"])
def test_weights_that_layers_share_are_stored_once(preset: str, tmp_path: Path) -> None:
    net = Net(3)
    w = net.weight("w", 8, 8, 3, 3)
    x = net.add("Conv", ["x", w], "a", pads=[1] * 4)
    x = net.add("Conv", [net.add("Relu", [x], "bent"), w], "b", pads=[1] * 4)
    net.add("Conv", [net.add("Relu", [x], "more"), w], "y", pads=[1] * 4)
    shape: list[int | str] = ["N", 8, 10, 10]
    proto = net.build({"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)})
    listing = list_layers(Model(ir.from_proto(proto)), {"N": 4})
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).normal(size=(4, 8, 10, 10)).astype(np.float32))
    data = open_data(DataSpec(path=str(tmp_path / "c.npz")), listing.inputs, {"N": 4})
    context = Context(calibration=data, threads=1)
    settings = QuantizeStatic(preset=preset, float_ends=False)  # type: ignore[arg-type]
    plan = plan_step(listing, Step(settings=settings), context)
    result = find(settings).apply(listing, plan, context)
    stored = [v for v in result.graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert [tuple(v.shape or ()) for v in stored] == [(8, 8, 3, 3)]
    assert kernels(result, tmp_path)["QLinearConv"] == 3
    assert list_layers(result, {"N": 4}).cost.bytes == plan.after.bytes


def test_integers_that_are_trained_apart_are_stored_apart() -> None:
    net = Net(3)
    x = net.add("Conv", ["x", net.weight("w", 4, 4, 1, 1)], "a")
    net.add("Conv", [x, "w"], "y")
    shape: list[int | str] = ["N", 4, 5, 5]
    proto = net.build({"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)})
    model = Model(ir.from_proto(proto))
    shop = Workshop(model, list_layers(model, {"N": 2}).shapes, ["a", "y"])
    counts = []
    for share in (True, False):
        built = shop.build(shop.blank(), share=share)
        counts.append(sum(v.dtype == ir.DataType.INT8 for v in built.graph.initializers.values()))
    assert counts == [1, 2]
