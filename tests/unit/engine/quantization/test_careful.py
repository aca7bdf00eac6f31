"""The careful way: every value tried by itself, and islands of float where 8 bits spoil the answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from support.nets import Net

from studio.base.progress import Progress
from studio.engine import execute
from studio.engine.dataset import open_data
from studio.engine.graph import Model, infer_shapes
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization import grids
from studio.engine.quantization.alone import Alone
from studio.engine.quantization.calibrate import choose_range, observe
from studio.engine.quantization.islands import find_islands
from studio.engine.quantization.nearby import Nearby
from studio.engine.quantization.recipe import first_samples, rounded
from studio.engine.quantization.search import Judge
from studio.engine.quantization.static import Choice, Workshop
from studio.engine.quantization.survey import survey
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import QuantizeStatic, Step

FEED = {"x": np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)}


def spoiled(gain: float) -> Workshop:
    """Three convolutions; behind the second, one channel is `gain` times as large, and the third makes up for it."""
    net = Net(1)
    x = net.add("Conv", ["x", net.weight("w0", 8, 3, 3, 3), net.weight("b0", 8)], "first", pads=[1] * 4)
    x = net.add("Tanh", [x], "bent")
    large = np.ones((8, 1, 1, 1), np.float32)
    large[0] = gain
    middle = net.rng.normal(size=(8, 8, 1, 1)).astype(np.float32) * large
    x = net.add("Conv", [x, net.constant("w1", middle)], "second")
    last = net.rng.normal(size=(4, 8, 3, 3)).astype(np.float32) / large.reshape(1, 8, 1, 1)
    net.add("Conv", [x, net.constant("w2", last), net.weight("b2", 4)], "y", pads=[1] * 4)
    proto = net.build({"x": (TensorProto.FLOAT, ["N", 3, 8, 8])}, {"y": (TensorProto.FLOAT, ["N", 4, 8, 8])})
    model = Model(ir.from_proto(proto))
    listing = list_layers(model, {"N": 4})
    return Workshop(model, listing.shapes, [layer.key for layer in listing.layers])


def test_the_value_that_spoils_the_answer_is_found_and_left_in_float() -> None:
    shop = spoiled(300.0)
    seen = observe(shop.model, shop.watches(), [FEED], threads=1)
    weights = rounded(shop, 8)
    found = survey(shop, weights, seen, [FEED], Progress(), threads=1)
    assert max(found, key=lambda name: found[name].noise) == "second"
    judge = Judge.of(shop.model, [FEED], threads=1)
    bounds = {name: finding.bounds for name, finding in found.items()}

    def noise(less: Workshop) -> float:
        return judge.noise(less.build(Choice({key: weights[key] for key in less.layers}, bounds)))

    work = dict.fromkeys(shop.layers, 1) | {"first": 10}
    kept = find_islands(shop, found, work, noise)
    assert set(kept) == {"second", "y"}
    assert noise(shop.without(kept)) < 0.01 * noise(shop)
    equal = dict.fromkeys(work, 1)
    assert find_islands(shop, found, equal, noise).keys() == {"second", "y"}, "most of the noise is theirs"
    even = {name: replace(finding, noise=0.02) for name, finding in found.items()}
    assert find_islands(shop, even, equal, lambda _: 0.05) == {}, "too much of the work"
    assert find_islands(shop, even, equal, lambda _: 0.5).keys() == set(equal), "it helps nothing: all of it"


def test_nothing_is_left_in_float_where_all_is_well() -> None:
    shop = spoiled(1.0)
    seen = observe(shop.model, shop.watches(), [FEED], threads=1)
    found = survey(shop, rounded(shop, 8), seen, [FEED], Progress(), threads=1)
    assert find_islands(shop, found, dict.fromkeys(shop.layers, 1), lambda _: 1e-4) == {}


def test_one_value_by_itself_makes_the_noise_that_its_grid_makes() -> None:
    shop = spoiled(3.0)
    seen = observe(shop.model, shop.watches(), [FEED], threads=1)
    bounds = {name: choose_range(o, "minmax") for name, o in seen.items()}
    near = Nearby(shop, {}, threads=1)
    readings = near.measure(bounds, [FEED])
    values = next(execute.stream(shop.model, ["second"], [FEED], threads=1))["second"]
    grid = grids.affine(*(np.asarray(b) for b in bounds["second"]))
    alone = Alone(shop, list(bounds), [FEED], threads=1)
    assert alone.noise({}) == 0.0
    fine = alone.noise({"second": (bounds["second"], {})})
    low, high = bounds["second"]
    rough = alone.noise({"second": ((low * 4, high * 4), {})})
    assert rough == pytest.approx(16 * fine, rel=0.5), "four times the step, sixteen times the noise"
    error = np.square(values - grid.snap(values)).mean()
    assert error < float(grid.scale) ** 2 / 4
    errors = near.errors(readings)
    assert set(errors["second"]) == {"y"}
    assert near.losses(readings)["second"] < 0.01


def test_saturated_outputs_are_judged_by_what_they_saturate() -> None:
    net = Net(2)
    x = net.add(
        "MatMul", ["x", net.constant("w", 50 * net.rng.normal(size=(8, 3)).astype(np.float32))], "scores"
    )
    net.add("Softmax", [x], "y", axis=-1)
    proto = net.build({"x": (TensorProto.FLOAT, ["N", 8])}, {"y": (TensorProto.FLOAT, ["N", 3])})
    model = Model(ir.from_proto(proto))
    feed = {"x": np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)}
    shop = Workshop(model, infer_shapes(model, {"N": 6}), ["scores"])
    seen = observe(shop.model, shop.watches(), [feed], threads=1)
    rough = shop.build(
        Choice(rounded(shop, 3), {name: choose_range(o, "minmax") for name, o in seen.items()})
    )
    assert Judge.of(shop.model, [feed], threads=1).noise(rough) > 1e-3
    assert [v.name for v in rough.graph.outputs] == ["y"]


def test_the_quick_way_says_when_little_of_the_answer_is_left(tmp_path: Path) -> None:
    model = spoiled(50.0).model
    listing = list_layers(model, {"N": 4})
    np.savez(tmp_path / "data.npz", **FEED)
    data = open_data(DataSpec(path=str(tmp_path / "data.npz")), listing.inputs, dict(listing.input_sizes))
    told: list[str] = []
    context = Context(calibration=data, threads=1, note=told.append)
    step = Step(settings=QuantizeStatic(calibrator="minmax"))
    plan = plan_step(listing, step, context)
    find(step.settings).apply(listing, plan, context)
    assert len(told) == 1
    assert "The preset Careful" in told[0]


def test_whatever_work_they_do_layers_stay_in_float_that_would_make_the_answer_worthless(
    tmp_path: Path,
) -> None:
    model = spoiled(3000.0).model
    listing = list_layers(model, {"N": 4})
    np.savez(tmp_path / "data.npz", **FEED)
    data = open_data(DataSpec(path=str(tmp_path / "data.npz")), listing.inputs, dict(listing.input_sizes))
    step = Step(settings=QuantizeStatic())
    plan = plan_step(listing, step, Context(calibration=data, threads=1))
    assert [action.layer for action in plan.actions] == ["first_node"]
    assert [refusal.better for refusal in plan.refusals] == [True, True]


def test_looking_closer_takes_as_many_samples_as_there_is_time_for(tmp_path: Path) -> None:
    listing = list_layers(spoiled(50.0).model, {"N": 4})
    np.savez(tmp_path / "data.npz", **FEED)
    data = open_data(DataSpec(path=str(tmp_path / "data.npz")), listing.inputs, dict(listing.input_sizes))
    counts = [
        sum(len(feed["x"]) for feed in first_samples(data, 10**9, most)) for most in (0, 3, data.samples)
    ]
    assert counts == [1, 3, data.samples]


def test_a_preview_does_not_search_and_says_so(tmp_path: Path) -> None:
    model = spoiled(3000.0).model
    listing = list_layers(model, {"N": 4})
    np.savez(tmp_path / "data.npz", **FEED)
    data = open_data(DataSpec(path=str(tmp_path / "data.npz")), listing.inputs, dict(listing.input_sizes))
    context = Context(calibration=data, threads=1, preview=True)
    plan = plan_step(listing, Step(settings=QuantizeStatic(preset="careful")), context)
    assert not plan.refusals
    assert any("when this is carried out" in note for note in plan.notes)
