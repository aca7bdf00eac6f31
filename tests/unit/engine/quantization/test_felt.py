"""Ranges by gradients: what the answer does not feel may be cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from support import nets

from studio.base.progress import Progress
from studio.engine import execute, graph, trainable
from studio.engine.dataset import open_data
from studio.engine.graph import Model
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization.calibrate import observe
from studio.engine.quantization.felt import felt_ranges
from studio.engine.quantization.static import Workshop
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.engine.trainable.program import Unsupported
from studio.records.measure import DataSpec
from studio.records.steps import QuantizeStatic, Step

FEED = {"x": np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)}


def probe(model, names, feeds, progress):  # type: ignore[no-untyped-def]
    return trainable.gradients(model, names, feeds, 0, progress, len(feeds))


def shop_of(weight: float) -> Workshop:
    """Two convolutions; the one between them reads channel 0, which is 20 times as large, with a weight."""
    net = nets.Net(1)
    first = net.rng.normal(size=(8, 3, 1, 1)).astype(np.float32)
    first[0] *= 20
    second = net.rng.normal(size=(4, 8, 1, 1)).astype(np.float32)
    second[:, 0] *= weight
    x = net.add("Conv", ["x", net.constant("w0", first)], "first")
    net.add("Conv", [x, net.constant("w1", second)], "y")
    proto = net.build({"x": (TensorProto.FLOAT, ["N", 3, 8, 8])}, {"y": (TensorProto.FLOAT, ["N", 4, 8, 8])})
    model = Model(ir.from_proto(proto))
    listing = list_layers(model, {"N": 4})
    return Workshop(model, listing.shapes, [layer.key for layer in listing.layers])


@pytest.mark.parametrize(("weight", "narrower"), [(0.0, True), (1.0, False)])
def test_only_what_the_answer_does_not_feel_is_cut_off(weight: float, narrower: bool) -> None:
    shop = shop_of(weight)
    seen = observe(shop.model, shop.watches(), [FEED], threads=1)
    found = felt_ranges(shop, seen, [FEED], probe, Progress())
    assert found.keys() == shop.placed.sites.keys()
    low, high = found["first"]
    assert (high - low < 0.9 * (seen["first"].high - seen["first"].low)) == narrower
    assert found["x"] == (seen["x"].low, seen["x"].high)  # nothing is known of gradients there


def answered(preset: str, calibrator: str, folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    listing = list_layers(graph.load(nets.write("cnn", folder)), {"N": 4})
    np.savez(folder / "data.npz", **nets.feed("cnn", 16))
    data = open_data(DataSpec(path=str(folder / "data.npz")), listing.inputs, {"N": 4})
    settings = QuantizeStatic(preset=preset, calibrator=calibrator, float_ends=False)  # type: ignore[arg-type]
    context = Context(calibration=data, threads=1)
    plan = plan_step(listing, Step(settings=settings), context)
    model = find(settings).apply(listing, plan, context)
    one, two = (execute.run(execute.session(m, threads=1), data.first())[0] for m in (listing.model, model))
    return one, two, list(plan.notes)


@pytest.mark.parametrize("preset", ["fast", "careful"])
def test_ranges_by_gradients_are_taken_only_where_they_answer_as_well(preset: str, tmp_path: Path) -> None:
    noise = {}
    for calibrator in ("minmax", "gradient"):
        wanted, got, _ = answered(preset, calibrator, tmp_path)
        noise[calibrator] = np.square(wanted - got).sum() / np.square(wanted).sum()
    assert noise["gradient"] < 1.5 * noise["minmax"]


@pytest.mark.parametrize("preset", ["fast", "careful"])
def test_without_gradients_least_squares_decide_and_the_plan_says_so(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable, "unsupported", lambda _: (Unsupported("n", "NonMaxSuppression"),))
    _, got, notes = answered(preset, "gradient", tmp_path)
    assert any("NonMaxSuppression" in note and "least squared" in note for note in notes)
    np.testing.assert_array_equal(got, answered(preset, "mse", tmp_path)[1])
