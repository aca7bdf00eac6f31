"""Refit of layers inside If, Loop and Scan: judged on samples that it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from studio.engine.dataset import open_for
from studio.engine.execute import run, session
from studio.engine.graph import load
from studio.engine.layers import Listing, list_layers
from studio.engine.planning import plan_step
from studio.engine.techniques.contract import Context
from studio.engine.techniques.prune_channels import ChannelPruning
from studio.records.measure import DataSpec
from studio.records.steps import PruneChannels, Step
from tests.support.models import model, write

FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
WIDE, SAMPLES = 24, 96


def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"{op}_{outputs[0]}", **attributes)


def floats(*shape: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])).astype("f4")


def body(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int]]],
    outputs: dict[str, tuple[int, list[int]]],
    weights: dict[str, np.ndarray],
) -> onnx.GraphProto:
    return helper.make_graph(
        nodes, "body",
        [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()],
        [helper.make_tensor_value_info(name, *what) for name, what in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip


def hidden(given: str, out: str, tag: str) -> list[onnx.NodeProto]:
    """Two layers with `WIDE` channels between them."""
    return [
        node("MatMul", [given, f"up{tag}"], [f"u{tag}"]),
        node("Relu", [f"u{tag}"], [f"r{tag}"]),
        node("MatMul", [f"r{tag}", f"down{tag}"], [f"d{tag}"]),
        node("Add", [f"d{tag}", f"bias{tag}"], [out]),
    ]


def weights(tag: str, seed: int) -> dict[str, np.ndarray]:
    return {
        f"up{tag}": floats(8, WIDE, seed=seed),
        f"down{tag}": floats(WIDE, 8, seed=seed + 1),
        f"bias{tag}": floats(8, seed=seed + 2),
    }


def branches() -> onnx.ModelProto:
    """x -> then or else by the mean of x, the then-branch with an If of its own."""
    inner = body(hidden("then", "deep", "i"), {}, {"deep": (FLOAT, [1, 8])}, weights("i", 20))
    plain = body([node("Identity", ["then"], ["flat"])], {}, {"flat": (FLOAT, [1, 8])}, {})
    first = [
        *hidden("a", "then", "t"),
        node("If", ["large"], ["out_t"], then_branch=inner, else_branch=plain),
    ]
    sides = {
        "then_branch": body(first, {}, {"out_t": (FLOAT, [1, 8])}, weights("t", 30)),
        "else_branch": body(hidden("a", "out_e", "e"), {}, {"out_e": (FLOAT, [1, 8])}, weights("e", 40)),
    }
    nodes = [
        node("MatMul", ["x", "first"], ["a"]),
        node("ReduceMean", ["x"], ["mean"], keepdims=0),
        node("Greater", ["mean", "zero"], ["more"]),
        node("Greater", ["mean", "some"], ["large"]),
        node("If", ["more"], ["y"], **sides),
    ]
    numbers = {"first": floats(8, 8, seed=3), "zero": np.float32(0), "some": np.float32(0.1)}
    return model(nodes, {"x": (FLOAT, [1, 8])}, ["y"], numbers)


def rounds() -> onnx.ModelProto:
    """Three rounds of a residual block, the state handed out in each; a layer before and one behind."""
    inside = body(
        [*hidden("h", "step", "l"), node("Add", ["h", "step"], ["s"]), node("Tanh", ["s"], ["next"]),
         node("Identity", ["go"], ["still"]), node("Identity", ["next"], ["seen"])],
        {"i": (INT64, []), "go": (BOOL, []), "h": (FLOAT, [1, 8])},
        {"still": (BOOL, []), "next": (FLOAT, [1, 8]), "seen": (FLOAT, [1, 8])},
        weights("l", 50),
    )  # fmt: skip
    nodes = [
        *hidden("x", "a", "f"),
        node("Loop", ["three", "yes", "a"], ["b", "all"], body=inside),
        node("MatMul", ["b", "last"], ["y"]),
        node("MatMul", ["all", "last2"], ["z"]),
    ]
    numbers = weights("f", 60) | {
        "last": floats(8, 3, seed=5), "last2": floats(8, 2, seed=6), "three": np.int64(3), "yes": np.bool_(True),
    }  # fmt: skip
    return model(nodes, {"x": (FLOAT, [1, 8])}, ["y", "z"], numbers)


def scanned() -> onnx.ModelProto:
    """A recurrent cell written as a Scan over six steps of x."""
    inside = body(
        [*hidden("h", "was", "h"), *hidden("step", "new", "x"), node("Add", ["was", "new"], ["s"]),
         node("Tanh", ["s"], ["next"]), node("Identity", ["next"], ["seen"])],
        {"h": (FLOAT, [1, 8]), "step": (FLOAT, [1, 8])},
        {"next": (FLOAT, [1, 8]), "seen": (FLOAT, [1, 8])},
        weights("h", 70) | weights("x", 80),
    )  # fmt: skip
    nodes = [
        node("Reshape", ["x", "steps"], ["xs"]),
        node("Scan", ["start", "xs"], ["end", "all"], body=inside, num_scan_inputs=1),
        node("MatMul", ["all", "last"], ["y"]),
    ]
    numbers = {"last": floats(8, 3, seed=3), "start": np.zeros((1, 8), "f4"), "steps": np.array([6, 1, 8])}
    return model(nodes, {"x": (FLOAT, [1, 48])}, ["y"], numbers)


def opened(made: onnx.ModelProto, folder: Path, *, low: float = -1.0) -> tuple[Listing, Context, list[dict]]:
    """The model listed, a context with samples, and others to judge by."""
    listing = list_layers(load(write(made, folder / "model.onnx")), {})
    rng = np.random.default_rng(1)
    width = made.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    means = rng.uniform(low, low + 2, (2 * SAMPLES, 1))
    x = (rng.standard_normal((2 * SAMPLES, width)) + means).astype("f4")
    np.savez(folder / "data.npz", x=x[:SAMPLES])
    data = open_for(listing.model, DataSpec(path=str(folder / "data.npz"), batch=1))
    return (
        listing,
        Context(calibration=data, threads=1, agreed=True),
        [{"x": row[None]} for row in x[SAMPLES:]],
    )


def error(listing: Listing, context: Context, held: list[dict], **settings: Any) -> float:
    step = Step(settings=PruneChannels(**{"ratio": 0.4, "criterion": "l2"} | settings), layers=("*",))
    result = ChannelPruning().apply(listing, plan_step(listing, step, context), context)
    whole, cut = (session(m, threads=1) for m in (listing.model, result))
    return float(
        np.mean(
            [np.square(a - b).mean() for x in held for a, b in zip(run(whole, x), run(cut, x), strict=True)]
        )
    )


@pytest.mark.parametrize("net", [branches, rounds, scanned])
def test_layers_in_bodies_are_repaired(net: Callable[[], onnx.ModelProto], tmp_path):
    listing, context, held = opened(net(), tmp_path)
    assert error(listing, context, held, refit=True) < 0.5 * error(listing, context, held, refit=False)


@pytest.mark.parametrize("net", [branches, rounds, scanned])
def test_calibration_data_choose_better_channels_in_bodies_than_weights(
    net: Callable[[], onnx.ModelProto], tmp_path
):
    listing, context, held = opened(net(), tmp_path)
    told = error(listing, context, held, criterion="obs", refit=True)
    assert told < error(listing, context, held, criterion="l2", refit=True)


@pytest.mark.parametrize("net", [branches, rounds, scanned])
def test_a_budget_is_spread_over_groups_in_bodies(net: Callable[[], onnx.ModelProto], tmp_path):
    listing, context, held = opened(net(), tmp_path)
    assert error(listing, context, held, macs=0.8, criterion="auto", refit=True) < 0.05


def test_branches_that_no_sample_takes_are_asked_about_and_told_of(tmp_path):
    listing, context, _ = opened(branches(), tmp_path, low=2.0)
    step = Step(settings=PruneChannels(ratio=0.4, criterion="l2"), layers=("*",))
    plan = plan_step(listing, step, context)
    assert "in branches that no calibration sample takes" in plan.questions[0]
    assert "branches that no calibration sample takes" in plan.notes[0]
    notes: list[str] = []
    result = ChannelPruning().apply(
        listing, plan, Context(calibration=context.calibration, threads=1, note=notes.append)
    )
    assert any(note.startswith("4 layers refitted") for note in notes)
    assert any("not refitted: no calibration sample comes" in note for note in notes)
    assert list_layers(result, {}).cost == plan.after


def test_where_samples_take_every_branch_nothing_is_asked(tmp_path):
    listing, context, _ = opened(branches(), tmp_path)
    plan = plan_step(listing, Step(settings=PruneChannels(ratio=0.4), layers=("*",)), context)
    assert not plan.questions
    assert not any("branch" in note for note in plan.notes)


def test_the_samples_of_a_refit_are_counted_whatever_shape_the_inputs_have(tmp_path):
    listing, context, _ = opened(rounds(), tmp_path)
    notes: list[str] = []
    told = Context(calibration=context.calibration, threads=1, note=notes.append)
    plan = plan_step(listing, Step(settings=PruneChannels(ratio=0.4, criterion="l2"), layers=("*",)), told)
    ChannelPruning().apply(listing, plan, told)
    assert any(note.endswith(f"on {SAMPLES} samples") for note in notes)


def test_a_budget_that_branches_undo_is_told(tmp_path):
    listing, context, _ = opened(branches(), tmp_path)
    step = Step(settings=PruneChannels(macs=0.9), layers=("*else_branch*",))
    plan = plan_step(listing, step, context)
    assert plan.actions
    assert plan.after.macs == plan.before.macs  # the other branch is the dearer one
    assert "100% of the multiply-accumulates remain" in plan.notes[0]
