"""Activation-aware scaling: exact before rounding, better after it, and nothing where it cannot be folded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from studio.engine import execute, graph
from studio.engine.dataset import Dataset, open_data
from studio.engine.layers import Listing, list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization.moments import layer_moments
from studio.engine.quantization.scaling import scale_inputs
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import QuantizeWeights, Step

WIDTH = 64
# What makes the input of the product 'y', and what it reads; G: a gain with a few large entries.
KINDS = {
    "norm": ["LayerNormalization x G B -> h"],
    "gate": ["MatMul x U -> u", "MatMul x V -> v", "Sigmoid v -> s", "Mul u s -> h"],
    "relu": ["MatMul x U -> u", "Add u B -> b", "Relu b -> h"],
    "gain": ["Mul x G -> g", "Add g B -> h"],
}
LEFT = {
    "residual": ["LayerNormalization x G B -> h", "Add h x -> r"],
    "nonlinear": ["MatMul x U -> u", "Tanh u -> h"],
    "input": ["Identity x -> h"],
}


def made(lines: list[str], folder: Path, more: tuple[str, ...] = ()) -> Path:
    rng = np.random.default_rng(0)
    gain = np.where(np.arange(WIDTH) % 16 == 3, 30.0, 0.3).astype(np.float32)
    numbers = {
        "G": gain, "B": rng.normal(size=WIDTH).astype(np.float32),
        "U": (rng.normal(size=(WIDTH, WIDTH)) * gain / 8).astype(np.float32),
        "V": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8,
        "W": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8,
    }  # fmt: skip
    nodes, outputs = [], ["y", *(["r"] if any(line.endswith("r") for line in lines) else [])]
    for line in (*lines, *more, "MatMul h W -> y"):
        left, right = line.split(" -> ")
        op, *inputs = left.split()
        nodes.append(helper.make_node(op, inputs, [right], name=f"{right}_node"))
    used = {name for node in nodes for name in node.input}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, None, WIDTH]) for n in outputs]
    proto = helper.make_graph(
        nodes, "scaled", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8, WIDTH])], values,
        [numpy_helper.from_array(a, n) for n, a in numbers.items() if n in used],
    )  # fmt: skip
    path = folder / "net.onnx"
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    np.savez(folder / "net.npz", x=rng.normal(size=(32, 8, WIDTH)).astype(np.float32))
    return path


def loaded(path: Path) -> tuple[Listing, Dataset]:
    listing = list_layers(graph.load(path), {"N": 4})
    data = open_data(DataSpec(path=str(path.with_suffix(".npz"))), listing.inputs, {"N": 4})
    return listing, data


def noise(model: graph.Model, other: graph.Model, data: Dataset) -> float:
    feed = data.first()
    one, two = (execute.run(execute.session(m, threads=1), feed)[0] for m in (model, other))
    return float(np.square(one - two).sum() / np.square(one).sum())


@pytest.mark.parametrize("kind", list(KINDS))
def test_scaling_is_exact_before_rounding_and_better_after_it(kind: str, tmp_path: Path) -> None:
    listing, data = loaded(made(KINDS[kind], tmp_path))
    keys = [layer.key for layer in listing.layers]
    moments = layer_moments(listing.model, [n.node for n in listing.nodes.values()], data.feeds(), threads=1)
    scaled = scale_inputs(listing.model, keys, moments, QuantizeWeights(bits=3))
    assert scaled.layers == 1
    assert noise(listing.model, scaled.model, data) < 1e-9
    again = layer_moments(
        scaled.model, [n.node for n in list_layers(scaled.model, {"N": 4}).nodes.values()], data.feeds(), threads=1
    )  # fmt: skip
    np.testing.assert_allclose(again["y"], scaled.moments["y"], rtol=1e-2, atol=1e-2 * again["y"].max())
    noises = []
    for on in (False, True):
        settings = QuantizeWeights(bits=3, scale_inputs=on, form="unpacked")
        context = Context(calibration=data, threads=1)
        plan = plan_step(listing, Step(settings=settings, layers=("y_node",)), context)
        model = find(settings).apply(listing, plan, context)
        graph.save(model, tmp_path / "out.onnx")
        assert list_layers(graph.load(tmp_path / "out.onnx"), {"N": 4}).cost == plan.after
        noises.append(noise(listing.model, model, data))
    assert noises[1] < 0.95 * noises[0]


@pytest.mark.parametrize("kind", list(LEFT))
def test_what_cannot_take_the_factors_is_left_alone(kind: str, tmp_path: Path) -> None:
    listing, data = loaded(made(LEFT[kind], tmp_path))
    keys = [layer.key for layer in listing.layers]
    moments = layer_moments(listing.model, [n.node for n in listing.nodes.values()], data.feeds(), threads=1)
    scaled = scale_inputs(listing.model, keys, moments, QuantizeWeights(bits=3))
    assert scaled.layers == 0
    assert graph.to_bytes(scaled.model) == graph.to_bytes(listing.model)


def test_weights_that_others_read_too_are_left_alone(tmp_path: Path) -> None:
    listing, data = loaded(made(KINDS["norm"], tmp_path, more=("MatMul x W -> r",)))
    moments = layer_moments(listing.model, [n.node for n in listing.nodes.values()], data.feeds(), threads=1)
    scaled = scale_inputs(listing.model, ["y"], moments, QuantizeWeights(bits=3))
    assert scaled.layers == 0


def test_a_note_tells_that_inputs_were_scaled(tmp_path: Path) -> None:
    listing, data = loaded(made(KINDS["norm"], tmp_path))
    said: list[str] = []
    context = Context(calibration=data, threads=1, note=said.append)
    plan = plan_step(listing, Step(settings=QuantizeWeights(bits=3)), context)
    find(QuantizeWeights()).apply(listing, plan, context)
    assert any("1 layer" in words for words in said)
