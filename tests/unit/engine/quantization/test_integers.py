"""Other integers than the usual: zero points, one scale for all channels, 16-bit activations, ranges by the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support import nets

from studio.engine import execute, graph
from studio.engine.dataset import open_for
from studio.engine.graph import Model
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization import grids, kernels
from studio.engine.quantization import weights as integers
from studio.engine.run import apply_steps
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import QuantizeStatic, Step


@pytest.fixture
def cnn(tmp_path: Path) -> tuple[Model, Context]:
    model = graph.load(nets.write("cnn", tmp_path))
    np.savez(tmp_path / "c.npz", image=nets.feed("cnn", 16)["image"])
    data = open_for(model, DataSpec(path=str(tmp_path / "c.npz")))
    return model, Context(calibration=data, threads=1)


def answer(model: Model) -> np.ndarray:
    return execute.run(execute.session(model, threads=1), nets.feed("cnn", 8))[0]


@pytest.mark.parametrize("preset", ["fast", "careful"])
@pytest.mark.parametrize(("per_channel", "symmetric"), [(True, False), (False, True), (False, False)])
def test_other_grids_of_weights_run_on_integers_too(
    cnn: tuple[Model, Context], per_channel: bool, symmetric: bool, preset: str
) -> None:
    model, context = cnn
    settings = QuantizeStatic(per_channel=per_channel, symmetric=symmetric, preset=preset)  # type: ignore[arg-type]
    result, (plan,) = apply_steps(model, [Step(settings=settings)], context, {})
    assert list_layers(result).cost.bytes == plan.after.bytes
    assert all(kernel.integer for kernel in kernels.report(result))
    assert grids.sqnr_db(answer(model), answer(result)) > 20


def test_sixteen_bits_answer_almost_as_floats_and_the_plan_says_what_they_cost(
    cnn: tuple[Model, Context],
) -> None:
    model, context = cnn
    wide = Step(settings=QuantizeStatic(activations=16))
    result, (plan,) = apply_steps(model, [wide], context, {})
    narrow, _ = apply_steps(model, [Step(settings=QuantizeStatic())], context, {})
    wanted = answer(model)
    assert grids.sqnr_db(wanted, answer(result)) > grids.sqnr_db(wanted, answer(narrow))
    assert "uint16 activations" in plan.actions[0].what
    assert any("slower" in note for note in plan.notes)
    assert any("raised" in note for note in plan_step(list_layers(model), wide, context).notes)
    kinds = {v.dtype.name for n in result.graph for v in n.outputs if n.op_type == "QuantizeLinear"}
    assert kinds == {"UINT16"}


def test_a_zero_point_stores_weights_on_one_side_more_exactly() -> None:
    w = np.random.default_rng(0).uniform(1, 2, (6, 32)).astype(np.float32)
    for axis in (0, None):
        real = integers.shifted(w, axis).real()
        assert grids.sqnr_db(w, real) > grids.sqnr_db(w, integers.per_channel(w, axis).real()) + 3
    assert (integers.shifted(np.zeros((2, 4), np.float32), 0).real() == 0).all()


@pytest.mark.parametrize(
    ("preset", "gain"), [("fast", 3), ("careful", 0)]
)  # careful has scaled the peak away
def test_ranges_by_the_answer_leave_out_a_peak_that_the_answer_does_not_feel(
    preset: str, gain: float, tmp_path: Path
) -> None:
    net = nets.Net()
    value = net.add("Conv", ["x", net.weight("w", 8, 3, 3, 3)], "h", pads=[1] * 4)
    weights = np.random.default_rng(1).normal(size=(10, 9, 1, 1)).astype(np.float32)
    weights[:, 8] = 1e-4  # hardly anybody listens to the ninth channel, which shouts
    loud = net.add(
        "Mul",
        [
            net.add("ReduceMax", ["x"], "m", axes=[1], keepdims=1),
            net.constant("g", np.full((1, 1, 1, 1), 40, np.float32)),
        ],
        "loud",
    )
    both = net.add("Concat", [net.add("Relu", [value], "r"), loud], "both", axis=1)
    net.add("GlobalAveragePool", [net.add("Conv", [both, net.constant("v", weights)], "k")], "y")
    onnx.save(net.build({"x": (1, ["N", 3, 8, 8])}, {"y": (1, ["N", 10, 1, 1])}, 17), tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x)
    model = graph.load(tmp_path / "m.onnx")
    context = Context(calibration=open_for(model, DataSpec(path=str(tmp_path / "c.npz"))), threads=1)
    wanted = execute.run(execute.session(model, threads=1), {"x": x})[0]
    left = {}
    for calibrator in ("minmax", "answer"):
        settings = QuantizeStatic(preset=preset, calibrator=calibrator)  # type: ignore[arg-type]
        result, _ = apply_steps(model, [Step(settings=settings)], context, {})
        left[calibrator] = grids.sqnr_db(wanted, execute.run(execute.session(result, threads=1), {"x": x})[0])
    assert left["answer"] > left["minmax"] + gain - 0.1
