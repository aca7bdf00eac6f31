"""Half precision leaves alone what the runtime cannot take in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import models

from studio.base.errors import StudioError
from studio.engine import execute, graph
from studio.engine.layers import Listing, list_layers
from studio.engine.planning import plan_step
from studio.engine.run import apply_steps
from studio.engine.techniques.contract import Context
from studio.records.steps import Fp16, Step

STEP = Step(settings=Fp16(), layers=("*",))


def rows_swapped(perm: list[int], path: Path) -> Listing:
    """x (3, 4, 8) through a Relu, transposed, times a constant: the end of a recurrent net."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=perm),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    weights = {"w": models.floats([3, 4, 8][perm[-1]], 5), "shape": np.array([3, 4, 8])}
    net = models.model(nodes, {"x": (TensorProto.FLOAT, [3, 4, 8])}, ["y"], weights)
    return list_layers(graph.load(models.write(net, path)))


@pytest.mark.parametrize("perm", [[1, 0, 2], [0, 2, 1]])
def test_a_matmul_that_would_bring_the_runtime_down_is_refused(perm: list[int], tmp_path: Path) -> None:
    plan = plan_step(rows_swapped(perm, tmp_path / "m.onnx"), STEP, Context())
    assert bool(plan.refusals) == (perm == [1, 0, 2])


def test_what_stands_around_such_a_matmul_runs_in_half_precision(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"]),
        helper.make_node("Reshape", ["h", "shape"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    weights = {"v": models.floats(8, 8), "w": models.floats(8, 5, seed=1), "shape": np.array([3, 4, 8])}
    net = models.model(nodes, {"x": (TensorProto.FLOAT, [3, 4, 8])}, ["y"], weights)
    source = models.write(net, tmp_path / "m.onnx")
    model, plans = apply_steps(graph.load(source), (STEP,), Context(), {})
    assert len(plans[0].actions) == 1
    x = {"x": models.floats(3, 4, 8)}
    (half,) = execute.run(execute.session(model, threads=1), x)
    (full,) = execute.run(execute.session(source, threads=1), x)
    np.testing.assert_allclose(half, full, atol=0.05)


def test_a_constant_that_is_handed_on_by_an_identity_is_stored_once_in_half(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["g"], ["same"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["h", "g"], ["a"]),
        helper.make_node("Mul", ["a", "same"], ["y"]),
    ]
    weights = {"w": models.floats(8, 8), "g": models.floats(8, seed=1)}
    net = models.model(nodes, {"x": (TensorProto.FLOAT, [2, 8])}, ["y"], weights)
    net.graph.value_info.append(helper.make_tensor_value_info("same", TensorProto.FLOAT, [8]))
    source = models.write(net, tmp_path / "m.onnx")
    model, plans = apply_steps(graph.load(source), (STEP,), Context(), {})
    assert list_layers(model).cost.bytes == plans[0].after.bytes == 2 * (64 + 8)
    x = {"x": models.floats(2, 8)}
    (half,) = execute.run(execute.session(model, threads=1), x)
    (full,) = execute.run(execute.session(source, threads=1), x)
    np.testing.assert_allclose(half, full, atol=0.05)


def test_what_is_kept_is_the_name_of_something(tmp_path: Path) -> None:
    listing = rows_swapped([0, 2, 1], tmp_path / "m.onnx")
    for kept in ("MatMul", "Resh*"):  # an operator of a layer, and one without weights
        plan_step(listing, Step(settings=Fp16(keep=(kept,)), layers=("*",)), Context())
    with pytest.raises(StudioError, match="called 'Softmax'"):
        plan_step(listing, Step(settings=Fp16(keep=("MatMul", "Softmax")), layers=("*",)), Context())
