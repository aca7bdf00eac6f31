"""HardSwish is one node where it is computed in float, however it was written, and steps where it runs on integers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from support.nets import Net

from studio.engine import execute
from studio.engine.graph import Model
from studio.engine.layers import list_layers
from studio.engine.quantization.hard import contract_hard_swish
from studio.engine.quantization.static import Workshop


def written(how: str, three: float = 3.0) -> Model:
    """A convolution, HardSwish and a convolution, in opset 13 where it is not one node."""
    net = Net(2)
    x = net.add("Conv", ["x", net.weight("w", 8, 3, 3, 3), net.weight("b", 8)], "first")

    def number(name: str, value: float) -> str:
        return net.constant(name, np.float32(value))

    if how == "one":
        x = net.add("HardSwish", [x], "swish")
    else:
        shifted = net.add("Add", [x, number("three", three)], "shifted")
        gate = net.add("Clip", [shifted, number("zero", 0.0), number("six", 6.0)], "gate")
        if how == "divided first":
            x = net.add("Mul", [x, net.add("Div", [gate, number("by", 6.0)], "share")], "swish")
        else:
            x = net.add("Mul", [net.add("Mul", [gate, x], "gated"), number("by", 1 / 6)], "swish")
    net.add("Conv", [x, net.weight("v", 4, 8, 1, 1), net.weight("c", 4)], "y")
    shape: list[int | str] = ["N", 3, 8, 8]
    proto = net.build(
        {"x": (TensorProto.FLOAT, shape)},
        {"y": (TensorProto.FLOAT, ["N", 4, 6, 6])},
        14 if how == "one" else 13,
    )
    return Model(ir.from_proto(proto))


def operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


FEED = {"x": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("how", ["divided first", "multiplied last"])
def test_four_nodes_become_one_that_answers_alike(how: str) -> None:
    model = written(how)
    wanted = execute.run(execute.session(model, threads=1), FEED)[0]
    result = contract_hard_swish(model)
    assert operators(result) == {"Conv": 2, "HardSwish": 1}
    assert result.opset == 14
    np.testing.assert_allclose(execute.run(execute.session(result, threads=1), FEED)[0], wanted, atol=1e-5)


def test_what_only_looks_like_it_stays() -> None:
    model = written("divided first", three=2.0)
    assert contract_hard_swish(model) is model
    assert operators(model)["Clip"] == 1


@pytest.mark.parametrize("how", ["one", "divided first"])
def test_it_is_one_node_in_float_and_steps_on_integers(how: str) -> None:
    model = written(how)
    shapes = list_layers(model, {"N": 2}).shapes
    last, both = (Workshop(model, shapes, keys) for keys in (["y"], ["first", "y"]))
    assert operators(last.build(last.blank()))["HardSwish"] == 1
    integer = operators(both.build(both.blank()))
    assert (integer["HardSwish"], integer["Clip"]) == (0, 1)
