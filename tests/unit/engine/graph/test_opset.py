"""Raising the opset: every operator that changed computes what it computed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import models

from studio.base.errors import StudioError
from studio.engine import graph

FLOAT = TensorProto.FLOAT
IMAGE = [1, 4, 6, 6]


def node(op: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        op, inputs, ["y", *(f"y{i}" for i in range(1, outputs))], name=f"{op}_0", **attributes
    )


def constant(name: str, values: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values, name))


CHANGED = [
    (7, IMAGE, [node("BatchNormalization", ["x", "s", "b", "m", "v"], spatial=1)]),
    (7, IMAGE, [node("Upsample", ["x"], scales=[1.0, 1.0, 2.0, 3.0], mode="nearest")]),
    (7, IMAGE, [node("Upsample", ["x"], scales=[1.0, 1.0, 2.0, 2.0], mode="linear")]),
    (9, IMAGE, [constant("k", np.array([1, 1, 2, 2], np.float32)), node("Upsample", ["x", "k"], mode="nearest")]),
    (10, IMAGE, [constant("k", np.array([1, 1, 1.5, 2.3], np.float32)), node("Resize", ["x", "k"], mode="nearest")]),
    (10, IMAGE, [constant("k", np.array([1, 1, 0.5, 0.7], np.float32)), node("Resize", ["x", "k"], mode="nearest")]),
    (10, IMAGE, [constant("k", np.array([1, 1, 0.6, 1.7], np.float32)), node("Resize", ["x", "k"], mode="linear")]),
    (9, [4, 8], [node("Slice", ["x"], starts=[1, -5], ends=[3, 1000], axes=[0, 1])]),
    (9, [4, 8], [node("Slice", ["x"], starts=[1], ends=[3])]),
    (9, [4, 8], [node("TopK", ["x"], outputs=2, k=3, axis=1)]),
    (9, [4, 8], [node("Dropout", ["x"], ratio=0.3)]),
    (11, [4, 8], [node("Dropout", ["x"], ratio=0.3)]),
    (10, [4, 8], [node("Clip", ["x"], min=-0.5, max=0.7)]),
    (10, [4, 8], [node("Clip", ["x"], max=0.7)]),
    (10, [4, 8], [node("Clip", ["x"])]),
    (10, [4, 8], [node("Pad", ["x"], pads=[1, 0, 0, 2], value=3.0)]),
    (10, IMAGE, [node("Pad", ["x"], pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="reflect")]),
    (10, [4, 8], [constant("i", np.array([[1, 0, 3]])), constant("u", models.floats(1, 3)), node("Scatter", ["x", "i", "u"])]),
    (12, IMAGE, [node("Softmax", ["x"])]),
    (12, IMAGE, [node("Softmax", ["x"], axis=2)]),
    (12, IMAGE, [node("Softmax", ["x"], axis=3)]),
    (12, IMAGE, [node("Softmax", ["x"], axis=-1)]),
    (12, IMAGE, [node("Softmax", ["x"], axis=0)]),
    (12, [4, 8], [node("LogSoftmax", ["x"])]),
    (12, IMAGE, [node("LogSoftmax", ["x"], axis=1)]),
    (12, IMAGE, [node("Hardmax", ["x"], axis=1)]),
    (12, [1, 4, 1, 8], [node("Squeeze", ["x"], axes=[0, 2])]),
    (12, [1, 4, 1, 8], [node("Squeeze", ["x"])]),
    (12, [4, 8], [node("Unsqueeze", ["x"], axes=[0, 3])]),
    (12, [4, 8], [node("ReduceSum", ["x"], axes=[1], keepdims=0)]),
    (12, [4, 8], [node("ReduceSum", ["x"])]),
    (12, [4, 8], [node("Split", ["x"], outputs=2, axis=1, split=[3, 5])]),
    (12, [4, 8], [node("Split", ["x"], outputs=2, axis=1)]),
    (17, [4, 8], [node("ReduceMean", ["x"], axes=[-1])]),
    (17, [4, 8], [node("ReduceL2", ["x"], axes=[0], keepdims=0)]),
    (17, [4, 8], [node("ReduceMax", ["x"])]),
    (15, IMAGE, [constant("r", np.array([[0, 0, 3, 3]], np.float32)), constant("i", np.array([0])),
                 node("RoiAlign", ["x", "r", "i"], output_height=2, output_width=2)]),
    (16, IMAGE, [constant("g", models.floats(1, 3, 3, 2)), node("GridSample", ["x", "g"], mode="bilinear")]),
    (17, IMAGE, [node("AveragePool", ["x"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)]),
    (13, IMAGE, [node("BatchNormalization", ["x", "s", "b", "m", "v"])]),
]  # fmt: skip


def case(opset: int, shape: list[int], nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    weights = {}
    if any("s" in n.input for n in nodes):
        weights = {name: np.abs(models.floats(4, seed=i)) + 0.1 for i, name in enumerate("sbmv")}
    outputs = list(nodes[-1].output)
    return models.model(nodes, {"x": (FLOAT, list(shape))}, outputs, weights, opset=opset)


@pytest.mark.parametrize("version", [13, 18, 21])
@pytest.mark.parametrize("number", range(len(CHANGED)))
def test_an_operator_that_changed_computes_what_it_did(number: int, version: int, tmp_path: Path) -> None:
    opset, shape, nodes = CHANGED[number]
    path = models.write(case(opset, shape, nodes), tmp_path / "m.onnx")
    feed = {"x": models.floats(*shape, seed=7)}
    before = models.run(path, feed)
    raised = graph.raise_opset(graph.load(path), version)
    assert raised.opset == max(opset, version)
    after = models.run(graph.to_bytes(raised), feed)
    for a, b in zip(before, after, strict=True):
        if nodes[-1].op_type == "AveragePool":  # the runtime has another kernel from opset 19 on
            np.testing.assert_array_max_ulp(a, b, maxulp=4)
        else:
            assert np.array_equal(a, b)


def test_subgraphs_are_raised_too(tmp_path: Path) -> None:
    def branch(axis: int) -> onnx.GraphProto:
        body = [helper.make_node("Unsqueeze", ["x"], ["b"], axes=[axis])]
        return helper.make_graph(body, f"branch{axis}", [], [onnx.ValueInfoProto(name="b")])

    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch(0), else_branch=branch(2))]
    inputs = {"x": (FLOAT, [2, 3]), "c": (TensorProto.BOOL, [])}
    path = models.write(models.model(nodes, inputs, ["y"], opset=11), tmp_path / "m.onnx")
    raised = graph.to_bytes(graph.raise_opset(graph.load(path), 21))
    for chosen in (True, False):
        feed = {"x": models.floats(2, 3), "c": np.array(chosen)}
        assert np.array_equal(models.run(path, feed)[0], models.run(raised, feed)[0])


def test_the_model_itself_stays_on_its_opset(tmp_path: Path) -> None:
    model = graph.load(models.write(models.dense(8, opset=11), tmp_path / "m.onnx"))
    graph.raise_opset(model, 21)
    assert model.opset == 11


def test_weights_that_old_models_name_among_the_inputs_become_constants(tmp_path: Path) -> None:
    proto = models.dense(8, opset=7, ir_version=3)
    proto.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [8, 8]))
    raised = graph.raise_opset(graph.load(models.write(proto, tmp_path / "m.onnx")), 13)
    assert [v.name for v in raised.graph.inputs] == ["x"]
    assert (raised.ir.ir_version or 0) >= 4


@pytest.mark.parametrize(
    ("opset", "nodes"),
    [
        (8, [node("BatchNormalization", ["x", "s", "b", "m", "v"], spatial=0)]),
        (13, [node("BatchNormalization", ["x", "s", "b", "m", "v"], outputs=2)]),
        (9, [node("Dropout", ["x"], outputs=2)]),
        (
            18,
            [
                node(
                    "AveragePool",
                    ["x"],
                    kernel_shape=[3, 3],
                    strides=[2, 2],
                    ceil_mode=1,
                    count_include_pad=1,
                )
            ],
        ),
    ],
)
def test_what_has_no_equal_is_refused_in_words(
    opset: int, nodes: list[onnx.NodeProto], tmp_path: Path
) -> None:
    path = models.write(case(opset, IMAGE, nodes), tmp_path / "m.onnx")
    with pytest.raises(StudioError, match="Cannot raise the opset because of"):
        graph.raise_opset(graph.load(path), 21)


@pytest.mark.cases
@pytest.mark.parametrize("name", ["ppocr_cls", "ppocr_det"])
def test_old_models_with_weights_in_constant_nodes_answer_alike(name: str, case_models: Path) -> None:
    path = case_models / f"{name}.onnx"
    shape = (1, 3, 48, 192) if name == "ppocr_cls" else (1, 3, 96, 96)
    feed = {"x": models.floats(*shape)}
    model = graph.load(path)
    before = models.run(path, feed)
    for version in (13, 21):
        after = models.run(graph.to_bytes(graph.raise_opset(model, version)), feed)
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
