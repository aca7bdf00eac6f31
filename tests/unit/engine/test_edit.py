"""Surgery keeps what it does not touch: names of inputs and outputs, and what the model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import models

from studio.engine import edit, graph
from studio.engine.graph import Model

FLOAT = TensorProto.FLOAT


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return graph.copy(graph.load(models.write(models.dense(8), tmp_path / "m.onnx")))


def outputs(model: Model, **feed: Any) -> Any:
    return models.run(graph.to_bytes(model), feed or {"x": models.floats(2, 8, seed=1)})[0]


def by_name(model: Model, name: str) -> ir.Node:
    return next(n for n in model.graph if n.name == name)


def test_fresh_names_are_never_taken(model: Model) -> None:
    assert edit.fresh_name(model, "w") == "w_1"
    assert edit.fresh_name(model, "w") == "w_2"
    assert edit.fresh_name(model, "new") == "new"


def test_a_constant_is_replaced_where_it_lies(model: Model) -> None:
    weight = by_name(model, "product").inputs[1]
    assert weight is not None
    edit.set_constant(weight, np.zeros((8, 8), np.float32))
    assert weight.is_initializer()
    assert not outputs(model).any()


def test_a_constant_node_stays_a_node(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(models.floats(8, 8))),
        helper.make_node("Identity", ["k"], ["i"]),
        helper.make_node("MatMul", ["x", "i"], ["y"], name="product"),
    ]
    proto = models.model(nodes, {"x": (FLOAT, [2, 8])}, ["y"])
    model = graph.copy(graph.load(models.write(proto, tmp_path / "m.onnx")))
    weight = by_name(model, "product").inputs[1]
    assert weight is not None
    edit.set_constant(weight, np.zeros((8, 3), np.float32))
    assert [n.op_type for n in model.graph] == ["Constant", "Identity", "MatMul"]
    assert outputs(model).shape == (2, 3)


def test_the_original_is_untouched_by_edits_of_its_copy(tmp_path: Path) -> None:
    original = graph.load(models.write(models.dense(64), tmp_path / "m.onnx"))
    before = graph.to_bytes(original)
    twin = graph.copy(original)
    weight = by_name(twin, "product").inputs[1]
    assert weight is not None
    edit.set_constant(weight, np.zeros((64, 64), np.float32))
    edit.insert_after(twin, by_name(twin, "product").outputs[0], "Neg")
    assert graph.to_bytes(original) == before


def test_inserting_before_a_node_changes_only_its_input(model: Model) -> None:
    edit.insert_before(model, by_name(model, "relu"), 0, "Neg", name="minus")
    assert [n.op_type for n in model.graph] == ["MatMul", "Neg", "Relu"]
    assert np.array_equal(outputs(model), np.maximum(-(models.floats(2, 8, seed=1) @ models.floats(8, 8)), 0))


def test_inserting_after_a_graph_output_keeps_its_name(model: Model) -> None:
    before = outputs(model)
    edit.insert_after(model, by_name(model, "relu").outputs[0], "Neg")
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert np.array_equal(outputs(model), -before)


def test_replacing_a_node_hands_over_users_and_names(model: Model) -> None:
    before = outputs(model)
    old = by_name(model, "product")
    double = edit.add_constant(model, model.graph, "two", np.array(2, np.float32))
    product = edit.make_node(model, "MatMul", list(old.inputs), name="again")
    scaled = edit.make_node(model, "Mul", [product.outputs[0], double], name="scaled")
    edit.replace_node(old, [product, scaled], [scaled.outputs[0]])
    assert np.array_equal(outputs(model), before * 2)
    assert scaled.outputs[0].name == "h"


def test_replacing_the_last_node_keeps_the_output(model: Model) -> None:
    old = by_name(model, "relu")
    new = edit.make_node(model, "Abs", list(old.inputs))
    edit.replace_node(old, [new], [new.outputs[0]])
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert (outputs(model) >= 0).all()


def test_dead_nodes_weights_and_functions_go(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["b"])], "t", [], [onnx.ValueInfoProto(name="b")]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Neg", ["x"], ["dead"]),
        helper.make_node("Abs", ["dead"], ["deader"]),
        helper.make_node("If", ["c"], ["unused"], then_branch=branch, else_branch=branch),
    ]
    inputs = {"x": (FLOAT, [1, 8]), "c": (TensorProto.BOOL, [])}
    weights = {"w": models.floats(8, 8), "spare": models.floats(3), "inner": models.floats(8, 2)}
    model = graph.copy(
        graph.load(models.write(models.model(nodes, inputs, ["y"], weights), tmp_path / "m.onnx"))
    )
    edit.remove_dead(model)
    assert [n.op_type for n in model.graph] == ["MatMul"]
    assert set(model.graph.initializers) == {"w"}
    assert [v.name for v in model.graph.inputs] == ["x", "c"]


def test_what_a_body_still_reads_is_not_dead(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["b"])], "t", [], [onnx.ValueInfoProto(name="b")]
    )
    nodes = [
        helper.make_node("Neg", ["x"], ["h"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    inputs = {"x": (FLOAT, [1, 8]), "c": (TensorProto.BOOL, [])}
    proto = models.model(nodes, inputs, ["y"], {"w": models.floats(8, 8)})
    model = graph.copy(graph.load(models.write(proto, tmp_path / "m.onnx")))
    edit.remove_dead(model)
    assert [n.op_type for n in model.graph] == ["Neg", "If"]
    assert set(model.graph.initializers) == {"w"}


def test_a_weight_that_is_an_input_goes_from_both_lists(tmp_path: Path) -> None:
    proto = models.dense(8, opset=9, ir_version=3)
    proto.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [8, 8]))
    model = graph.copy(graph.load(models.write(proto, tmp_path / "m.onnx")))
    new = edit.add_constant(model, model.graph, "w", models.floats(8, 8, seed=4))
    by_name(model, "product").replace_input_with(1, new)
    edit.remove_dead(model)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert set(model.graph.initializers) == {"w_1"}
    assert outputs(model).shape == (2, 8)


@pytest.mark.parametrize("opset", [13, 18])
def test_the_axes_of_a_reduction_stand_where_the_opset_wants_them(opset: int) -> None:
    model = Model(ir.from_proto(models.dense(32, opset=opset)))
    (source,) = (v for v in model.graph.inputs if v.name == "x")
    node = edit.make_node(model, "ReduceMean", [source], {"axes": [1], "keepdims": 0}, name="mean")
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])
    x = models.floats(4, 32)
    *_, mean = models.run(graph.to_bytes(model), {"x": x})
    np.testing.assert_allclose(mean, x.mean(1), rtol=1e-5, atol=1e-6)
