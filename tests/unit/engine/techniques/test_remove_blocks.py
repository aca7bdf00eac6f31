"""Whole residual blocks leave the graph, those that are missed least first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto
from support.nets import Net

from studio.base.progress import Progress
from studio.engine import execute, graph
from studio.engine.dataset import Dataset, open_data
from studio.engine.layers import Listing, list_layers
from studio.engine.planning import plan_step
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.engine.techniques.remove_blocks import blocks
from studio.records.measure import DataSpec
from studio.records.steps import RemoveBlocks, Step

SCALES = {"a": 1.0, "b": 0.01, "c": 0.5, "d": 0.02}


def residual_net(folder: Path) -> tuple[Listing, Dataset]:
    """Four residual blocks of which b and d do next to nothing."""
    net = Net(seed=4)
    value = net.add("Gemm", ["x", net.weight("stem", 12, 8)], "s", transB=1)
    for name, scale in SCALES.items():
        net.add("Gemm", [value, net.weight(f"{name}1", 12, 12)], f"{name}_h", transB=1)
        net.add("Relu", [f"{name}_h"], f"{name}_r")
        weight = (net.rng.normal(size=(12, 12)) * scale).astype(np.float32)
        net.add("Gemm", [f"{name}_r", net.constant(f"{name}2", weight)], f"{name}_o", transB=1)
        value = net.add("Add", [f"{name}_o", value] if name in "bc" else [value, f"{name}_o"], f"{name}_y")
    net.add("Gemm", [value, net.weight("head", 5, 12)], "y", transB=1)
    proto = net.build({"x": (TensorProto.FLOAT, ["N", 8])}, {"y": (TensorProto.FLOAT, ["N", 5])})
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    listing = list_layers(graph.load(folder / "net.onnx"))
    np.savez(folder / "x.npz", x=np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32))
    return listing, open_data(DataSpec(path=str(folder / "x.npz")), listing.inputs, dict(listing.input_sizes))


def test_every_residual_block_is_found_with_its_layers(tmp_path: Path) -> None:
    listing, _ = residual_net(tmp_path)
    found = blocks(listing)
    assert [b.key for b in found] == ["a_y", "b_y", "c_y", "d_y"]
    assert found[1].layers == {"b_h_node", "b_o_node"}


def test_the_blocks_that_do_least_go_and_the_answers_stay(tmp_path: Path) -> None:
    listing, data = residual_net(tmp_path)
    context = Context(calibration=data, threads=1)
    plan = plan_step(listing, Step(settings=RemoveBlocks(blocks=2)), context)
    assert {a.layer for a in plan.actions} == {"b_h_node", "b_o_node", "d_h_node", "d_o_node"}
    model = find(RemoveBlocks()).apply(listing, plan, context)
    assert list_layers(model).cost == plan.after
    before, after = (
        np.concatenate([o[0] for o in execute.outputs(m, data.feeds(), Progress())])
        for m in (listing.model, model)
    )
    assert float(np.square(before - after).mean()) < 0.01 * float(before.var())


def test_never_all_blocks_go_and_without_data_none_does(tmp_path: Path) -> None:
    listing, data = residual_net(tmp_path)
    plan = plan_step(listing, Step(settings=RemoveBlocks(blocks=99)), Context(calibration=data, threads=1))
    assert len({a.what for a in plan.actions}) == 3
    bare = plan_step(listing, Step(settings=RemoveBlocks()), Context())
    assert not bare.actions
    assert all(r.reason for r in bare.refusals)


def test_only_blocks_that_were_chosen_whole_may_go(tmp_path: Path) -> None:
    listing, data = residual_net(tmp_path)
    step = Step(settings=RemoveBlocks(blocks=1), layers=("a_*", "c_h_node"))
    plan = plan_step(listing, step, Context(calibration=data, threads=1))
    assert {a.layer for a in plan.actions} <= {"a_h_node", "a_o_node"}
