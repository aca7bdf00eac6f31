"""What a cut model says of its sizes, and what it stores: the same whichever channels go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from studio.engine.execute import run, session
from studio.engine.graph import load
from studio.engine.groups.cut import cut_twins
from studio.engine.groups.grouping import Grouping, find_groups
from studio.engine.groups.trace import trace
from studio.engine.layers import list_layers
from tests.support.models import floats, model, write

FLOAT = TensorProto.FLOAT


def grouped(path: Path, sizes: dict[str, int]) -> Grouping:
    listing = list_layers(load(path), sizes)
    return find_groups(trace(listing.model, listing.shapes), listing)


def test_a_size_of_samples_times_heads_is_not_said_to_be_that_of_one_sample(tmp_path):
    """As torch writes attention: heads and samples share an axis whose size the file names '4*N'."""
    nodes = [
        *(helper.make_node("MatMul", ["x", name], [f"{name}x"], name=name) for name in "qv"),
        *(helper.make_node("Reshape", [f"{name}x", "merged"], [f"{name}m"]) for name in "qv"),
        *(helper.make_node("Transpose", [f"{name}m"], [f"{name}t"], perm=[1, 0, 2]) for name in "qv"),
        *(helper.make_node("Reshape", [f"{name}t", "heads"], [f"{name}h"]) for name in "qv"),
        helper.make_node("Add", ["qh", "vh"], ["sum"]),
        helper.make_node("Transpose", ["sum"], ["back"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["back", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "o"], ["y"], name="o"),
    ]
    weights = {
        "q": floats(16, 16, seed=1), "v": floats(16, 16, seed=2), "o": floats(16, 6, seed=3),
        "merged": np.array([5, -1, 4]), "heads": np.array([-1, 4, 5, 4]), "flat": np.array([5, -1, 16]),
    }  # fmt: skip
    proto = model(nodes, {"x": (FLOAT, [5, "N", 16])}, ["y"], weights)
    for name in "qv":
        proto.graph.value_info.append(helper.make_tensor_value_info(f"{name}m", FLOAT, [5, "4*N", 4]))
        proto.graph.value_info.append(helper.make_tensor_value_info(f"{name}t", FLOAT, ["4*N", 5, 4]))
    grouping = grouped(write(proto, tmp_path / "net.onnx"), {"N": 1})
    heads = next(g for g in grouping.groups if g.kind == "outer")
    cut = cut_twins(grouping.trace, grouping.narrowed({heads.record.name: 3})).copy
    said = {v.name: v.shape for node in cut.graph for v in node.outputs if v.name in {"qm", "qt"}}
    assert said["qm"][1] != 3
    assert said["qt"][0] != 3
    assert run(session(cut, threads=1), {"x": floats(5, 7, 16)})[0].shape == (5, 7, 6)


def test_layers_that_share_a_vector_share_what_is_left_only_if_they_are_cut_together(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "a", "nought"], ["ax"], name="a"),
        helper.make_node("Relu", ["ax"], ["ar"]),
        helper.make_node("Gemm", ["ar", "b", "nought"], ["bx"], name="b"),
        helper.make_node("Relu", ["bx"], ["br"]),
        helper.make_node("Gemm", ["br", "c"], ["y"], name="c"),
    ]
    weights = {name: floats(8, 8, seed=i) for i, name in enumerate("abc")} | {"nought": np.zeros(8, "f4")}
    proto = model(nodes, {"x": (FLOAT, ["N", 8])}, ["y"], weights)
    grouping = grouped(write(proto, tmp_path / "net.onnx"), {"N": 1})
    sizes = []
    upper = np.arange(8) >= 4
    for masks in ((upper, upper), (upper, ~upper)):
        removed = {group.record.name: mask for group, mask in zip(grouping.groups, masks, strict=True)}
        cut = cut_twins(grouping.trace, grouping.gone(removed)).copy
        sizes.append(list_layers(cut, {"N": 1}).cost)
    assert sizes[0] == sizes[1]
