"""Sums of two 8-bit products that saturate at 16 bits, against a brute-force sum."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import nets

from studio.base.progress import Progress
from studio.engine import execute, graph
from studio.engine.dataset import open_for
from studio.engine.portability import portability
from studio.engine.quantization import saturation
from studio.records.measure import DataSpec, Measurement, OutputError, Portability
from studio.records.verdict import cautions


def saturated_sum(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(rows, K) × (outputs, K), pair by pair."""
    if codes.shape[1] % 2:
        codes, weights = (np.pad(a, ((0, 0), (0, 1))) for a in (codes, weights))
    pairs = [
        codes[:, None, k].astype(int) * weights[None, :, k]
        + codes[:, None, k + 1].astype(int) * weights[None, :, k + 1]
        for k, _ in pairwise(range(0, codes.shape[1] + 1, 2))
    ]
    return np.sum([np.clip(p, saturation.LOWEST, saturation.HIGHEST) for p in pairs], axis=0)


def quantized_layer(op: str, weights: np.ndarray, zero: int, **attributes: object) -> onnx.ModelProto:
    """x (codes as floats) → Q/DQ → layer; steps of 1, so that the output is the integer sum."""
    net = nets.Net()
    scale = net.constant("scale", np.float32(1))
    zero_point = net.constant("zero", np.uint8(zero))
    net.add("QuantizeLinear", ["x", scale, zero_point], "codes")
    net.add("DequantizeLinear", ["codes", scale, zero_point], "read")
    stored = [net.constant("w", weights.astype(np.int8)), net.constant("ws", np.float32(1))]
    net.add("DequantizeLinear", [*stored, net.constant("wz", np.int8(0))], "weight")
    net.add(op, ["read", "weight"], "y", **attributes)
    rank = 4 if op == "Conv" else 2
    shape: list[int | str] = ["N", 6, 7, 7] if op == "Conv" else ["N", weights.shape[0]]
    return net.build({"x": (1, shape)}, {"y": (1, list("NCHW")[:rank])}, 13)


def twin_of(model: graph.Model, x: np.ndarray) -> tuple[np.ndarray, list[float]]:
    found = saturation.products(model, ["y"])
    largest = saturation.largest_codes(model, found, [{"x": x}], 1)
    twin, beyond = saturation.saturating_twin(model, found, largest)
    y, *peaks = execute.run(
        execute.session(twin, threads=1, optimize="off"), {"x": x}, ["y", *beyond.values()]
    )
    return y, [float(p) for p in peaks]


def load(proto: onnx.ModelProto, folder: Path) -> graph.Model:
    onnx.save(proto, folder / "m.onnx")
    return graph.load(folder / "m.onnx")


@pytest.mark.parametrize("k", [16, 15])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_a_matrix_product_saturates_as_a_sum_of_pairs_does(op: str, k: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights, codes = rng.integers(-127, 128, (k, 5)), rng.integers(0, 256, (9, k))
    zero = 10
    model = load(quantized_layer(op, weights, zero), tmp_path)
    y, (peak,) = twin_of(model, (codes - zero).astype(np.float32))
    wanted = saturated_sum(codes, weights.T) - zero * weights.sum(0)
    exact = (codes - zero) @ weights
    assert (wanted != exact).any()
    assert peak > 0
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize(
    ("groups", "attributes"),
    [
        (1, {}),
        (1, {"pads": [1, 0, 1, 2], "strides": [2, 1], "dilations": [1, 2]}),
        (2, {"pads": [1, 1, 1, 1]}),
    ],
)
def test_a_convolution_pairs_the_channels_of_one_tap(
    groups: int, attributes: dict[str, object], tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    zero, each = 7, 6 // groups
    weights, codes = rng.integers(-127, 128, (4, each, 3, 2)), rng.integers(0, 256, (2, 6, 7, 7))
    model = load(quantized_layer("Conv", weights, zero, group=groups, **attributes), tmp_path)
    y, _ = twin_of(model, (codes - zero).astype(np.float32))
    pads = attributes.get("pads", [0] * 4)
    steps, gaps = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    padded = np.pad(codes, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), constant_values=zero)
    wanted = np.zeros(y.shape)
    for i, j in np.ndindex(*y.shape[2:]):
        rows = slice(i * steps[0], i * steps[0] + 2 * gaps[0] + 1, gaps[0])
        columns = slice(j * steps[1], j * steps[1] + gaps[1] + 1, gaps[1])
        window = padded[:, :, rows, columns].transpose(0, 2, 3, 1)  # (N, kh, kw, channels)
        for group in range(groups):
            read = window[..., group * each : (group + 1) * each].reshape(len(codes), -1)
            out = slice(group * 4 // groups, (group + 1) * 4 // groups)
            kernel = weights[out].transpose(0, 2, 3, 1).reshape(4 // groups, -1)
            wanted[:, out, i, j] = saturated_sum(read, kernel) - zero * kernel.sum(1)
    np.testing.assert_array_equal(y, wanted)


def test_a_dynamic_product_saturates_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    weights, codes = rng.integers(-127, 128, (16, 5)), rng.integers(0, 256, (9, 16))
    net = nets.Net()
    net.add("Cast", ["x"], "codes", to=onnx.TensorProto.UINT8)
    net.add("MatMulInteger", ["codes", net.constant("w", weights.astype(np.int8))], "y")
    model = load(net.build({"x": (1, ["N", 16])}, {"y": (6, ["N", 5])}, 13), tmp_path)
    y, _ = twin_of(model, codes.astype(np.float32))
    np.testing.assert_array_equal(y, saturated_sum(codes, weights.T))


def test_seven_bits_never_saturate(tmp_path: Path) -> None:
    weights = np.full((16, 5), 63) * np.where(np.arange(5) % 2, 1, -1)
    model = load(quantized_layer("MatMul", weights, 0), tmp_path)
    assert saturation.products(model, ["y"]) == []


def test_a_model_without_integers_is_only_run_without_optimization(tmp_path: Path) -> None:
    model = graph.load(nets.write("cnn", tmp_path))
    found = portability(model, open_for(model, DataSpec(kind="random", limit=2)), Progress())
    assert found is not None
    assert found.saturation is None
    assert found.optimization.sqnr_db > 80
    assert found.optimization.data == "random inputs"


def test_a_caution_names_the_remedy_where_saturation_costs_answers() -> None:
    here, there = OutputError(sqnr_db=30), OutputError(sqnr_db=12)
    told = Portability(optimization=OutputError(sqnr_db=100), saturation=there, saturated=("a", "b"))
    (words,) = cautions(Measurement(digest="", file_bytes=1, error=here, portability=told))
    assert "2 layers" in words
    assert "reduce_range" in words
    quiet = Portability(optimization=OutputError(sqnr_db=100), saturation=OutputError(sqnr_db=60))
    assert cautions(Measurement(digest="", file_bytes=1, error=here, portability=quiet)) == ()
