"""What is refused before any technique is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support import nets

from studio.base.errors import StudioError
from studio.engine import graph
from studio.engine.layers import Listing, list_layers
from studio.engine.planning import plan_step, plan_steps
from studio.engine.run import apply_steps
from studio.engine.techniques.contract import Context
from studio.records.steps import Factorize, Fp16, QuantizeWeights, Settings, Sparsify, Step


@pytest.fixture
def broken(tmp_path: Path) -> tuple[Listing, str]:
    """A small network with one NaN, and the layer that holds it."""
    path = nets.write("cnn", tmp_path)
    proto = onnx.load(path)
    tensor = next(t for t in proto.graph.initializer if len(t.dims) == 4)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[3] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, path)
    listing = list_layers(graph.load(path))
    return listing, next(layer.name for layer in listing.layers if layer.weight == tensor.name)


@pytest.mark.parametrize("settings", [Fp16(), QuantizeWeights(), Sparsify(), Factorize()])
def test_a_layer_with_a_nan_is_refused_and_the_others_are_treated(
    broken: tuple[Listing, str], settings: Settings
) -> None:
    listing, name = broken
    step = Step(settings=settings, layers=("*",))  # type: ignore[arg-type]
    context = Context(threads=1, agreed=True)
    plans = (plan_step(listing, step, context), *plan_steps(listing, (step, step), context))
    for plan in plans:
        assert {r.reason for r in plan.refusals if r.layer == name} == {"its weights hold NaN or infinities"}
        assert name not in {action.layer for action in plan.actions}
    model, (done,) = apply_steps(listing.model, (step,), context, {})
    assert done.actions
    assert len(list_layers(model).layers) >= len(listing.layers)


def test_a_step_that_can_treat_nothing_says_why(broken: tuple[Listing, str]) -> None:
    listing, name = broken
    with pytest.raises(StudioError, match=f"cannot treat {name}: its weights hold NaN"):
        apply_steps(listing.model, (Step(settings=Fp16(), layers=(name,)),), Context(threads=1), {})
