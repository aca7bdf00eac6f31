"""Presets: what each kind of layer gets, and what refuses it gets instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support import nets

from studio.app import recipe
from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.engine import graph
from studio.engine.layers import list_layers
from studio.engine.run import apply
from studio.records import presets, task
from studio.records.measure import DataSpec
from studio.records.model import Cost, Layer
from studio.records.steps import QuantizeDynamic, QuantizeStatic, QuantizeWeights, Recipe


def layer(op: str, macs: int = 10, **changes: object) -> Layer:
    plain = {"dtype": "float32", "precision": "fp32", "share": 0.1, "weight": "w", "weight_shape": (1, 1)}
    return Layer(
        name=op, key=op, op=op, operators=(op,), nodes=(op,), cost=Cost(macs=macs), **{**plain, **changes}
    )


def kinds(preset: presets.Preset, *layers: Layer, calibrated: bool = True) -> dict[str, object]:
    chosen = presets.treatments(preset, layers, calibrated=calibrated)
    return {name: settings for settings, names in chosen for name in names}


def test_products_beside_convolutions_are_static_and_those_of_a_transformer_dynamic() -> None:
    found = kinds("fast", layer("Conv", 100), layer("Gemm"))
    assert found == {"Conv": QuantizeStatic(), "Gemm": QuantizeStatic()}
    found = kinds("fast", layer("Conv", 1), layer("MatMul", 100), layer("LSTM"), layer("Gather", 0))
    assert found["Conv"] == QuantizeStatic()
    assert {type(found[op]) for op in ("MatMul", "LSTM", "Gather")} == {QuantizeDynamic}


def test_small_takes_four_bits_where_they_run() -> None:
    found = kinds("small", layer("Conv", 1), layer("MatMul", 100), layer("Gather", 0), layer("LSTM"))
    assert found["Conv"] == QuantizeStatic(preset="careful")
    assert found["MatMul"] == found["Gather"] == QuantizeWeights(bits=4, preset="careful")
    assert found["LSTM"] == QuantizeDynamic(preset="careful")


def test_without_calibration_data_nothing_is_static() -> None:
    found = kinds("careful", layer("Conv", 100), layer("Gemm"), calibrated=False)
    assert set(map(type, found.values())) == {QuantizeWeights}


def test_layers_that_hold_no_floats_or_cannot_be_treated_are_left_out() -> None:
    assert kinds("fast", layer("Conv", dtype="int8"), layer("Gemm", untreatable="a reason")) == {}


@pytest.mark.parametrize("name", ["fast", "careful", "small"])
def test_a_preset_survives_yaml_and_is_named_in_the_command(name: presets.Preset) -> None:
    whole = Recipe(preset=name, seed=3, name="mine")
    assert recipe.from_yaml(recipe.to_yaml(whole)) == whole
    assert f"--preset {name} --seed 3" in recipe.command(whole, "m.onnx", "o.onnx")


def test_an_unknown_preset_and_one_beside_steps_are_refused() -> None:
    with pytest.raises(StudioError):
        recipe.of_preset("tiny")
    with pytest.raises(StudioError, match="both"):
        recipe.from_yaml("preset: fast\nsteps: [fp16]")


def applied(folder: Path, preset: presets.Preset, **changes: object) -> task.Applied:
    asked = task.Apply(
        model=str(folder / "m.onnx"),
        recipe=Recipe(preset=preset),
        output=str(folder / "out.onnx"),
        threads=1,
        checkpoints=False,
        **changes,
    )
    return apply(asked, Progress(), lambda _news: None)


def test_a_preset_is_carried_out_and_what_static_int8_refuses_stores_eight_bits(tmp_path: Path) -> None:
    net = nets.Net()
    net.add("Conv", ["x", net.weight("w", 8, 3, 3, 3)], "h", pads=[1, 1, 1, 1])
    net.add("Relu", ["h"], "r")
    net.add("ConvTranspose", ["r", net.weight("v", 8, 4, 3, 3)], "y")
    proto = net.build({"x": (1, ["N", 3, 8, 8])}, {"y": (1, ["N", 4, 10, 10])}, 17)
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32))
    done = applied(tmp_path, "fast", calibration=DataSpec(path=str(tmp_path / "c.npz")))
    assert [type(plan.step.settings) for plan in done.plans] == [QuantizeStatic, QuantizeWeights]
    layers = list_layers(graph.load(tmp_path / "out.onnx")).layers
    assert all("8" in found.precision for found in layers)


def test_a_preset_with_nothing_to_do_says_so(tmp_path: Path) -> None:
    net = nets.Net()
    net.add("Relu", ["x"], "y")
    onnx.save(net.build({"x": (1, ["N", 3])}, {"y": (1, ["N", 3])}, 17), tmp_path / "m.onnx")
    with pytest.raises(StudioError, match="nothing to quantize"):
        applied(tmp_path, "small")
