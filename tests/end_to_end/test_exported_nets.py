"""Nets as both exporters of torch write them go through the quick techniques and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from studio.engine import execute, graph
from studio.engine.dataset import Dataset, open_data
from studio.engine.layers import Listing, list_layers
from studio.engine.planning import plan_step
from studio.engine.run import apply_steps
from studio.engine.techniques.contract import Context
from studio.records import steps
from studio.records.measure import DataSpec

NETS = sorted((Path(__file__).resolve().parents[1] / "data" / "nets").glob("*.onnx"))
QUICK: tuple[steps.AnySettings, ...] = (
    steps.Fp16(),
    steps.QuantizeWeights(bits=4),
    steps.QuantizeDynamic(),
    steps.QuantizeStatic(),
    steps.Sparsify(pattern="2:4"),
)


@pytest.mark.parametrize("path", NETS, ids=lambda path: path.stem)
def test_an_exported_net_is_treated_as_planned_and_runs(path: Path, tmp_path: Path) -> None:
    listing = list_layers(graph.load(path))
    data = open_data(DataSpec(kind="random", limit=4), listing.inputs, dict(listing.input_sizes))
    done = [settings for settings in QUICK if treated(listing, settings, data, tmp_path / "out.onnx")]
    assert len(done) >= len(QUICK) - 1, "only one kind of quantization may have nothing to do"


def treated(listing: Listing, settings: steps.AnySettings, data: Dataset, target: Path) -> bool:
    """Carry one technique out on all layers; False where all of them are refused."""
    sizes = dict(listing.input_sizes)
    step = steps.Step(settings=settings, layers=("*",))
    context = Context(calibration=data, threads=1)
    if not plan_step(listing, step, context).actions:
        return False
    model, plans = apply_steps(listing.model, (step,), context, sizes)
    graph.save(model, target)
    assert list_layers(graph.load(target), sizes).cost == plans[-1].after
    for value in execute.run(execute.session(target, threads=1), data.first()):
        assert np.isfinite(np.asarray(value, np.float64)).all()
    return True
