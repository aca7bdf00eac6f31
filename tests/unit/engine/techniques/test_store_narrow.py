"""Narrow storage: how near the numbers stay, what cannot be held, and what it is called afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support import nets

from studio.engine import execute, graph
from studio.engine.edit import set_constant
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.engine.techniques.store_narrow import narrowed
from studio.records.steps import Step, StoreNarrow

SIZES = {"N": 4, "T": 12}
FORMATS = pytest.mark.parametrize(
    ("format_", "bits", "floor"), [("bf16", 8, 0.0), ("fp16", 11, 2**-14), ("fp8", 4, 2**-6 / 448)]
)


@FORMATS
@settings(deadline=None, max_examples=50)
@given(
    w=arrays.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.floats(-1000, 1000, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30),
    )
)
def test_every_number_keeps_the_precision_of_its_format(
    format_: str, bits: int, floor: float, w: np.ndarray
) -> None:
    narrow, scale = narrowed(w, format_)
    back = narrow.astype(np.float32) * np.float32(scale)
    smallest = floor * (np.abs(w).max() if format_ == "fp8" else 1)
    normal = np.abs(w) > smallest
    assert (np.abs(back - w)[normal] <= np.abs(w[normal]) * 2.0**-bits * (1 + 1e-3)).all()
    assert (back[w == 0] == 0).all()


@FORMATS
def test_the_file_shrinks_and_the_model_runs_as_before(
    format_: str, bits: int, floor: float, tmp_path: Path
) -> None:
    del bits, floor
    listing = list_layers(graph.load(nets.write("transformer", tmp_path)), SIZES)
    step = Step(settings=StoreNarrow(format=format_))  # type: ignore[arg-type]
    plan = plan_step(listing, step, Context(threads=1))
    assert plan.actions
    result = find(step.settings).apply(listing, plan, Context(threads=1))
    graph.save(result, tmp_path / "out.onnx")
    after = list_layers(graph.load(tmp_path / "out.onnx"), SIZES)
    assert after.cost == plan.after
    assert plan.after.bytes < 0.6 * plan.before.bytes
    assert {after.nodes[a.layer].record.precision for a in plan.actions} == {format_}
    feed = nets.feed("transformer", 4)
    wanted, given_ = (execute.run(execute.session(m, threads=1), feed)[0] for m in (listing.model, result))
    assert np.abs(wanted - given_).max() < 0.3 * np.abs(wanted).max()


def test_what_a_format_cannot_hold_is_refused_in_words(tmp_path: Path) -> None:
    model = graph.load(nets.write("cnn", tmp_path))
    layer = next(iter(list_layers(model, SIZES).nodes.values()))
    tensor = graph.constant(layer.weight)
    assert tensor is not None
    set_constant(layer.weight, tensor.numpy() * np.float32(1e7))
    plan = plan_step(list_layers(model, SIZES), Step(settings=StoreNarrow(format="fp16")), Context())
    assert any("more than fp16 can hold" in r.reason for r in plan.refusals if r.layer == layer.record.name)
