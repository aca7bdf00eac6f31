"""What layers read, also where a body of control flow holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import models

from studio.engine import execute, graph
from studio.engine.dataset import open_data
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization.moments import layer_moments, place
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import QuantizeWeights, Step

FLOAT = TensorProto.FLOAT
node = helper.make_node


def branches(folder: Path) -> graph.Model:
    """A convolution and a product in each branch of an If, under the same names."""

    def body(seed: int) -> onnx.GraphProto:
        weights = {"k": models.floats(16, 8, 3, seed=seed) / 4, "w": models.floats(16, 8, seed=seed + 1) / 4}
        nodes = [
            node("Conv", ["x", "k"], ["c"], pads=[1, 1]),
            node("Transpose", ["c"], ["t"], perm=[0, 2, 1]),
            node("MatMul", ["t", "w"], ["y"]),
        ]
        out = [helper.make_tensor_value_info("y", FLOAT, None)]
        stored = [numpy_helper.from_array(w.astype("f4"), n) for n, w in weights.items()]
        return helper.make_graph(nodes, "body", [], out, stored)

    nodes = [
        node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Less", ["sum", "limit"], ["low"]),
        node("If", ["low"], ["out"], name="choose", then_branch=body(1), else_branch=body(5)),
    ]
    proto = models.model(nodes, {"x": (FLOAT, ["N", 8, 20])}, ["out"], {"limit": np.float32(1e9)})
    return graph.load(models.write(proto, folder / "m.onnx"))


def samples() -> np.ndarray:
    rng = np.random.default_rng(2)
    mixed = rng.normal(size=(3, 8))  # few directions, so that rounding can be shifted where nobody looks
    return np.einsum("ntk,kc->nct", rng.normal(size=(16, 20, 3)), mixed).astype(np.float32)


def test_moments_of_a_branch_that_ran_are_those_of_its_values(tmp_path: Path) -> None:
    model, x = branches(tmp_path), samples()
    inner = [n for path, g in graph.graphs(model) if path for n in g]
    found = layer_moments(model, inner, [{"x": x}], threads=1)
    assert {key for key in found if "then" in key} == {place("choose/then_branch", key) for key in ("c", "y")}
    assert "choose/else_branch/y" not in found
    (rows,) = execute.stream(model, ["choose/then_branch/t"], [{"x": x}], threads=1)
    flat = rows["choose/then_branch/t"].reshape(-1, 16)
    np.testing.assert_allclose(found["choose/then_branch/y"][0], flat.T @ flat, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("preset", ["fast", "careful"])
def test_weights_in_a_branch_are_rounded_for_what_they_read(preset: str, tmp_path: Path) -> None:
    model, x = branches(tmp_path), samples()
    listing = list_layers(model)
    np.savez(tmp_path / "data.npz", x=x)
    data = open_data(DataSpec(path=str(tmp_path / "data.npz")), listing.inputs, dict(listing.input_sizes))
    step = Step(settings=QuantizeWeights(bits=4, block=16, preset=preset))  # type: ignore[arg-type]

    def noise(context: Context) -> float:
        result = find(step.settings).apply(listing, plan_step(listing, step, context), context)
        runs = [execute.run(execute.session(m, threads=1), {"x": x})[0] for m in (model, result)]
        return float(np.square(runs[0] - runs[1]).sum())

    assert noise(Context(calibration=data, threads=1)) < 0.5 * noise(Context(threads=1))


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_a_cells_weights_are_rounded_for_what_it_reads_and_remembers(direction: str, tmp_path: Path) -> None:
    ways = 1 if direction == "forward" else 2
    cell = node("GRU", ["x", "w", "r"], ["states"], hidden_size=32, direction=direction)
    weights = {
        "w": models.floats(ways, 96, 8, seed=1) / 2,
        "r": models.floats(ways, 96, 32, seed=2) / 4,
    }
    proto = models.model([cell], {"x": (FLOAT, ["T", "N", 8])}, ["states"], weights)
    model = graph.load(models.write(proto, tmp_path / "m.onnx"))
    x = samples().transpose(2, 0, 1)  # (T, N, features)
    listing = list_layers(model)
    found = layer_moments(model, [next(iter(model.graph))], [{"x": x}], threads=1)
    assert found["states"].shape == (1, 8, 8)
    (answers,) = execute.run(execute.session(model, threads=1), {"x": x})
    for way in range(ways):
        rows = answers[:, way].reshape(-1, 32)
        np.testing.assert_allclose(found["states recurrent"][way], rows.T @ rows, rtol=1e-3, atol=1e-2)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "0.npz", x=x)
    data = open_data(DataSpec(path=str(tmp_path / "data")), listing.inputs, dict(listing.input_sizes))
    step = Step(settings=QuantizeWeights(bits=4, block=32))

    def noise(context: Context) -> float:
        result = find(step.settings).apply(listing, plan_step(listing, step, context), context)
        return float(np.square(execute.run(execute.session(result, threads=1), {"x": x})[0] - answers).sum())

    assert noise(Context(calibration=data, threads=1)) < 0.7 * noise(Context(threads=1))
