"""Operators that no exported test net holds: control flow, Einsum, fused attention, quantized layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from studio.engine.graph import load
from studio.engine.groups.atoms import NEVER
from studio.engine.groups.cut import cut_twins
from studio.engine.groups.grouping import Grouping, find_groups
from studio.engine.groups.rules.movement import regroup
from studio.engine.groups.trace import trace
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.pruning.oracle import verify
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records.steps import QuantizeDynamic, QuantizeWeights, Step
from tests.support.models import floats, model, write

FLOAT = TensorProto.FLOAT
Net = tuple[onnx.ModelProto, dict[str, np.ndarray]]


def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"{op}_{outputs[0]}", **attributes)


def body(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int]]],
    outputs: dict[str, tuple[int, list[int]]],
    weights: dict[str, np.ndarray] | None = None,
) -> onnx.GraphProto:
    return helper.make_graph(
        nodes, "body",
        [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()],
        [helper.make_tensor_value_info(name, *what) for name, what in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )  # fmt: skip


def branches() -> Net:
    def side(name: str, seed: int) -> onnx.GraphProto:
        return body(
            [node("Conv", ["a", f"w{name}"], [f"c{name}"], pads=[1] * 4), node("Relu", [f"c{name}"], [f"r{name}"])],
            {}, {f"r{name}": (FLOAT, [1, 6, 5, 5])}, {f"w{name}": floats(6, 8, 3, 3, seed=seed)},
        )  # fmt: skip

    nodes = [
        node("Conv", ["x", "first"], ["a"], pads=[1] * 4),
        node("ReduceMean", ["x"], ["mean"], keepdims=0),
        node("Greater", ["mean", "zero"], ["more"]),
        node("If", ["more"], ["b"], then_branch=side("t", 1), else_branch=side("e", 2)),
        node("Conv", ["b", "last"], ["y"]),
    ]
    weights = {
        "first": floats(8, 3, 3, 3, seed=3),
        "last": floats(2, 6, 1, 1, seed=4),
        "zero": np.float32(0),
    }
    return model(nodes, {"x": (FLOAT, [1, 3, 5, 5])}, ["y"], weights), {"x": floats(1, 3, 5, 5, seed=9)}


def rounds() -> Net:
    inside = body(
        [
            node("MatMul", ["h", "round"], ["m"]),
            node("Tanh", ["m"], ["next"]),
            node("Identity", ["go"], ["still"]),
        ],
        {"i": (TensorProto.INT64, []), "go": (TensorProto.BOOL, []), "h": (FLOAT, [2, 8])},
        {"still": (TensorProto.BOOL, []), "next": (FLOAT, [2, 8])},
    )
    nodes = [
        node("MatMul", ["x", "first"], ["a"]),
        node("Loop", ["three", "yes", "a"], ["b"], body=inside),
        node("MatMul", ["b", "last"], ["y"]),
    ]
    weights = {
        "first": floats(5, 8, seed=1), "round": floats(8, 8, seed=2), "last": floats(8, 3, seed=3),
        "three": np.int64(3), "yes": np.bool_(True),
    }  # fmt: skip
    return model(nodes, {"x": (FLOAT, [2, 5])}, ["y"], weights), {"x": floats(2, 5, seed=9)}


def scanned() -> Net:
    inside = body(
        [
            node("MatMul", ["h", "state"], ["m"]),
            node("Add", ["m", "step"], ["s"]),
            node("Tanh", ["s"], ["next"]),
            node("Identity", ["next"], ["seen"]),
        ],
        {"h": (FLOAT, [2, 8]), "step": (FLOAT, [2, 8])},
        {"next": (FLOAT, [2, 8]), "seen": (FLOAT, [2, 8])},
    )
    nodes = [
        node("MatMul", ["x", "first"], ["a"]),
        node("Scan", ["start", "a"], ["end", "all"], body=inside, num_scan_inputs=1),
        node("MatMul", ["all", "last"], ["y"]),
    ]
    weights = {
        "first": floats(5, 8, seed=1), "state": floats(8, 8, seed=2), "last": floats(8, 3, seed=3),
        "start": floats(2, 8, seed=4),
    }  # fmt: skip
    return model(nodes, {"x": (FLOAT, [4, 2, 5])}, ["y"], weights), {"x": floats(4, 2, 5, seed=9)}


def einsums() -> Net:
    nodes = [
        *(node("MatMul", ["x", name], [f"{name}x"]) for name in "qkv"),
        *(node("Reshape", [f"{name}x", "split"], [f"{name}h"]) for name in "qkv"),
        node("Einsum", ["qh", "kh"], ["scores"], equation="bqhd,bkhd->bhqk"),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("Einsum", ["shares", "vh"], ["mixed"], equation="bhqk,bkhd->bqhd"),
        node("Reshape", ["mixed", "merge"], ["flat"]),
        node("MatMul", ["flat", "o"], ["y"]),
    ]
    weights = {name: floats(6, 32, seed=k) / 4 for k, name in enumerate("qkv")} | {"o": floats(32, 5, seed=7)}
    weights |= {"split": np.array([0, 0, 4, 8]), "merge": np.array([0, 0, 32])}
    return model(nodes, {"x": (FLOAT, [2, 3, 6])}, ["y"], weights), {"x": floats(2, 3, 6, seed=9)}


def attention(domain: str) -> Net:
    products = [node("MatMul", ["x", name], [f"{name}x"]) for name in "qkv"]
    if domain:
        fused = node("MultiHeadAttention", ["qx", "kx", "vx"], ["a"], domain=domain, num_heads=4)
    else:
        fused = node("Attention", ["qx", "kx", "vx"], ["a"], q_num_heads=4, kv_num_heads=4)
    weights = {name: floats(6, 32, seed=k) for k, name in enumerate("qkv")} | {"o": floats(32, 5, seed=7)}
    opset = {"opset": 17, "domains": (domain,)} if domain else {"opset": 23, "ir_version": 11}
    nodes = [*products, fused, node("MatMul", ["a", "o"], ["y"])]
    return model(nodes, {"x": (FLOAT, [2, 3, 6])}, ["y"], weights, **opset), {"x": floats(2, 3, 6, seed=9)}


def fused_layers() -> Net:
    ms = "com.microsoft"
    nodes = [
        node("FusedConv", ["x", "w"], ["a"], domain=ms, activation="Relu"),
        node("GlobalAveragePool", ["a"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("FusedMatMul", ["f", "m"], ["b"], domain=ms, alpha=0.5, transB=1),
        node("BiasGelu", ["b", "bias"], ["g"], domain=ms),
        node("MatMul", ["g", "last"], ["y"]),
    ]
    weights = {
        "w": floats(8, 3, 3, 3, seed=1), "m": floats(12, 8, seed=2), "bias": floats(12, seed=3),
        "last": floats(12, 4, seed=4),
    }  # fmt: skip
    return model(nodes, {"x": (FLOAT, [2, 3, 6, 6])}, ["y"], weights, domains=(ms,)), {
        "x": floats(2, 3, 6, 6)
    }


def quantized() -> Net:
    """Convolutions between Q/DQ pairs, weights as int8 with a scale a channel."""
    nodes, weights, value = [], {}, "x"
    rng = np.random.default_rng(5)
    weights["s"], weights["z"] = np.float32(0.05), np.uint8(128)
    for k, (out, inn) in enumerate(((8, 3), (12, 8), (4, 12))):
        weights[f"w{k}"] = rng.integers(-127, 128, (out, inn, 3, 3)).astype(np.int8)
        weights[f"ws{k}"] = rng.uniform(0.001, 0.003, out).astype("f4")
        weights[f"wz{k}"] = np.zeros(out, np.int8)
        weights[f"b{k}"] = floats(out, seed=k)
        nodes += [
            node("QuantizeLinear", [value, "s", "z"], [f"q{k}"]),
            node("DequantizeLinear", [f"q{k}", "s", "z"], [f"d{k}"]),
            node("DequantizeLinear", [f"w{k}", f"ws{k}", f"wz{k}"], [f"dw{k}"], axis=0),
            node("Conv", [f"d{k}", f"dw{k}", f"b{k}"], [f"c{k}"], pads=[1] * 4),
            node("Relu", [f"c{k}"], [f"r{k}"]),
        ]
        value = f"r{k}"
    return model(nodes, {"x": (FLOAT, [1, 3, 6, 6])}, [value], weights), {"x": floats(1, 3, 6, 6)}


def integers() -> Net:
    """Integer convolutions of ranges taken at every run, as onnxruntime writes them at an old operator set."""
    nodes, weights, value = [], {"wz": np.int8(0)}, "x"
    rng = np.random.default_rng(6)
    for k, (out, inn) in enumerate(((8, 3), (12, 8), (4, 12))):
        weights[f"w{k}"] = rng.integers(-127, 128, (out, inn, 3, 3)).astype(np.int8)
        weights[f"s{k}"] = np.float32(0.002)
        nodes += [
            node("DynamicQuantizeLinear", [value], [f"q{k}", f"qs{k}", f"qz{k}"]),
            node("ConvInteger", [f"q{k}", f"w{k}", f"qz{k}", "wz"], [f"i{k}"], pads=[1] * 4),
            node("Cast", [f"i{k}"], [f"f{k}"], to=FLOAT),
            node("Mul", [f"qs{k}", f"s{k}"], [f"m{k}"]),
            node("Mul", [f"f{k}", f"m{k}"], [f"c{k}"]),
            node("Tanh", [f"c{k}"], [f"t{k}"]),
        ]
        value = f"t{k}"
    proto = model(nodes, {"x": (FLOAT, [1, 3, 6, 6])}, [value], weights, opset=12)
    return proto, {"x": floats(1, 3, 6, 6)}


def twins() -> Net:
    """Two pictures through the same weights, which exporters repeat by Identity nodes."""
    nodes = [node("Identity", ["w"], ["w_again"]), node("Identity", ["b"], ["b_again"])]
    for side, again in (("x", ""), ("z", "_again")):
        nodes += [
            node("Conv", [side, f"w{again}", f"b{again}"], [f"c{side}"]),
            node("Relu", [f"c{side}"], [f"r{side}"]),
            node("Conv", [f"r{side}", "last"], [f"y{side}"]),
        ]
    nodes.append(node("Sub", ["yx", "yz"], ["y"]))
    weights = {"w": floats(8, 3, 3, 3, seed=1), "b": floats(8, seed=2), "last": floats(4, 8, 1, 1, seed=3)}
    pictures = {"x": floats(1, 3, 5, 5, seed=4), "z": floats(1, 3, 5, 5, seed=5)}
    return model(nodes, {n: (FLOAT, [1, 3, 5, 5]) for n in pictures}, ["y"], weights), pictures


NETS = {
    "if": branches,
    "loop": rounds,
    "scan": scanned,
    "einsum": einsums,
    "fused attention": lambda: attention("com.microsoft"),
    "standard attention": lambda: attention(""),
    "fused layers": fused_layers,
    "quantized": quantized,
    "integers": integers,
    "twins": twins,
}


def test_positions_that_are_never_removed_can_be_regrouped(tmp_path):
    proto, _feed = fused_layers()
    listing = list_layers(load(write(proto, tmp_path / "net.onnx")))
    never = np.full(4, NEVER)
    assert [
        len(a) for a in regroup(trace(listing.model, listing.shapes), (never, never), (4, 4), (16,), "here")
    ] == [16]


def grouped(proto: onnx.ModelProto, folder: Path) -> Grouping:
    listing = list_layers(load(write(proto, folder / "net.onnx")))
    return find_groups(trace(listing.model, listing.shapes), listing)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("name", NETS)
def test_a_hand_made_net_is_cut_exactly(name, ratio, tmp_path):
    proto, feed = NETS[name]()
    grouping = grouped(proto, tmp_path)
    rng = np.random.default_rng(1)
    removed = {
        g.record.name: np.isin(
            np.arange(g.record.width), rng.permutation(g.record.width)[: int(ratio * g.record.width)]
        )
        for g in grouping.groups
    }
    assert grouping.groups, [g.blocked for g in grouping.blocked]
    gone = grouping.gone(removed)
    twins = cut_twins(grouping.trace, gone)
    checked = verify(grouping.trace, gone, twins, feed, threads=1)
    assert gone.any()
    assert checked.live > 0
    assert checked.exact


WIDTHS = {
    "if": [6, 8], "loop": [8], "scan": [8], "einsum": [4, 8, 8], "fused attention": [4, 8, 8],
    "standard attention": [4, 8, 8], "fused layers": [8, 12], "quantized": [8, 12],
    "integers": [8, 12], "twins": [8],
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_all_channels_of_a_hand_made_net_are_found(name, tmp_path):
    grouping = grouped(NETS[name]()[0], tmp_path)
    assert sorted(g.record.width for g in grouping.groups) == WIDTHS[name]


@pytest.mark.parametrize(
    ("settings", "widths"), [(QuantizeWeights(bits=4), []), (QuantizeDynamic(form="integer"), [96])]
)
def test_a_layer_quantized_before_is_cut_exactly_or_says_that_pruning_comes_first(settings, widths, tmp_path):
    nodes = [
        node("MatMul", ["x", "a"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "b"], ["y"]),
    ]
    weights = {"a": floats(64, 96), "b": floats(96, 32, seed=1)}
    proto = model(nodes, {"x": (FLOAT, [2, 64])}, ["y"], weights)
    listing = list_layers(load(write(proto, tmp_path / "net.onnx")))
    plan = plan_step(listing, Step(settings=settings, layers=("*",)), Context())
    listing = list_layers(find(settings).apply(listing, plan, Context()))
    grouping = find_groups(trace(listing.model, listing.shapes), listing)
    assert [group.record.width for group in grouping.groups] == widths
    if not widths:
        assert len(grouping.blocked) == 2
        assert all("prune first" in group.blocked for group in grouping.blocked)
    for group in grouping.groups:
        gone = grouping.gone({group.record.name: np.arange(96) % 3 == 0})
        twins = cut_twins(grouping.trace, gone)
        assert verify(grouping.trace, gone, twins, {"x": floats(2, 64, seed=9)}, threads=1).exact


def test_a_size_that_a_shape_says_becomes_what_is_left(tmp_path):
    nodes = [
        node("Conv", ["x", "a"], ["h"]),
        node("Shape", ["h"], ["sizes"]),
        node("Gather", ["sizes", "zero"], ["n"]),
        node("Gather", ["sizes", "one"], ["c"]),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Unsqueeze", ["c", "axes"], ["c1"]),
        node("Concat", ["n1", "c1", "rest"], ["listed"], axis=0),
        node("Reshape", ["h", "listed"], ["flat"]),
        node("Conv", ["flat", "b"], ["y"]),
    ]
    weights = {
        "a": floats(24, 3, 1, 1), "b": floats(2, 24, 1, seed=1), "zero": np.int64(0), "one": np.int64(1),
        "axes": np.array([0]), "rest": np.array([-1]),
    }  # fmt: skip
    feed = {"x": floats(2, 3, 4, 5, seed=9)}
    grouping = grouped(model(nodes, {"x": (FLOAT, ["N", 3, 4, 5])}, ["y"], weights), tmp_path)
    (group,) = grouping.groups
    gone = grouping.gone({group.record.name: np.arange(24) % 3 == 0})
    twins = cut_twins(grouping.trace, gone)
    assert verify(grouping.trace, gone, twins, feed, threads=1).exact
    assert not {"Mul", "Div", "Where"} & {n.op_type for n in twins.copy.graph}
