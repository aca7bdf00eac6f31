"""Kernel times come home to layers, whatever the runtime fuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from support import nets

from studio.base.errors import Cancelled
from studio.base.progress import Progress
from studio.engine.graph import Model, load
from studio.engine.layers import list_layers
from studio.engine.profile import profile, profile_layers
from studio.records.task import Profile, Profiled


def profiled(path: Path, name: str) -> Profiled:
    listing = list_layers(load(path), {})
    return profile_layers(listing, nets.feed(name, 1), 1, Progress())


@pytest.mark.parametrize("name", sorted(nets.NETS))
def test_every_layer_gets_a_time_and_times_add_up(name: str, tmp_path: Path) -> None:
    path = nets.write(name, tmp_path)
    found = profiled(path, name)
    assert [row.layer for row in found.layers] == [layer.name for layer in list_layers(load(path), {}).layers]
    assert all(row.ms >= 0 and row.kernel for row in found.layers)
    assert sum(row.ms for row in found.layers) + found.other_ms == pytest.approx(found.total_ms)
    assert sum(row.share for row in found.layers) <= 1 + 1e-9


def test_a_convolution_in_the_blocked_layout_is_known_by_its_layer(tmp_path: Path) -> None:
    found = {row.layer: row for row in profiled(nets.write("cnn", tmp_path), "cnn").layers}
    kernels = {row.kernel for name, row in found.items() if name != "logits_node"}
    assert kernels <= {"NchwcConv", "FusedConv", "Conv"}
    assert found["logits_node"].kernel == "Gemm"
    assert not any(row.also for row in found.values())


class Samples(CalibrationDataReader):
    def __init__(self) -> None:
        self._rest = iter([nets.feed("cnn", 4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rest, None)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.filterwarnings("ignore")
def test_quantized_kernels_are_known_by_their_layers(form: QuantFormat, tmp_path: Path) -> None:
    quantize_static(
        str(nets.write("cnn", tmp_path)),
        str(tmp_path / "q.onnx"),
        Samples(),
        quant_format=form,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    found = profiled(tmp_path / "q.onnx", "cnn")
    assert len(found.layers) == 5
    assert {row.kernel for row in found.layers} <= {"QLinearConv", "QGemm", "Gemm"}
    assert not any(row.also for row in found.layers)


def test_one_kernel_of_many_layers_is_divided_by_their_weights(tmp_path: Path) -> None:
    """BERT's three projections become one Attention kernel."""
    net, d, heads = nets.Net(5), 32, 2
    parts = {}
    for name in "qkv":
        x = net.add("MatMul", ["x", net.weight(f"w{name}", d, d)], f"m{name}")
        x = net.add("Add", [net.weight(f"b{name}", d), x], f"a{name}")
        shape = net.constant(f"s{name}", np.array([0, 0, heads, d // heads]))
        perm = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        parts[name] = net.add(
            "Transpose", [net.add("Reshape", [x, shape], f"r{name}")], f"t{name}", perm=perm
        )
    scores = net.add("MatMul", [parts["q"], parts["k"]], "scores")
    scaled = net.add("Div", [scores, net.constant("root", np.float32(4))], "scaled")
    mixed = net.add("MatMul", [net.add("Softmax", [scaled], "soft", axis=-1), parts["v"]], "mixed")
    back = net.add("Transpose", [mixed], "back", perm=[0, 2, 1, 3])
    joined = net.add("Reshape", [back, net.constant("flat", np.array([0, 0, d]))], "joined")
    net.add("MatMul", [joined, net.weight("wo", d, d)], "y")
    proto = net.build({"x": (TensorProto.FLOAT, [1, 6, d])}, {"y": (TensorProto.FLOAT, [1, 6, d])})
    listing = list_layers(Model(ir.from_proto(proto)), {})
    found = profile_layers(listing, {"x": np.ones((1, 6, d), np.float32)}, 1, Progress())
    assert len(found.layers) == 4
    together = [row for row in found.layers if row.also]
    if together:  # whether it fuses is the runtime's choice
        assert len({row.ms for row in together}) == 1
    assert sum(row.ms for row in found.layers) + found.other_ms == pytest.approx(found.total_ms)


def test_layers_inside_a_branch_are_timed_once(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[64, 64] x, bool up) => (float[64, 64] y)
    <float[64, 64] w = {WEIGHTS}>
    {
      h = MatMul (x, w)
      y = If (up) <
        then_branch = t () => (float[64, 64] r) { a = MatMul (h, w) r = Relu (a) },
        else_branch = e () => (float[64, 64] r) { a = MatMul (h, w) b = MatMul (a, w) r = Tanh (b) }>
    }""".replace("WEIGHTS", ", ".join(["0.01"] * 4096))
    listing = list_layers(Model(ir.from_proto(onnx.parser.parse_model(text))), {})
    feed = {"x": np.ones((64, 64), np.float32), "up": np.array(True)}
    found = profile_layers(listing, feed, 1, Progress())
    ran = {row.layer for row in found.layers}
    assert len(ran) == 2
    assert not any("else_branch" in name for name in ran)
    assert sum(row.ms for row in found.layers) + found.other_ms == pytest.approx(found.total_ms)


def test_the_task_reads_the_model_and_makes_up_samples(tmp_path: Path) -> None:
    found = profile(Profile(model=str(nets.write("transformer", tmp_path)), threads=1), Progress())
    assert found.total_ms > 0
    assert len(found.layers) == 8


def test_profiling_can_be_cancelled(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        profile(Profile(model=str(nets.write("cnn", tmp_path))), Progress(cancelled=lambda: True))
