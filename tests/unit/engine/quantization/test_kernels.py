"""The report of kernels says what really runs, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from support import nets

from studio.engine import graph
from studio.engine.dataset import open_data
from studio.engine.graph import Model
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization import kernels
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records import steps
from studio.records.measure import DataSpec


def treated(net: str, settings: steps.AnySettings, folder: Path) -> Model:
    listing = list_layers(graph.load(nets.write(net, folder)), {"N": 4, "T": 12})
    np.savez(folder / "data.npz", **nets.feed(net, 8))
    data = open_data(DataSpec(path=str(folder / "data.npz")), listing.inputs, dict(listing.input_sizes))
    context = Context(calibration=data, threads=1)
    plan = plan_step(listing, steps.Step(settings=settings), context)
    return find(settings).apply(listing, plan, context)


def test_static_and_dynamic_products_are_integer(tmp_path: Path) -> None:
    found = kernels.report(treated("cnn", steps.QuantizeStatic(), tmp_path))
    assert {k.kernel for k in found} == {"QLinearConv", "QGemm"}
    assert all(k.integer for k in found)
    found = kernels.report(treated("transformer", steps.QuantizeDynamic(form="integer"), tmp_path))
    assert all(k.integer for k in found if k.layer != "embedded_node")
    assert [k.reason for k in found if not k.integer] == [found[0].reason], "narrow rows fit no block of 128"


def test_weights_that_are_unpacked_at_load_are_told_to_run_in_float(tmp_path: Path) -> None:
    model = treated("cnn", steps.QuantizeWeights(bits=8), tmp_path)
    words = kernels.in_words(model)
    assert words[0].startswith("1 of 5")
    assert "unpacked when the model is loaded" in words[1]


def test_a_float_model_has_nothing_to_report() -> None:
    assert kernels.in_words(Model(ir.from_proto(nets.cnn()))) == ()
