"""Zero points that are looked for, and may lie between two codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support import nets

from studio.base.errors import StudioError
from studio.engine import execute, graph
from studio.engine.layers import float_weights, list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization import blocks, zero_points
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records.steps import QuantizeWeights, Step

SIZES = {"N": 4, "T": 12}
WEIGHTS = arrays(np.float32, (3, 2, 16), elements=st.floats(-8, 8, width=32))
BITS = pytest.mark.parametrize("bits", [2, 3, 4])


def error(parts: np.ndarray, found: tuple[np.ndarray, np.ndarray], bits: int) -> np.ndarray:
    scale, zero = found
    codes = np.clip(np.rint(parts / scale + zero), 0, 2**bits - 1)
    return np.square(parts - (codes - zero) * scale).sum(-1)


@BITS
@given(parts=WEIGHTS)
@settings(max_examples=40, deadline=None)
def test_least_squares_are_never_worse_than_the_whole_range(bits: int, parts: np.ndarray) -> None:
    low, reach = parts.min(-1, keepdims=True), np.ptp(parts, axis=-1, keepdims=True)
    step = reach / (2**bits - 1)
    plain = step[..., 0] ** 2 / 4 * parts.shape[-1]
    found = error(parts, zero_points.least_squares(parts, None, bits), bits)
    assert (found <= plain + 1e-6 * (1 + np.square(low[..., 0]) + np.square(reach[..., 0]))).all()


@BITS
@pytest.mark.parametrize("integer", [True, False])
def test_a_half_quadratic_grid_serves_most_weights_where_one_is_far_out(bits: int, integer: bool) -> None:
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(64, 4, 32))
    scale, zero = zero_points.half_quadratic(parts, bits, integer=integer)
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert not integer or ((zero == np.rint(zero)) & (zero >= 0) & (zero < 2**bits)).all()
    low, reach = parts.min(-1, keepdims=True), np.ptp(parts, axis=-1, keepdims=True)
    step = reach / (2**bits - 1)
    plain = np.abs(parts - (np.rint((parts - low) / step) * step + low)) ** 0.7
    codes = np.clip(np.rint(parts / scale + zero), 0, 2**bits - 1)
    assert integer or (np.abs(parts - (codes - zero) * scale) ** 0.7).sum() <= plain.sum()


@BITS
def test_equal_weights_in_a_block_are_met_exactly(bits: int) -> None:
    for value in (0.0, 0.3, -2.0):
        w = np.full((2, 32), value, np.float32)
        for solver in ("squares", "hqq"):
            real = blocks.fit(w, 16, bits, symmetric=False, solver=solver, float_zeros=True).real()  # type: ignore[arg-type]
            np.testing.assert_allclose(real, w, rtol=1e-5)


@pytest.mark.parametrize("solver", ["squares", "hqq"])
def test_what_is_no_number_is_refused_in_words(solver: str) -> None:
    with pytest.raises(StudioError, match="Cannot quantize"):
        blocks.fit(
            np.full((2, 32), np.nan, np.float32), 16, 4, symmetric=False, solver=solver, float_zeros=True
        )  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [2, 4])
def test_float_zero_points_come_nearer_to_the_weights(bits: int) -> None:
    w = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    noise = [
        np.square(w - blocks.fit(w, 32, bits, symmetric=False, float_zeros=floats).real()).sum()
        for floats in (False, True)
    ]
    assert noise[1] < 0.95 * noise[0]


@pytest.mark.parametrize("solver", ["squares", "hqq"])
@pytest.mark.parametrize(("bits", "form"), [(2, "auto"), (3, "auto"), (4, "auto"), (4, "unpacked")])
def test_float_zero_points_run_cost_what_was_planned_and_are_read_back(
    solver: str, bits: int, form: str, tmp_path: Path
) -> None:
    listing = list_layers(graph.load(nets.write("transformer", tmp_path)), SIZES)
    chosen = QuantizeWeights(bits=bits, block=16, symmetric=False, zeros="float", solver=solver, form=form)  # type: ignore[arg-type]
    plan = plan_step(listing, Step(settings=chosen), Context(threads=1))
    if any("MatMulNBits" in action.what for action in plan.actions):
        assert any("third of the speed" in note for note in plan.notes)
    model = find(chosen).apply(listing, plan, Context(threads=1))
    graph.save(model, tmp_path / "out.onnx")
    counted = list_layers(graph.load(tmp_path / "out.onnx"), SIZES)
    assert counted.cost == plan.after
    feed = nets.feed("transformer", 4)
    wanted = execute.run(execute.session(listing.model, threads=1), feed)[0]
    got = execute.run(execute.session(model, threads=1), feed)[0]
    assert np.square(got - wanted).sum() < (0.9 if bits < 4 else 0.2) * np.square(wanted).sum()
    for name, layer in counted.nodes.items():
        if layer.node.op_type == "MatMulNBits":
            old, new = float_weights(listing.nodes[name]), float_weights(layer)
            assert old is not None
            assert new is not None
            assert np.square(new - old).sum() < 0.5 * np.square(old).sum()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (QuantizeWeights(zeros="float"), "no zero points"),
        (QuantizeWeights(solver="hqq"), "HQQ"),
        (QuantizeWeights(bits=8, symmetric=False, zeros="float"), "up to 4 bits"),
        (QuantizeWeights(symmetric=False, zeros="float", form="qdq"), "integers"),
    ],
)
def test_grids_that_do_not_exist_are_refused_in_words(
    chosen: QuantizeWeights, said: str, tmp_path: Path
) -> None:
    listing = list_layers(graph.load(nets.write("transformer", tmp_path)), SIZES)
    plan = plan_step(listing, Step(settings=chosen), Context(threads=1))
    products = [r for r in plan.refusals if listing.nodes[r.layer].node.op_type == "MatMul"]
    assert products
    assert all(said in r.reason and r.hint for r in products)
