"""Depthwise convolutions get channels of zeros up to a multiple of 16, and nothing changes but the time they take."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from support.nets import Net

from studio.engine import execute
from studio.engine.graph import Model, constant
from studio.engine.layers import list_layers
from studio.engine.quantization import grids
from studio.engine.quantization import weights as integers
from studio.engine.quantization.calibrate import choose_range, observe
from studio.engine.quantization.static import Choice, Workshop, ranges_of
from studio.engine.quantization.widen import widen

FEED = {"x": np.random.default_rng(0).normal(size=(2, 8, 6, 6)).astype(np.float32)}


def bottleneck(channels: int, *, leak: bool = False) -> Model:
    """An expansion, a depthwise convolution with a gate, a projection; `leak`: the wide value leaves the model, too."""
    net = Net(4)
    x = net.add("Conv", ["x", net.weight("w1", channels, 8, 1, 1), net.weight("b1", channels)], "expand")
    x = net.add("Mul", [x, net.add("Sigmoid", [x], "s")], "silu")
    x = net.add(
        "Conv",
        [x, net.weight("w2", channels, 1, 3, 3), net.weight("b2", channels)],
        "depthwise",
        group=channels,
        pads=[1] * 4,
    )
    p = net.add("GlobalAveragePool", [x], "pooled")
    p = net.add("Relu", [net.add("Conv", [p, net.weight("w3", 4, channels, 1, 1)], "squeeze")], "r")
    g = net.add("Sigmoid", [net.add("Conv", [p, net.weight("w4", channels, 4, 1, 1)], "excite")], "gate")
    x = net.add("Mul", [x, g], "gated")
    net.add("Conv", [x, net.weight("w5", 8, channels, 1, 1), net.weight("b5", 8)], "y")
    outputs = {"y": (TensorProto.FLOAT, ["N", 8, 6, 6])}
    if leak:
        outputs["gated"] = (TensorProto.FLOAT, ["N", channels, 6, 6])
    return Model(ir.from_proto(net.build({"x": (TensorProto.FLOAT, ["N", 8, 6, 6])}, outputs)))


def width(model: Model) -> list[int]:
    """The output channels of all convolutions."""
    tensors = [constant(node.inputs[1]) for node in model.graph if node.op_type == "Conv"]
    return [int(t.shape.numpy()[0]) for t in tensors if t is not None]


def test_all_that_hangs_together_is_widened_and_the_answer_stays() -> None:
    model = bottleneck(24)
    wanted = execute.run(execute.session(model, threads=1), FEED)[0]
    widen(model, {"depthwise"})
    assert width(model) == [32, 32, 4, 32, 8]
    np.testing.assert_allclose(execute.run(execute.session(model, threads=1), FEED)[0], wanted, atol=1e-5)


@pytest.mark.parametrize(("channels", "leak"), [(32, False), (17, False), (24, True)])
def test_what_fits_would_grow_too_much_or_is_seen_outside_stays(channels: int, leak: bool) -> None:
    model = bottleneck(channels, leak=leak)
    before = width(model)
    widen(model, {"depthwise"})
    assert width(model) == before


def test_a_widened_model_is_quantized_like_any() -> None:
    model = bottleneck(24)
    listing = list_layers(model, {"N": 2})
    shop = Workshop(model, listing.shapes, [layer.key for layer in listing.layers])
    assert shop.out_channels("depthwise") == 32
    ranges = ranges_of(
        observe(shop.model, shop.watches(), [FEED], threads=1), lambda o: choose_range(o, "minmax")
    )
    found = {key: integers.per_channel(shop.weight(key), shop.axis(key)) for key in shop.layers}
    result = shop.build(Choice(found, ranges))
    a, b = (execute.run(execute.session(m, threads=1), FEED)[0] for m in (model, result))
    assert grids.sqnr_db(a, b) > 25
