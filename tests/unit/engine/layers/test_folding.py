"""Weights that exporters compute from constants are stored as computed where a technique wants them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import models

from studio.engine import execute, graph
from studio.engine.layers import Listing, list_layers, with_weights_folded
from studio.engine.planning import plan_step
from studio.engine.run import apply_steps
from studio.engine.techniques.contract import Context
from studio.records.steps import AnySettings, PruneChannels, Sparsify, Step

GATES, SIZE = 4, 6


def reordered(name: str, prefix: str) -> list[onnx.NodeProto]:
    """Rows of `name` in another order, made of slices, with a leading axis of one direction."""
    cuts = [
        helper.make_node("Slice", [name, f"at{k}", f"at{k + 1}"], [f"{prefix}{name}{k}"])
        for k in range(GATES)
    ]
    joined = helper.make_node(
        "Concat", [f"{prefix}{name}{k}" for k in (0, 3, 1, 2)], [f"{prefix}{name}j"], axis=0
    )
    return [*cuts, joined, helper.make_node("Unsqueeze", [f"{prefix}{name}j", "first"], [f"{prefix}{name}u"])]


def recurrent(prefix: str, source: str, result: str) -> list[onnx.NodeProto]:
    lstm = helper.make_node(
        "LSTM",
        [source, f"{prefix}wu", f"{prefix}ru"],
        ["", result],
        name=f"{prefix}lstm",
        hidden_size=SIZE,
    )
    return [*reordered("w", prefix), *reordered("r", prefix), lstm]


WEIGHTS = {
    "w": models.floats(GATES * SIZE, SIZE),
    "r": models.floats(GATES * SIZE, SIZE, seed=1),
    "first": np.array([0]),
    **{f"at{k}": np.array([k * SIZE]) for k in range(GATES + 1)},
}
FEED = {"x": models.floats(5, 2, SIZE, seed=2)}


@pytest.fixture
def plain(tmp_path: Path) -> Listing:
    nodes = recurrent("a", "x", "y")
    net = models.model(nodes, {"x": (TensorProto.FLOAT, [5, 2, SIZE])}, ["y"], WEIGHTS)
    return list_layers(graph.load(models.write(net, tmp_path / "m.onnx")))


@pytest.fixture
def branching(tmp_path: Path) -> Listing:
    """Both branches of an If read weights made of the same constants around them."""
    bodies = {
        f"{name}_branch": helper.make_graph(
            recurrent(name, "x", f"{name}y"), name, [], [onnx.ValueInfoProto(name=f"{name}y")]
        )
        for name in ("then", "else")
    }
    nodes = [helper.make_node("If", ["flag"], ["y"], **bodies)]
    inputs = {"x": (TensorProto.FLOAT, [5, 2, SIZE]), "flag": (TensorProto.BOOL, [])}
    net = models.model(nodes, inputs, ["y"], WEIGHTS)
    return list_layers(graph.load(models.write(net, tmp_path / "m.onnx")))


def outputs(listing: Listing) -> list[np.ndarray]:
    flags = [{"flag": np.array(v)} for v in (True, False)] if len(listing.inputs) > 1 else [{}]
    sess = execute.session(listing.model, threads=1)
    return [execute.run(sess, {**FEED, **flag})[0] for flag in flags]


def test_folded_weights_answer_alike_under_the_same_names(plain: Listing) -> None:
    folded = with_weights_folded(plain, ["alstm"])
    assert [layer.name for layer in folded.layers] == [layer.name for layer in plain.layers] == ["alstm"]
    assert not plain.layers[0].untreatable
    assert plain.layers[0].weight_shape == folded.layers[0].weight_shape == (1, GATES * SIZE, SIZE)
    assert {node.op_type for node in folded.model.graph} == {"LSTM"}
    np.testing.assert_array_equal(outputs(folded)[0], outputs(plain)[0])
    assert "Concat" in {node.op_type for node in plain.model.graph}  # the given model is as it was


def test_what_bodies_share_is_stored_once_and_where_both_see_it(branching: Listing) -> None:
    names = [layer.name for layer in branching.layers]
    folded = with_weights_folded(branching, names[:1])
    assert len(names) == 2
    assert folded.cost.parameters == 2 * GATES * SIZE * SIZE
    for one, other in zip(outputs(folded), outputs(branching), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_without_such_weights_is_returned_as_it_is(tmp_path: Path) -> None:
    listing = list_layers(graph.load(models.write(models.dense(8), tmp_path / "m.onnx")))
    assert with_weights_folded(listing, [layer.name for layer in listing.layers]) is listing


@pytest.mark.parametrize("settings", [Sparsify(ratio=0.5), PruneChannels(ratio=0.5, refit=False)])
def test_techniques_treat_layers_with_computed_weights(plain: Listing, settings: AnySettings) -> None:
    step = Step(settings=settings, layers=("*",))
    plan = plan_step(plain, step, Context())
    if isinstance(settings, Sparsify):
        assert [action.layer for action in plan.actions] == ["alstm"]
        model, plans = apply_steps(plain.model, (step,), Context(), {})
        assert list_layers(model).cost == plans[0].after
    assert plan.before == plain.cost
    assert all("computed" not in refusal.reason for refusal in plan.refusals)
