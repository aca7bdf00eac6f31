"""A forecast times the structure that plans leave."""

from __future__ import annotations

from pathlib import Path

import onnx
from support import models

from studio.base.progress import Progress
from studio.engine import graph
from studio.engine.forecast import forecast
from studio.engine.layers import list_layers
from studio.engine.planning import draft, plan_steps
from studio.engine.techniques.contract import Context
from studio.records.steps import PruneChannels, QuantizeDynamic, Step
from studio.records.task import Forecast


def chain(width: int = 256) -> onnx.ModelProto:
    """Two linear layers with a Relu between."""
    weights = {"w1": models.floats(width, width), "w2": models.floats(width, width, seed=1)}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w1"], ["h"]),
        onnx.helper.make_node("Relu", ["h"], ["r"]),
        onnx.helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    return models.model(nodes, {"x": (onnx.TensorProto.FLOAT, [8, width])}, ["y"], weights)


def test_steps_are_drafted_one_on_the_other(tmp_path: Path) -> None:
    path = models.write(chain(), tmp_path / "m.onnx")
    listing = list_layers(graph.load(path))
    steps = (
        Step(settings=PruneChannels(ratio=0.5, refit=False), layers=("*",)),
        Step(settings=QuantizeDynamic(), layers=("*",)),
    )
    plans = plan_steps(listing, steps, Context())
    after = listing
    for plan in plans:
        after = draft(after, plan, Context())
    assert after.cost == plans[-1].after
    answer = forecast(Forecast(model=str(path), plans=plans, threads=1), Progress(), listing)
    assert answer.latency.ratio is not None
    assert answer.latency.runs >= 10
    assert listing.cost == plans[0].before  # nothing was changed
