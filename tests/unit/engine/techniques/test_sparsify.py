"""Zeros in place: as many as were asked for, in every layer and by every method, and in their pattern."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from studio.engine.dataset import open_for
from studio.engine.graph import constant, load
from studio.engine.layers import Listing, list_layers
from studio.engine.planning import plan_step
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import Sparsify, Step

NETS = Path(__file__).parents[3] / "data" / "nets"


def sparse(listing: Listing, settings: Sparsify, folder: Path) -> dict[str, np.ndarray]:
    """The weights of every treated layer, by name."""
    shape = [int(d) for d in list(listing.model.graph.inputs[0].shape or ())[1:]]
    np.savez(folder / "d.npz", x=np.random.default_rng(0).standard_normal((16, *shape)).astype("f4"))
    data = open_for(listing.model, DataSpec(path=str(folder / "d.npz")))
    context = Context(calibration=data, threads=1)
    plan = plan_step(listing, Step(settings=settings), context)
    made = list_layers(find(settings).apply(listing, plan, context), dict(listing.input_sizes))
    found = {a.layer: constant(made.nodes[a.layer].weight) for a in plan.actions}
    return {name: tensor.numpy() for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("ratio", [0.5, 0.3])
def test_the_share_of_zeros_is_the_one_asked_for_in_every_layer(method, ratio, tmp_path):
    listing = list_layers(load(NETS / "depthwise_se.torchscript.onnx"), {"N": 2})
    weights = sparse(listing, Sparsify(ratio=ratio, method=method), tmp_path)
    assert any(w.ndim == 4 and w.shape[1] == 1 for w in weights.values())
    for name, weight in weights.items():
        assert abs((weight == 0).sum() - ratio * weight.size) <= 1, name


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_pattern_holds_in_every_run_of_inputs(method, tmp_path):
    listing = list_layers(load(NETS / "residual.torchscript.onnx"), {"N": 2})
    weights = sparse(listing, Sparsify(pattern="2:4", method=method), tmp_path)
    assert weights
    for name, weight in weights.items():
        inputs = weight.reshape(len(weight), weight.shape[1], -1)  # runs lie along the inputs, tap by tap
        runs = inputs.transpose(0, 2, 1).reshape(-1, 4) if weight.ndim == 4 else weight.reshape(-1, 4)
        assert ((runs == 0).sum(axis=1) == 2).all(), name
