"""The preflight: what a user should know before any technique touches a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import models

from studio.engine.layers import inspect
from studio.records.task import Inspected

FLOAT = TensorProto.FLOAT
node = helper.make_node


def inspected(tmp_path: Path, proto: onnx.ModelProto, **kwargs: Any) -> Inspected:
    return inspect(models.write(proto, tmp_path / "m.onnx"), **kwargs)


def finding(found: Inspected, subject: str) -> str:
    (one,) = (f for f in found.info.findings if f.subject == subject)
    return one.what


def test_the_opset_is_always_named(tmp_path: Path) -> None:
    assert "Opset 17" in finding(inspected(tmp_path, models.dense(8)), "opset")
    assert "raised" in finding(inspected(tmp_path, models.dense(8, opset=11)), "opset")
    assert "older" in finding(inspected(tmp_path, models.dense(8, opset=6)), "opset")


def test_dynamic_dimensions_come_with_the_chosen_sizes(tmp_path: Path) -> None:
    found = inspected(tmp_path, models.dense(8))
    assert found.info.input_sizes == (("N", 1),)
    assert "N = 1" in finding(found, "dynamic dimensions")
    wider = inspected(tmp_path, models.dense(8), input_sizes={"N": 5})
    assert wider.info.input_sizes == (("N", 5),)
    assert wider.info.cost.macs == 5 * (found.info.cost.macs or 0)


def test_unnamed_dimensions_get_the_name_of_their_input(tmp_path: Path) -> None:
    proto = models.model([node("Relu", ["x"], ["y"])], {"x": (FLOAT, [None, 3, None, None])}, ["y"])
    found = inspected(tmp_path, proto)
    assert found.info.input_sizes == (("x:0", 1), ("x:2", 224), ("x:3", 224))
    assert found.info.inputs[0].shape == ("x:0", 3, "x:2", "x:3")


def test_a_model_without_weights_has_nothing_to_compress(tmp_path: Path) -> None:
    proto = models.model([node("Relu", ["x"], ["y"])], {"x": (FLOAT, [1])}, ["y"])
    found = inspected(tmp_path, proto)
    assert found.info.findings[0].level == "blocker"
    assert "nothing to compress" in finding(found, "no layers")


def test_custom_operators_are_named_and_their_neighbours_listed(tmp_path: Path) -> None:
    nodes = [node("Own", ["x"], ["h"], domain="acme"), node("MatMul", ["h", "w"], ["y"])]
    weights = {"w": models.floats(4, 4)}
    proto = models.model(nodes, {"x": (FLOAT, [1, 4])}, ["y"], weights, domains=("acme",))
    found = inspected(tmp_path, proto)
    assert "acme::Own" in finding(found, "custom operators")
    assert len(found.info.layers) == 1
    assert "not known" in finding(found, "unknown shapes")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_found(tmp_path: Path, value: float) -> None:
    proto = models.dense(8)
    weights = models.floats(8, 8)
    weights[3, 4] = value
    proto.graph.initializer[0].raw_data = weights.tobytes()
    found = inspected(tmp_path, proto)
    assert "product" in finding(found, "NaN or Inf weights")


def test_sparsity_is_counted_exactly(tmp_path: Path) -> None:
    proto = models.dense(40)
    weights = models.floats(40, 40)
    weights[:10] = 0
    proto.graph.initializer[0].raw_data = weights.tobytes()
    assert inspected(tmp_path, proto).info.layers[0].sparsity == 0.25


def test_zeros_of_integer_weights_lie_at_their_zero_point(tmp_path: Path) -> None:
    q = np.full((8, 4), 7, np.uint8)
    q[:, 1] = 128
    nodes = [node("DequantizeLinear", ["w", "s", "z"], ["d"]), node("MatMul", ["x", "d"], ["y"])]
    weights = {"w": q, "s": np.array(0.1, np.float32), "z": np.array(128, np.uint8)}
    found = inspected(tmp_path, models.model(nodes, {"x": (FLOAT, [1, 8])}, ["y"], weights))
    assert found.info.layers[0].sparsity == 0.25
    assert "int8 weights" in finding(found, "quantized already")


def test_control_flow_shared_weights_and_large_constants_are_mentioned(tmp_path: Path) -> None:
    branch = helper.make_graph([node("MatMul", ["x", "w"], ["b"])], "t", [], [onnx.ValueInfoProto(name="b")])
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="first"),
        node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
        node("Add", ["h", "mask"], ["m"]),
        node("Add", ["m", "i"], ["y"]),
    ]
    weights = {"w": models.floats(16, 16), "mask": models.floats(70_000, 4, 16)}
    inputs = {"x": (FLOAT, [1, 16]), "c": (TensorProto.BOOL, [])}
    found = inspected(tmp_path, models.model(nodes, inputs, ["y"], weights))
    assert "1 If" in finding(found, "control flow")
    assert "2 layers lie in their bodies" in finding(found, "control flow")
    assert "3 layers share" in finding(found, "shared weights")
    assert "mask" in finding(found, "large constants")


def test_weights_that_a_caller_may_replace_are_mentioned(tmp_path: Path) -> None:
    proto = models.dense(8)
    proto.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [8, 8]))
    found = inspected(tmp_path, proto)
    assert "1 weights" in finding(found, "weights as inputs")
    assert [x.name for x in found.info.inputs] == ["x"]


def test_the_outline_draws_the_main_graph(tmp_path: Path) -> None:
    outline = inspected(tmp_path, models.dense(8)).outline
    assert [(n.key, n.op, n.layer) for n in outline.nodes] == [("h", "MatMul", "product"), ("y", "Relu", "")]
    assert outline.edges == ((0, 1),)


def test_the_stripped_copy_is_written_where_asked(tmp_path: Path) -> None:
    inspected(tmp_path, models.dense(64), stripped=tmp_path / "bare.onnx")
    assert (tmp_path / "bare.onnx").stat().st_size < 1000
    assert onnx.load(tmp_path / "bare.onnx").graph.node[0].op_type == "MatMul"


def test_figures_of_the_whole_model(tmp_path: Path) -> None:
    info = inspected(tmp_path, models.dense(8)).info
    assert (info.name, info.opset, info.ir_version, info.nodes) == ("m", 17, 8, 2)
    assert info.file_bytes == (tmp_path / "m.onnx").stat().st_size
    assert len(info.digest) == 64
