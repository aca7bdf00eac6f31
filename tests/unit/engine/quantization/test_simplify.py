"""Simplifying is exact, and leaves what quantization needs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper
from support import models
from support.nets import Net

from studio.engine import execute
from studio.engine.graph import Model, infer_shapes
from studio.engine.quantization.simplify import simplify


def _operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph if node.op_type != "Constant")


def _same(before: Model, after: Model, feed: dict[str, np.ndarray]) -> None:
    for a, b in zip(
        execute.run(execute.session(before, threads=1), feed),
        execute.run(execute.session(after, threads=1), feed),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def _model(net: Net, outputs: tuple[int | str, ...], opset: int = 13) -> Model:
    proto = net.build(
        {"x": (TensorProto.FLOAT, ["N", 3, 8, 8])}, {"y": (TensorProto.FLOAT, list(outputs))}, opset
    )
    return Model(ir.from_proto(proto))


FEED = {"x": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)}


def test_norms_scales_and_padding_move_into_the_convolution() -> None:
    net = Net(1)
    x = net.add("Pad", ["x", net.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))], "padded")
    x = net.add("Conv", [x, net.weight("w", 4, 3, 3, 3)], "conv")
    ones = [
        net.constant(n, np.abs(net.rng.normal(size=4)).astype(np.float32) + 0.5) for n in ("s", "b", "m", "v")
    ]
    x = net.add("BatchNormalization", [x, *ones], "normed")
    x = net.add(
        "Mul", [x, net.constant("gain", net.rng.normal(size=(1, 4, 1, 1)).astype(np.float32))], "scaled"
    )
    x = net.add("Sub", [x, net.constant("shift", np.float32(0.7))], "shifted")
    net.add("Relu", [x], "y")
    model = _model(net, ("N", 4, 8, 8))
    simple = simplify(model)
    assert _operators(simple) == {"Conv": 1, "Relu": 1}
    _same(model, simple, FEED)


def test_a_spatial_mean_becomes_a_pool_and_hard_gates_become_clips() -> None:
    net = Net(2)
    x = net.add("Conv", ["x", net.weight("w", 4, 3, 1, 1), net.weight("b", 4)], "conv")
    x = net.add("HardSwish", [x], "swish")
    g = net.add("Conv", [x, net.weight("w2", 4, 4, 1, 1), net.weight("b2", 4)], "gate")
    x = net.add("Mul", [x, net.add("HardSigmoid", [g], "sigmoid", alpha=0.25, beta=0.4)], "gated")
    net.add("ReduceMean", [x], "y", axes=[2, 3], keepdims=0)
    model = _model(net, ("N", 4), 17)
    simple = simplify(model, 13, infer_shapes(model, {"N": 2}))
    found = _operators(simple)
    assert found["GlobalAveragePool"] == 1
    assert not found.keys() & {"ReduceMean", "HardSwish", "HardSigmoid"}
    _same(model, simple, FEED)


def test_what_leaves_the_graph_or_has_other_readers_stays() -> None:
    net = Net(3)
    c = net.add("Conv", ["x", net.weight("w", 4, 3, 1, 1)], "conv")
    net.add("Add", [net.add("Mul", [c, net.constant("two", np.float32(2))], "doubled"), c], "y")
    model = _model(net, ("N", 4, 8, 8))
    simple = simplify(model)
    assert _operators(simple) == {"Conv": 1, "Mul": 1, "Add": 1}
    _same(model, simple, FEED)


def test_what_depends_on_constants_alone_is_computed_once() -> None:
    net = Net(4)
    shape = net.add(
        "Concat",
        [net.constant("a", np.array([0], np.int64)), net.constant("b", np.array([-1], np.int64))],
        "shape",
        axis=0,
    )
    net.add("Reshape", ["x", shape], "y")
    model = _model(net, ("N", 192))
    simple = simplify(model)
    assert _operators(simple) == {"Reshape": 1}
    _same(model, simple, FEED)


def test_values_made_by_expanding_have_the_shape_of_what_they_are_made_of() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("HardSwish", ["h"], ["y"], name="gate"),
    ]
    net = models.model(nodes, {"x": (TensorProto.FLOAT, [2, 8])}, ["y"], {"w": models.floats(8, 4)})
    model = Model(ir.from_proto(net))
    shapes = infer_shapes(model, {})
    simple = simplify(model, 13, shapes)
    assert {node.op_type for node in simple.graph} >= {"Add", "Clip", "Mul"}
    assert {shapes.of(node.outputs[0]) for node in simple.graph} == {(2, 4)}


def test_a_table_that_is_read_as_it_is_is_not_stored_a_second_time() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "turned"], ["y"]),
    ]
    net = models.model(nodes, {"ids": (TensorProto.INT64, [2, 8])}, ["y"], {"table": models.floats(90, 16)})
    simple = simplify(Model(ir.from_proto(net)))
    assert list(simple.graph.initializers) == ["table"]
