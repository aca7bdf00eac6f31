"""Other integers than the usual: zero points of weights, one scale for all channels, 16-bit activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
