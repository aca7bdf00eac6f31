"""Channel scaling changes no answer and makes ranges more equal."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import TensorProto
from support.nets import Net

from studio.engine import execute
from studio.engine.graph import Model, infer_shapes
from studio.engine.quantization import grids
from studio.engine.quantization.equalize import equalize
from studio.engine.quantization.simplify import simplify

Array = npt.NDArray[np.float32]
FEED = {"x": np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)}


def uneven(net: Net, name: str, *shape: int) -> str:
    """Weights whose output channels differ a hundredfold."""
    spread = np.logspace(-1, 1, shape[0]).reshape(-1, *([1] * (len(shape) - 1)))
    return net.constant(name, (net.rng.normal(size=shape) * spread).astype(np.float32))


def network() -> tuple[Model, list[str]]:
    net = Net(3)
    stem = net.add("Conv", ["x", uneven(net, "w0", 8, 3, 3, 3), net.weight("b0", 8)], "stem", pads=[1] * 4)
    stem = net.add("Relu", [stem], "stem_relu")
    deep = net.add("Conv", [stem, uneven(net, "w1", 8, 1, 3, 3)], "depthwise", group=8, pads=[1] * 4)
    deep = net.add("Relu", [deep], "depthwise_relu")
    deep = net.add("Conv", [deep, uneven(net, "w2", 8, 8, 1, 1), net.weight("b2", 8)], "point")
    added = net.add("Add", [deep, stem], "added")
    added = net.add(
        "Add", [added, net.constant("shift", net.rng.normal(size=(1, 8, 1, 1)).astype(np.float32))], "moved"
    )
    pooled = net.add("MaxPool", [added], "small", kernel_shape=[2, 2], strides=[2, 2])
    other = net.add("Conv", [added, uneven(net, "w3", 4, 8, 2, 2)], "other", strides=[2, 2])
    other = net.add(
        "Clip", [other, net.constant("zero", np.float32(0)), net.constant("six", np.float32(6))], "clipped"
    )
    joined = net.add("Concat", [pooled, other], "joined", axis=1)
    mean = net.add("Flatten", [net.add("GlobalAveragePool", [joined], "mean")], "flat")
    net.add("Gemm", [mean, net.weight("w4", 5, 12), net.weight("b4", 5)], "y", transB=1)
    proto = net.build({"x": (TensorProto.FLOAT, ["N", 3, 8, 8])}, {"y": (TensorProto.FLOAT, ["N", 5])})
    return simplify(Model(ir.from_proto(proto))), ["stem_relu", "depthwise_relu", "moved", "clipped"]


def spreads(model: Model, names: list[str]) -> dict[str, float]:
    """Largest over smallest channel."""
    values = next(execute.stream(model, names, [FEED], threads=1))
    peaks = {name: np.abs(values[name]).max(axis=(0, 2, 3)) for name in names}
    return {name: float(peak.max() / peak.min()) for name, peak in peaks.items()}


def test_scaled_channels_give_the_same_answer_and_fit_one_grid_better() -> None:
    model, names = network()
    scaled = equalize(model, infer_shapes(model, {"N": 4}), names, [FEED], 0.75, threads=1)
    before, after = (execute.run(execute.session(m, threads=1), FEED)[0] for m in (model, scaled))
    assert grids.sqnr_db(before, after) > 100
    old, new = spreads(model, names), spreads(scaled, names)
    for name in ("depthwise_relu", "stem_relu", "moved"):
        assert new[name] < old[name] / 2, name
    assert new["clipped"] == old["clipped"], "a bound from above would move with the scale"


def test_no_strength_and_values_that_leave_the_graph_change_nothing() -> None:
    model, names = network()
    shapes = infer_shapes(model, {"N": 4})
    same = equalize(model, shapes, names, [FEED], 0.0, threads=1)
    assert spreads(same, names) == spreads(model, names)
    model.graph.outputs.append(next(v for n in model.graph for v in n.outputs if v.name == "moved"))
    scaled = equalize(model, shapes, names, [FEED], 0.75, threads=1)
    old, new = (execute.run(execute.session(m, threads=1), FEED) for m in (model, scaled))
    assert all(grids.sqnr_db(a, b) > 100 for a, b in zip(old, new, strict=True))
