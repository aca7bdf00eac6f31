"""Shapes at chosen input sizes: inferred, and measured where inference does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import models

from studio.engine import graph

FLOAT = TensorProto.FLOAT
node = helper.make_node


def shapes(tmp_path: Path, proto: onnx.ModelProto, *, run: bool = True, **sizes: int) -> graph.Shapes:
    model = graph.load(models.write(proto, tmp_path / "m.onnx"))
    return graph.infer_shapes(model, {**graph.dynamic_dimensions(model), **sizes}, run=run)


def test_shapes_follow_the_chosen_sizes(tmp_path: Path) -> None:
    found = shapes(tmp_path, models.dense(8), N=7)
    assert found.of("h") == (7, 8)
    assert found.of("w") == (8, 8)
    assert (found.dtype("h"), found.dtype("nothing"), found.of("nothing")) == ("float32", None, None)


def test_what_the_file_claims_inside_does_not_count(tmp_path: Path) -> None:
    proto = models.dense(8)
    proto.graph.value_info.append(helper.make_tensor_value_info("h", FLOAT, [99, 8]))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, [99, 8]))
    found = shapes(tmp_path, proto, N=3)
    assert (found.of("h"), found.of("y")) == ((3, 8), (3, 8))


def test_values_of_a_copy_have_the_shapes_of_the_original(tmp_path: Path) -> None:
    model = graph.load(models.write(models.dense(8), tmp_path / "m.onnx"))
    found = graph.infer_shapes(model, {"N": 2})
    twin = next(iter(graph.copy(model).graph)).outputs[0]
    assert found.of(twin) == (2, 8)


def computed_shape() -> onnx.ModelProto:
    """A Reshape whose target is computed through a Div, which no inference follows."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Div", ["s", "two"], ["half"]),
        node("Reshape", ["x", "target"], ["flat"]),
        node("Slice", ["flat", "zero", "stop"], ["y"]),
        node("Gather", ["half", "first"], ["stop"]),
    ]
    nodes = [nodes[0], nodes[1], nodes[4], nodes[2], nodes[3]]
    weights = {
        "two": np.array([2, 2]),
        "target": np.array([-1]),
        "zero": np.array([0]),
        "first": np.array([0]),
    }
    return models.model(nodes, {"x": (FLOAT, ["N", 6])}, ["y"], weights)


def test_what_inference_does_not_know_is_measured(tmp_path: Path) -> None:
    assert shapes(tmp_path, computed_shape(), run=False, N=8).of("y") in {None, ("?",)}
    assert shapes(tmp_path, computed_shape(), N=8).of("y") == (4,)


def test_subgraphs_are_measured_by_themselves(tmp_path: Path) -> None:
    inner = computed_shape().graph
    body = helper.make_graph(inner.node, "body", [], [onnx.ValueInfoProto(name="y")], inner.initializer)
    nodes = [node("If", ["c"], ["out"], then_branch=body, else_branch=body, name="if")]
    inputs: dict[str, Any] = {"x": (FLOAT, ["N", 6]), "c": (TensorProto.BOOL, [])}
    found = shapes(tmp_path, models.model(nodes, inputs, ["out"]), N=8)
    assert found.of("y") == (4,)
    assert found.of("out") == (4,)


def test_a_model_that_does_not_run_leaves_shapes_unknown(tmp_path: Path) -> None:
    nodes = [node("Own", ["x"], ["h"], domain="acme"), node("Relu", ["h"], ["y"])]
    proto = models.model(nodes, {"x": (FLOAT, [2])}, ["y"], domains=("acme",))
    assert shapes(tmp_path, proto).of("y") is None


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"),
    [
        ("Gelu", ["x"], {}, (4, 16)),
        ("BiasGelu", ["x", "b"], {}, (4, 16)),
        ("FusedMatMul", ["x", "w"], {}, (4, 16)),
        ("FastGelu", ["x"], {}, (4, 16)),
        ("DynamicQuantizeMatMul", ["x", "q", "s"], {}, (4, 16)),
    ],
)
def test_operators_of_the_runtime_are_seen_through(
    tmp_path: Path, op: str, inputs: list[str], attributes: dict[str, Any], expected: tuple[int, ...]
) -> None:
    weights = {
        "w": models.floats(16, 16), "b": models.floats(16), "q": np.zeros((16, 16), np.int8),
        "s": np.array(0.1, np.float32),
    }  # fmt: skip
    nodes = [node(op, inputs, ["h"], domain="com.microsoft", **attributes), node("Relu", ["h"], ["y"])]
    used = {k: v for k, v in weights.items() if k in inputs}
    proto = models.model(nodes, {"x": (FLOAT, [4, 16])}, ["y"], used, domains=("com.microsoft",))
    assert shapes(tmp_path, proto).of("y") == expected


def test_likely_sizes_of_dynamic_dimensions(tmp_path: Path) -> None:
    inputs: dict[str, Any] = {
        "image": (FLOAT, ["batch", 3, "height", "width"]),
        "tokens": (TensorProto.INT64, ["batch", "sequence_length"]),
        "past": (FLOAT, ["batch", 4, "past_length", 8]),
        "mask": (TensorProto.INT64, ["batch", "past_length + 1"]),
        "state": (FLOAT, [2, None, 64]),
        "sound": (FLOAT, ["batch", "samples"]),
    }
    nodes = [node("Identity", [name], [f"{name}_out"]) for name in inputs]
    proto = models.model(nodes, inputs, [f"{name}_out" for name in inputs])
    model = graph.load(models.write(proto, tmp_path / "m.onnx"))
    assert graph.dynamic_dimensions(model) == {
        "batch": 1,
        "height": 224,
        "width": 224,
        "sequence_length": 128,
        "past_length": 16,
        "past_length + 1": 17,
        "state:1": 1,
        "samples": 16_000,
    }
