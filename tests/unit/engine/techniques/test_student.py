"""A scaled student is a slice of its teacher: narrower everywhere, blocks left out evenly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from support.nets import Net

from studio.engine import execute, graph
from studio.engine.layers import Listing, list_layers
from studio.engine.planning import plan_step
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records.steps import Step, Student


def deep_net(folder: Path, blocks: int = 6) -> Listing:
    net = Net(seed=4)
    value = net.add("Gemm", ["x", net.weight("stem", 12, 8)], "s", transB=1)
    for n in range(blocks):
        net.add("Gemm", [value, net.weight(f"{n}in", 12, 12)], f"{n}h", transB=1)
        net.add("Relu", [f"{n}h"], f"{n}r")
        net.add("Gemm", [f"{n}r", net.weight(f"{n}out", 12, 12)], f"{n}o", transB=1)
        value = net.add("Add", [value, f"{n}o"], f"{n}y")
    net.add("Gemm", [value, net.weight("head", 5, 12)], "y", transB=1)
    proto = net.build({"x": (TensorProto.FLOAT, ["N", 8])}, {"y": (TensorProto.FLOAT, ["N", 5])})
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return list_layers(graph.load(folder / "net.onnx"))


def made(listing: Listing, how: Student) -> Listing:
    plan = plan_step(listing, Step(settings=how), Context())
    model = find(how).apply(listing, plan, Context())
    small = list_layers(model)
    assert small.cost == plan.after
    answer = execute.run(execute.session(model, threads=1), {"x": np.zeros((3, 8), np.float32)})[0]
    assert answer.shape == (3, 5)
    return small


@pytest.mark.parametrize(("depth", "stay"), [(0.5, "024"), (0.67, "0235"), (0.17, "5")])
def test_blocks_are_left_out_evenly(tmp_path: Path, depth: float, stay: str) -> None:
    small = made(deep_net(tmp_path), Student(width=1, depth=depth))
    assert len({layer.name[0] for layer in small.layers} & set("012345")) == len(stay)


def test_the_widest_rows_of_the_teacher_are_kept_as_they_are(tmp_path: Path) -> None:
    listing = deep_net(tmp_path)
    small = made(listing, Student(width=0.5))
    for name in ("0h_node", "3h_node"):
        whole, part = (x.nodes[name].weight.const_value.numpy() for x in (listing, small))  # type: ignore[union-attr]
        assert part.shape == (6, 6)
        assert all(any(np.isin(row, old).all() for old in whole) for row in part)
    assert small.cost.parameters < 0.35 * listing.cost.parameters


def test_without_change_nothing_is_done(tmp_path: Path) -> None:
    listing = deep_net(tmp_path)
    plan = plan_step(listing, Step(settings=Student(width=1, depth=1)), Context())
    assert not plan.actions
    assert len(plan.refusals) == len(listing.layers)
