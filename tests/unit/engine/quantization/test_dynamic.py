"""Integer products with ranges taken at every run: rows, outliers and where factors go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from support import nets

from studio.engine import execute, graph
from studio.engine.dataset import open_data
from studio.engine.graph import node_key
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization import smoothing
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import QuantizeDynamic, Step

WIDTH = 32


def block(folder: Path, *, residual: bool, opset: int = 17) -> graph.Model:
    """A norm, two products that read it, and one behind a Relu; `residual` reads the norm once more."""
    net = nets.Net()
    gain = net.constant("gain", np.linspace(0.5, 2, WIDTH, dtype=np.float32))
    shift = net.constant("shift", np.linspace(-1, 1, WIDTH, dtype=np.float32))
    net.add("LayerNormalization", ["x", gain, shift], "normed", axis=-1)
    left = net.add("MatMul", ["normed", net.weight("wleft", WIDTH, WIDTH)], "left")
    right = net.add("MatMul", ["normed", net.weight("wright", WIDTH, WIDTH)], "right")
    both = net.add("Relu", [net.add("Add", [left, right], "both")], "positive")
    last = net.add("MatMul", [both, net.weight("wlast", WIDTH, WIDTH)], "last")
    net.add("Add", [last, "normed" if residual else "x"], "y")
    shape: list[int | str] = ["N", 4, WIDTH]
    model = net.build({"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)}, opset)
    onnx.save(model, folder / "block.onnx")
    return graph.load(folder / "block.onnx")


def samples(outlier: float = 1.0) -> np.ndarray:
    x = np.random.default_rng(3).normal(size=(8, 4, WIDTH)).astype(np.float32)
    x[..., 5] *= 30
    x[:, 0] *= outlier
    return x


def run(model: graph.Model, x: np.ndarray) -> np.ndarray:
    return execute.run(execute.session(model, threads=1), {"x": x})[0]


@pytest.mark.parametrize("residual", [False, True])
def test_factors_change_nothing_and_cost_nothing_where_only_the_products_read_a_norm(
    residual: bool, tmp_path: Path
) -> None:
    model, x = block(tmp_path, residual=residual), samples()
    rows = smoothing.watch_rows(model, ["normed"], [{"x": x}])
    treated = graph.copy(model)
    keys = [node_key(n) for n in treated.graph if n.op_type == "MatMul"][:2]
    smoothing.write(treated, keys, rows)
    assert ("Mul" in {n.op_type for n in treated.graph}) == residual
    np.testing.assert_allclose(run(treated, x), run(model, x), rtol=1e-3, atol=1e-4)
    products = [next(n for n in m.graph if n.op_type == "MatMul") for m in (model, treated)]
    before, after = (graph.constant(n.inputs[1]).numpy() for n in products)  # type: ignore[union-attr]
    assert not np.allclose(before, after)


@pytest.mark.parametrize("opset", [17, 18])
def test_a_row_of_outliers_costs_the_other_rows_nothing(opset: int, tmp_path: Path) -> None:
    model = block(tmp_path, residual=False, opset=opset)
    x = samples()
    np.savez(tmp_path / "data.npz", x=x)
    listing = list_layers(model, {"N": 8})
    data = open_data(DataSpec(path=str(tmp_path / "data.npz")), listing.inputs, {"N": 8})
    context = Context(calibration=data, threads=1)
    noise = {}
    for form in ("auto", "integer"):
        settings = QuantizeDynamic(form=form)  # type: ignore[arg-type]
        plan = plan_step(listing, Step(settings=settings), context)
        result = find(settings).apply(listing, plan, context)
        # The norm takes the size of rows away; a gain on one of them behind it does not.
        loud = _louder(result)
        noise[form] = float(np.square(run(loud, x) - run(_louder(model), x))[:, 1:].sum())
    assert noise["auto"] < 0.2 * noise["integer"]


def _louder(model: graph.Model) -> graph.Model:
    """The same model with the first row of every sample 50 times as large behind the Relu."""
    from studio.engine import edit

    changed = graph.copy(model)
    relu = next(n for n in changed.graph if n.op_type == "Relu")
    users = list(relu.outputs[0].uses())
    gains = np.ones((1, 4, 1), np.float32)
    gains[:, 0] = 50
    factor = edit.add_constant(changed, changed.graph, "louder", gains)
    new = edit.make_node(changed, "Mul", [relu.outputs[0], factor], name="louder")
    changed.graph.insert_after(relu, new)
    for node, position in users:
        node.replace_input_with(position, new.outputs[0])
    return changed


def test_rows_of_zeros_stay_zero(tmp_path: Path) -> None:
    model, x = block(tmp_path, residual=False), np.zeros((2, 4, WIDTH), np.float32)
    np.savez(tmp_path / "data.npz", x=samples())
    listing = list_layers(model, {"N": 8})
    data = open_data(DataSpec(path=str(tmp_path / "data.npz")), listing.inputs, {"N": 8})
    context = Context(calibration=data, threads=1)
    plan = plan_step(listing, Step(settings=QuantizeDynamic()), context)
    result = find(QuantizeDynamic()).apply(listing, plan, context)
    assert np.isfinite(run(result, x)).all()


def test_careful_rounding_answers_better_at_the_same_size(tmp_path: Path) -> None:
    model = block(tmp_path, residual=False)
    mixed = np.random.default_rng(5).normal(size=(6, WIDTH)).astype(np.float32)  # inputs in few directions
    x = (np.random.default_rng(6).normal(size=(16, 4, 6)) @ mixed).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    listing = list_layers(model, {"N": 16})
    data = open_data(DataSpec(path=str(tmp_path / "data.npz")), listing.inputs, {"N": 16})
    context = Context(calibration=data, threads=1)
    noise, size = {}, {}
    for preset in ("fast", "careful"):
        settings = QuantizeDynamic(preset=preset, form="integer")  # type: ignore[arg-type]
        plan = plan_step(listing, Step(settings=settings), context)
        result = find(settings).apply(listing, plan, context)
        assert list_layers(result, {"N": 16}).cost == plan.after
        noise[preset] = float(np.square(run(result, x) - run(model, x)).sum())
        size[preset] = len(graph.to_bytes(result))
    assert noise["careful"] < noise["fast"]
    assert size["careful"] == size["fast"]
    alone = Context(threads=1)
    careful = Step(settings=QuantizeDynamic(preset="careful"))
    assert any("needs calibration data" in note for note in plan_step(listing, careful, alone).notes)


def test_a_table_of_few_values_takes_on_outliers_like_other_weights(tmp_path: Path) -> None:
    """Filters of a spectrogram are mostly zero: elsewhere such constants are packed."""
    net = nets.Net()
    filters = np.tile(np.array([0, 1], np.float32), 64 * 32).reshape(64, 64)
    net.add("MatMul", ["x", net.constant("filters", filters)], "y")
    proto = net.build({"x": (TensorProto.FLOAT, ["N", 64])}, {"y": (TensorProto.FLOAT, ["N", 64])})
    onnx.save(proto, tmp_path / "m.onnx")
    model = graph.load(tmp_path / "m.onnx")
    x = np.random.default_rng(3).normal(size=(8, 64)).astype(np.float32) * np.logspace(-2, 1, 64, dtype="f4")
    np.savez(tmp_path / "data.npz", x=x)
    listing = list_layers(model, {"N": 8})
    data = open_data(DataSpec(path=str(tmp_path / "data.npz")), listing.inputs, {"N": 8})
    context = Context(calibration=data, threads=1)
    plan = plan_step(listing, Step(settings=QuantizeDynamic()), context)
    result = find(QuantizeDynamic()).apply(listing, plan, context)
    assert np.square(run(result, x) - run(model, x)).mean() < 1e-3 * np.square(run(model, x)).mean()


def test_a_layer_that_reads_one_row_a_sample_needs_no_range_by_row() -> None:
    net = nets.Net()
    x = net.add("Relu", [net.add("MatMul", ["x", net.weight("a", WIDTH, WIDTH)], "first")], "bent")
    net.add("MatMul", [x, net.weight("b", WIDTH, WIDTH)], "y")
    shapes: dict[str, list[int | str]] = {"rows": ["N", WIDTH], "tokens": ["N", 4, WIDTH]}
    several = {}
    for name, shape in shapes.items():
        proto = net.build({"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)})
        model = graph.Model(ir.from_proto(proto))
        listing = list_layers(model, {"N": 8})
        several[name] = smoothing.several_rows(list(model.graph)[-1], listing.shapes, model)
    assert several == {"rows": False, "tokens": True}


def test_what_a_run_reaches_is_its_range_whatever_other_runs_reach() -> None:
    rows = smoothing.Rows()
    small = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    rows.add(small)
    rows.add(100 * small)
    ones = np.ones(4, np.float32)
    error = np.abs(rows.sample.rounded(ones) - rows.sample.rows).reshape(2, -1).max(axis=1)
    assert error[1] == pytest.approx(100 * error[0], rel=0.05)


def test_a_channel_that_was_silent_in_the_samples_is_not_blown_up() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(64, 8)) * np.linspace(1, 40, 8)).astype(np.float32)
    x[:, 3] = 0
    rows = smoothing.Rows()
    rows.add(x)
    factors = smoothing.migration(rows, [rng.normal(size=(8, 16)).astype(np.float32)])
    assert factors.max() > 2 * factors.min(), "outliers are moved"
    assert factors[3] > 0.02 * factors.max()
