"""The check of a cut: deaf to rounding, never to a wrong channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from studio.engine.graph import load
from studio.engine.groups.cut import cut_twins
from studio.engine.groups.grouping import Grouping, find_groups
from studio.engine.groups.trace import trace
from studio.engine.layers import list_layers
from studio.engine.pruning.oracle import Verified, verify

FEED = {"x": np.random.default_rng(9).standard_normal((1, 4, 12, 12)).astype("f4")}


def convolutions(path: Path, gain: float, depth: int, bias: float = 0.0, last: str = "Sigmoid") -> Grouping:
    """Convolutions without activations, the outputs `gain` times as large as the inputs, saturated at the end."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for k in range(depth):
        shape = (1 if k == depth - 1 else 4, 4, 3, 3)
        weights.append(numpy_helper.from_array((rng.standard_normal(shape) / 6).astype("f4"), f"w{k}"))
        nodes.append(helper.make_node("Conv", [value, f"w{k}"], [f"c{k}"], name=f"conv{k}", pads=[1] * 4))
        nodes.append(helper.make_node("Mul", [f"c{k}", "gain"], [f"g{k}"]))
        value = f"g{k}"
        if k < depth - 1:
            nodes.append(helper.make_node("Sin", [value], [f"s{k}"]))
            value = f"s{k}"
    weights.append(numpy_helper.from_array(np.float32(gain), "gain"))
    weights.append(numpy_helper.from_array(np.float32(bias), "bias"))
    nodes.append(helper.make_node("Add", [value, "bias"], ["front"]))
    nodes.append(helper.make_node(last, ["front"], ["y"]))
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 12, 12])], weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    listing = list_layers(load(path))
    return find_groups(trace(listing.model, listing.shapes), listing)


def checked(grouping: Grouping, *, wrong: bool) -> Verified:
    """Cut channel 1 of the first group; a wrong cut removes channel 2 where channel 1 should go."""
    first = grouping.groups[0]

    def gone(channel: int) -> np.ndarray:
        return grouping.gone({first.record.name: np.arange(first.record.width) == channel})

    twins = cut_twins(grouping.trace, gone(2 if wrong else 1))
    return verify(grouping.trace, gone(1), twins, FEED, threads=1)


def test_an_output_that_a_sigmoid_has_flattened_is_judged_in_front_of_it(tmp_path):
    grouping = convolutions(tmp_path / "net.onnx", 1.0, 3, bias=-30.0)
    right = checked(grouping, wrong=False)
    assert right.exact
    assert right.error < 1e-5
    assert not checked(grouping, wrong=True).exact


@pytest.mark.parametrize("depth", [2, 5, 8])
def test_rounding_that_a_network_makes_much_of_is_no_fault_and_a_wrong_channel_is(tmp_path, depth):
    grouping = convolutions(tmp_path / "net.onnx", 4.0, depth)
    assert checked(grouping, wrong=False).exact
    wrong = checked(grouping, wrong=True)
    assert not wrong.deaf
    assert not wrong.exact


def test_a_network_that_turns_rounding_into_noise_cannot_be_verified_and_that_is_said(tmp_path):
    grouping = convolutions(tmp_path / "net.onnx", 40.0, 9)
    found = checked(grouping, wrong=True)
    assert found.deaf
    assert not found.exact
    assert "not verified" in found.words


def test_noise_above_the_tolerance_widens_it_and_is_told():
    noisy = Verified(error=3e-4, live=1, noise=1e-4)
    assert noisy.exact
    assert "rounding alone" in noisy.words
    assert not Verified(error=3e-3, live=1, noise=1e-4).exact
    assert not Verified(error=float("inf"), live=1).exact
