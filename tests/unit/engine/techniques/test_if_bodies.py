"""Static int8 for layers in the bodies of Ifs: as in the main graph, where calibration takes the branch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from studio.base.errors import StudioError
from studio.engine import execute, graph
from studio.engine.dataset import open_data
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization import bodies
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.plan import Plan
from studio.records.steps import QuantizeStatic, Step

FLOAT = TensorProto.FLOAT
SETTINGS = QuantizeStatic(float_ends=False)
SIZES = {"N": 1}


def body(name: str, holder: str, rng: np.random.Generator) -> onnx.GraphProto:
    """Two convolutions of what a main graph's convolution makes; the weight of the second lies in the main graph."""
    first = numpy_helper.from_array(rng.normal(size=(8, 8, 3, 3)).astype(np.float32) / 8, f"{name}_w")
    nodes = [
        helper.make_node("Conv", ["h", f"{name}_w"], [f"{name}_a"], name=f"{name}_one", pads=[1] * 4),
        helper.make_node("Relu", [f"{name}_a"], [f"{name}_r"]),
        helper.make_node("Conv", [f"{name}_r", "shared"], [f"{name}_{holder}"], name=f"{name}_two", pads=[1] * 4),
    ]  # fmt: skip
    made = helper.make_tensor_value_info(f"{name}_{holder}", FLOAT, ["N", 4, 8, 8])
    return helper.make_graph(nodes, name, [], [made], [first])


def net(folder: Path, *, opset: int = 17, low: float = -1.0) -> Path:
    """x -> Conv -> h; then or else by the mean of x; samples whose means lie between `low` and 1."""
    rng = np.random.default_rng(0)
    numbers = {
        "w": rng.normal(size=(8, 3, 3, 3)).astype(np.float32) / 3,
        "shared": rng.normal(size=(4, 8, 3, 3)).astype(np.float32) / 8,
        "nought": np.zeros((), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="stem", pads=[1] * 4),
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "nought"], ["yes"]),
        helper.make_node(
            "If", ["yes"], ["y"], name="which", then_branch=body("up", "out", rng), else_branch=body("down", "out", rng)
        ),
    ]  # fmt: skip
    proto = helper.make_graph(
        nodes, "branches",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 3, 8, 8])], [helper.make_tensor_value_info("y", FLOAT, ["N", 4, 8, 8])],
        [numpy_helper.from_array(a, n) for n, a in numbers.items()],
    )  # fmt: skip
    path = folder / "net.onnx"
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    means = np.linspace(low, 1.0, 12).reshape(-1, 1, 1, 1)
    np.savez(folder / "net.npz", x=(rng.normal(size=(12, 3, 8, 8)) * 0.3 + means).astype(np.float32))
    return path


def treated(
    path: Path, *, calibrated: bool = True
) -> tuple[graph.Model, Plan, graph.Model | None, list[dict]]:
    listing = list_layers(graph.load(path), SIZES)
    data = open_data(DataSpec(path=str(path.with_suffix(".npz"))), listing.inputs, SIZES)
    context = Context(calibration=data if calibrated else None, threads=1)
    plan = plan_step(listing, Step(settings=SETTINGS), context)
    model = find(SETTINGS).apply(listing, plan, context) if calibrated and plan.actions else None
    return listing.model, plan, model, list(data.feeds(1))


@pytest.mark.parametrize("opset", [11, 17])
def test_both_branches_run_on_integers_and_answer_alike(opset: int, tmp_path: Path) -> None:
    original, plan, model, feeds = treated(net(tmp_path, opset=opset))
    assert model is not None
    assert len(plan.actions) == 5
    assert not plan.refusals
    graph.save(model, tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))
    counted = list_layers(graph.load(tmp_path / "out.onnx"), SIZES)
    assert counted.cost == plan.after
    assert {counted.nodes[a.layer].record.dtype for a in plan.actions} == {"int8"}
    sessions = [execute.session(m, threads=1) for m in (original, tmp_path / "out.onnx")]
    for feed in feeds:
        one, two = (execute.run(session, feed)[0] for session in sessions)
        assert np.square(one - two).sum() < 2e-3 * np.square(one).sum()


def test_a_branch_that_no_sample_takes_is_refused_in_words_and_stays_as_it_is(tmp_path: Path) -> None:
    original, plan, model, _ = treated(net(tmp_path, low=0.5))
    assert model is not None
    assert {r.layer.rsplit("/", 1)[-1] for r in plan.refusals} == {"down_one", "down_two"}
    assert all("no calibration sample" in r.reason and r.hint for r in plan.refusals)
    after = list_layers(model, SIZES)
    for refusal in plan.refusals:
        assert after.nodes[refusal.layer].record.dtype == "float32"
    assert list_layers(original, SIZES).layers != after.layers


def test_without_data_the_plan_is_a_guess_and_applying_it_is_refused(tmp_path: Path) -> None:
    path = net(tmp_path)
    _, plan, _, _ = treated(path, calibrated=False)
    assert len(plan.actions) == 5
    listing = list_layers(graph.load(path), SIZES)
    with pytest.raises(StudioError, match="calibration"):
        find(SETTINGS).apply(listing, plan, Context(threads=1))


def test_the_original_is_left_alone(tmp_path: Path) -> None:
    path = net(tmp_path)
    listing = list_layers(graph.load(path), SIZES)
    before = graph.to_bytes(listing.model)
    data = open_data(DataSpec(path=str(path.with_suffix(".npz"))), listing.inputs, SIZES)
    context = Context(calibration=data, threads=1)
    plan = plan_step(listing, Step(settings=SETTINGS), context)
    one = find(SETTINGS).apply(listing, plan, context)
    two = find(SETTINGS).apply(listing, plan, Context(calibration=data, threads=1))
    assert graph.to_bytes(one) == graph.to_bytes(two)
    assert graph.to_bytes(listing.model) == before


def test_a_body_that_is_put_back_unchanged_answers_the_same(tmp_path: Path) -> None:
    model = graph.load(net(tmp_path))
    listing = list_layers(model, SIZES)
    inside = [layer for layer in listing.nodes.values() if layer.path]
    again = model
    for path in {layer.path for layer in inside}:
        key = next(layer.record.key for layer in inside if layer.path == path)
        lifted = bodies.lift(model, path, listing.shapes, key)
        assert lifted is not None
        assert set(lifted.read) == {"h"}
        again = bodies.graft(again, path, lifted.model)
    feed = {"x": np.ones((1, 3, 8, 8), np.float32)}
    one, two = (execute.run(execute.session(m, threads=1), feed)[0] for m in (model, again))
    np.testing.assert_array_equal(one, two)


def test_layers_in_the_body_of_a_loop_are_refused_in_words(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["state", "w"], ["next"], name="turn"), helper.make_node("Identity", ["on"], ["more"])],
        "turn",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, [2, 8]),
        ],
        [helper.make_tensor_value_info("more", TensorProto.BOOL, []), helper.make_tensor_value_info("next", FLOAT, [2, 8])],
        [weight],
    )  # fmt: skip
    count = numpy_helper.from_array(np.asarray(3, np.int64), "count")
    always = numpy_helper.from_array(np.asarray(True), "always")
    proto = helper.make_graph(
        [helper.make_node("Loop", ["count", "always", "x"], ["y"], name="loop", body=inner)], "loops",
        [helper.make_tensor_value_info("x", FLOAT, [2, 8])], [helper.make_tensor_value_info("y", FLOAT, [2, 8])], [count, always],
    )  # fmt: skip
    path = tmp_path / "loop.onnx"
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    plan = plan_step(list_layers(graph.load(path)), Step(settings=SETTINGS), Context(threads=1))
    assert [("loop" in r.reason, bool(r.hint)) for r in plan.refusals] == [(True, True)]


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_preview_asks_for_calibration_data_only_where_there_are_none(
    calibrated: bool, tmp_path: Path
) -> None:
    path = net(tmp_path)
    listing = list_layers(graph.load(path), SIZES)
    data = open_data(DataSpec(path=str(path.with_suffix(".npz"))), listing.inputs, SIZES)
    context = Context(calibration=data if calibrated else None, threads=1, preview=True)
    plan = plan_step(listing, Step(settings=SETTINGS), context)
    assert plan.actions
    assert any("data are needed" in note for note in plan.notes) is not calibrated
    assert any("Should 8 bits spoil" in note for note in plan.notes) is calibrated
