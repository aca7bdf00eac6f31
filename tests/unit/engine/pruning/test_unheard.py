"""Biases of keys and values: where softmax does not hear them they go; everywhere else they stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from studio.engine import execute
from studio.engine.graph import Model, load
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.pruning.unheard import absorb
from studio.engine.techniques.channel_orders import grouping_of
from studio.engine.techniques.contract import Context
from studio.engine.techniques.prune_channels import ChannelPruning
from studio.records.steps import PruneChannels, Step

F = TensorProto.FLOAT
HEADS, WIDTH = 2, 4


def attention(
    tmp_path: Path, opset: int = 17, softmax_axis: int | None = -1, fill: str = "Add", rotated: bool = False
) -> Model:
    """x (N, T, 8) through one attention with biases everywhere and a mask (N, 1, 1, T)."""
    rng = np.random.default_rng(0)
    full = HEADS * WIDTH
    stored = {f"{n}.w": rng.standard_normal((full, full)).astype("f4") for n in "qkvo"}
    stored |= {f"{n}.b": rng.standard_normal(full).astype("f4") for n in "qkvo"}
    stored |= {"split": np.array([0, -1, HEADS, WIDTH]), "merge": np.array([0, -1, full])}
    stored |= {
        "root": np.array(2.0, "f4"),
        "low": np.array(-3.0, "f4"),
        "turn": rng.standard_normal((1, 1, 5, 1)).astype("f4"),
    }
    nodes = []
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            make_node("MatMul", ["x", f"{name}.w"], [f"{name}.y"], name=name),
            make_node("Add", [f"{name}.b", f"{name}.y"], [f"{name}.s"]),
            make_node("Reshape", [f"{name}.s", "split"], [f"{name}.h"]),
            make_node("Transpose", [f"{name}.h"], [f"{name}.t"], perm=perm),
        ]
    if rotated:
        nodes += [
            make_node("Transpose", ["k.t"], ["k.r"], perm=[0, 1, 3, 2]),
            make_node("Mul", ["k.r", "turn"], ["k.m"]), make_node("Transpose", ["k.m"], ["k.f"], perm=[0, 1, 3, 2]),
        ]  # fmt: skip
    masked = (
        make_node("Add", ["scaled", "mask"], ["masked"])
        if fill == "Add"
        else make_node("Where", ["hidden", "low", "scaled"], ["masked"])
    )
    nodes += [
        make_node("MatMul", ["q.t", "k.f" if rotated else "k.t"], ["scores"]),
        make_node("Div", ["scores", "root"], ["scaled"]),
        make_node("Cast", ["mask"], ["hidden"], to=TensorProto.BOOL),
        masked,
        make_node("Softmax", ["masked"], ["p"], **({} if softmax_axis is None else {"axis": softmax_axis})),
        make_node("MatMul", ["p", "v.t"], ["weighted"]),
        make_node("Transpose", ["weighted"], ["together"], perm=[0, 2, 1, 3]),
        make_node("Reshape", ["together", "merge"], ["merged"]),
        make_node("MatMul", ["merged", "o.w"], ["o.y"], name="o"),
        make_node("Add", ["o.y", "o.b"], ["y"]),
    ]
    graph = make_graph(
        nodes,
        "attention",
        [
            make_tensor_value_info("x", F, ["N", "T", full]),
            make_tensor_value_info("mask", F, ["N", 1, 1, "T"]),
        ],
        [make_tensor_value_info("y", F, ["N", "T", full])],
        [from_array(a, n) for n, a in stored.items()],
    )
    path = tmp_path / "attention.onnx"
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", opset)], ir_version=8), path)
    return load(path)


def answers(model: Model) -> np.ndarray:
    rng = np.random.default_rng(1)
    feed = {
        "x": rng.standard_normal((3, 5, 8)).astype("f4"),
        "mask": -(rng.random((3, 1, 1, 5)) < 0.3).astype("f4"),
    }
    return np.asarray(execute.run(execute.session(model, threads=1, optimize="off"), feed)[0])


def added(model: Model) -> set[str]:
    """Which products still have their biases added."""
    return {
        (v.name or "")[0]
        for n in model.graph
        if n.op_type == "Add"
        for v in n.inputs
        if v is not None and (v.name or "").endswith(".b")
    }


def test_biases_of_keys_and_values_go_and_the_answers_stay(tmp_path: Path) -> None:
    model = attention(tmp_path)
    wanted = answers(model)
    assert absorb(model, lambda _node: True) == 2
    assert added(model) == {"q", "o"}
    np.testing.assert_allclose(answers(model), wanted, rtol=0, atol=1e-5)
    assert [layer.name for layer in list_layers(model).layers] == ["q", "k", "v", "o"]
    assert not {"k.b", "v.b"}.intersection(model.graph.initializers)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"fill": "Where"}, {"q", "k", "o"}),  # what is masked does not move with the rest of its row
        ({"rotated": True}, {"q", "k", "o"}),  # every key is told something else
        ({"softmax_axis": 1}, {"q", "k", "v", "o"}),  # the sum over keys is not one
        ({"softmax_axis": None, "opset": 12}, {"q", "k", "v", "o"}),
        ({"softmax_axis": 3, "opset": 12}, {"q", "o"}),
    ],
)
def test_a_bias_that_is_heard_stays(options: dict[str, object], left: set[str], tmp_path: Path) -> None:
    model = attention(tmp_path, **options)  # type: ignore[arg-type]
    wanted = answers(model)
    absorb(model, lambda _node: True)
    assert added(model) == left
    np.testing.assert_allclose(answers(model), wanted, rtol=0, atol=1e-5)


def test_a_layer_that_may_not_change_keeps_its_bias(tmp_path: Path) -> None:
    model = attention(tmp_path)
    assert absorb(model, lambda node: node.name != "o") == 1
    assert added(model) == {"q", "v", "o"}


def test_without_weights_the_structure_is_the_same(tmp_path: Path) -> None:
    whole, draft = attention(tmp_path), attention(tmp_path)
    absorb(whole, lambda _node: True)
    absorb(draft, lambda _node: True, structure=True)
    assert [n.op_type for n in whole.graph] == [n.op_type for n in draft.graph]
    assert list_layers(whole).cost == list_layers(draft).cost


def test_pruned_heads_lose_their_unheard_biases_as_promised(tmp_path: Path) -> None:
    listing = list_layers(attention(tmp_path))
    assert grouping_of(listing).groups
    step = Step(settings=PruneChannels(ratio=0.5, refit=False))
    context = Context(threads=1, agreed=True)
    plan = plan_step(listing, step, context)
    result = ChannelPruning().apply(listing, plan, context)
    assert added(result) == {"q", "o"}
    assert list_layers(result).cost == plan.after
