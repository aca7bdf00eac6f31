"""Small first and last layers stay in float, large ones and those between them do not."""

from __future__ import annotations

import onnx_ir as ir
from onnx import TensorProto
from support.nets import Net

from studio.engine.graph import Model
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization.ends import small_ends
from studio.engine.quantization.static import Workshop
from studio.engine.techniques.contract import Context
from studio.records.steps import QuantizeStatic, Step


def classifier(channels: int, kernel: int = 3) -> Model:
    """An image comes in scaled and shifted; two wide convolutions lie between a first one and the scores."""
    net = Net(3)
    x = net.add("Mul", ["x", net.weight("gain", 1, channels, 1, 1)], "scaled")
    x = net.add("Conv", [x, net.weight("w0", 8, channels, kernel, kernel)], "first", pads=[kernel // 2] * 4)
    x = net.add("Conv", [net.add("Relu", [x], "bent"), net.weight("w1", 256, 8, 3, 3)], "wide", pads=[1] * 4)
    x = net.add(
        "Conv", [net.add("Relu", [x], "again"), net.weight("w2", 64, 256, 3, 3)], "back", pads=[1] * 4
    )
    x = net.add("Flatten", [net.add("GlobalAveragePool", [x], "pooled")], "flat")
    net.add("Softmax", [net.add("Gemm", [x, net.weight("w3", 64, 5)], "scores")], "y", axis=-1)
    inputs = {"x": (TensorProto.FLOAT, [1, channels, 16, 16])}
    return Model(ir.from_proto(net.build(inputs, {"y": (TensorProto.FLOAT, [1, 5])})))


def mobile() -> Model:
    """A first convolution, a depthwise one behind a hardswish, and a wide product of its channels."""
    net = Net(4)
    x = net.add("Conv", ["x", net.weight("w0", 16, 3, 3, 3)], "first", pads=[1] * 4)
    x = net.add("HardSwish", [x], "bent")
    x = net.add("Conv", [x, net.weight("w1", 16, 1, 3, 3)], "deep", pads=[1] * 4, group=16)
    x = net.add("Conv", [x, net.weight("w2", 640, 16, 1, 1)], "wide")
    net.add("Conv", [x, net.weight("w3", 64, 640, 1, 1)], "y")
    inputs = {"x": (TensorProto.FLOAT, [1, 3, 16, 16])}
    return Model(ir.from_proto(net.build(inputs, {"y": (TensorProto.FLOAT, [1, 64, 16, 16])})))


def ends(model: Model) -> set[str]:
    listing = list_layers(model)
    shop = Workshop(model, listing.shapes, [layer.key for layer in listing.layers])
    return set(small_ends(shop, {layer.key: layer.cost.macs or 0 for layer in listing.layers}))


def test_a_short_first_convolution_and_a_small_last_product_are_ends() -> None:
    assert ends(classifier(3)) == {"first", "scores"}


def test_a_first_convolution_of_long_rows_is_none() -> None:
    assert ends(classifier(8, kernel=5)) == {"scores"}


def test_a_depthwise_convolution_behind_the_first_one_goes_with_it() -> None:
    assert ends(mobile()) == {"first", "deep"}


def test_the_plan_says_why_ends_stay_in_float_unless_they_were_asked_for_alone() -> None:
    listing = list_layers(classifier(3))
    plan = plan_step(listing, Step(settings=QuantizeStatic()), Context())
    assert [action.layer for action in plan.actions] == ["wide_node", "back_node"]
    assert all("kept in float" in refusal.reason for refusal in plan.refusals)
    alone = plan_step(listing, Step(layers=("first_node",), settings=QuantizeStatic()), Context())
    assert [action.layer for action in alone.actions] == ["first_node"]
    every = plan_step(listing, Step(settings=QuantizeStatic(float_ends=False)), Context())
    assert len(every.actions) == 4
