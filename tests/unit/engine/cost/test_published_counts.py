"""Counts of whole networks against published figures, or against arithmetic from their architecture tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from studio.engine.cost import model_cost
from studio.engine.graph import Model, infer_shapes, load

# Before the tests get a home of their own.
CACHE = Path(os.environ.get("FEATHERWEIGHT_CASES_CACHE", "~/.cache/featherweight-cases")).expanduser()
MINILM = CACHE / "minilm_sentiment.onnx"


class Builder:
    """A network whose weights are inputs: shapes alone decide the count, and nothing is stored."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])]

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def conv(self, x: str, channels: int, out: int, kernel: int, stride: int = 1, group: int = 1) -> str:
        pads = [(kernel - 1) // 2] * 4
        weight = self.weight(out, channels // group, kernel, kernel)
        return self.add("Conv", [x, weight], pads=pads, strides=[stride] * 2, group=group)

    def macs(self, last: str) -> int | None:
        out = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "net", self.inputs, [out])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model = Model(ir.from_proto(proto))
        return model_cost(model, infer_shapes(model, {}, run=False)).macs


def test_resnet_50_has_the_published_4_09_billion() -> None:
    """torchvision's ResNet-50 (stride in the 3×3): 4.09 GMACs at 224."""
    net = Builder()
    x = net.add("Relu", [net.conv("x", 3, 64, 7, 2)])
    x, channels = net.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 64
    for width, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            stride = first if block == 0 else 1
            y = net.add("Relu", [net.conv(x, channels, width, 1)])
            y = net.add("Relu", [net.conv(y, width, width, 3, stride)])
            y = net.conv(y, width, 4 * width, 1)
            skip = net.conv(x, channels, 4 * width, 1, stride) if block == 0 else x
            x, channels = net.add("Relu", [net.add("Add", [y, skip])]), 4 * width
    x = net.add("Flatten", [net.add("GlobalAveragePool", [x])])
    x = net.add("Gemm", [x, net.weight(1000, 2048), net.weight(1000)], transB=1)
    assert net.macs(x) == 4_089_184_256


def test_mobilenet_v2_has_the_published_300_million() -> None:
    """Sandler et al., MobileNetV2, CVPR 2018, table 4: 300 M mult-adds at 224."""
    net = Builder()
    x, channels = net.conv("x", 3, 32, 3, 2), 32
    for expand, out, blocks, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(blocks):
            hidden = channels * expand
            y = net.conv(x, channels, hidden, 1) if expand > 1 else x
            y = net.conv(y, hidden, hidden, 3, first if block == 0 else 1, group=hidden)
            x, channels = net.conv(y, hidden, out, 1), out
    x = net.add("Flatten", [net.add("GlobalAveragePool", [net.conv(x, 320, 1280, 1)])])
    x = net.add("Gemm", [x, net.weight(1000, 1280), net.weight(1000)], transB=1)
    macs = net.macs(x)
    assert macs is not None
    assert macs == pytest.approx(300e6, rel=0.01)


def efficientnet_b0_without_excitation() -> int:
    """Tan & Le, EfficientNet, ICML 2019, table 1: its convolutions and classifier, added up by hand."""
    size, total, channels = 112, 112 * 112 * 32 * 3 * 9, 32
    for expand, kernel, out, blocks, first in (
        (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1),
        (6, 5, 192, 4, 2), (6, 3, 320, 1, 1),
    ):  # fmt: skip
        for block in range(blocks):
            hidden = channels * expand
            total += size * size * channels * hidden if expand > 1 else 0
            size //= first if block == 0 else 1
            total += size * size * hidden * kernel * kernel + size * size * hidden * out
            channels = out
    return total + size * size * channels * 1280 + 1280 * 1000


def fashion_resnet_by_hand() -> Iterator[int]:
    """A 3×3 stem of 16 at 28, then three stages of two residual blocks: 32 at 14, 64 at 7, 96 at 4."""
    yield 28 * 28 * 16 * 1 * 9
    channels = 16
    for width, size in ((32, 14), (64, 7), (96, 4)):
        yield size * size * width * channels * 9 + size * size * width * width * 9  # first block
        yield size * size * width * channels  # its 1×1 skip
        yield 2 * size * size * width * width * 9  # second block
        channels = width
    yield 96 * 10


def tinylm_by_hand(tokens: int) -> int:
    """Four layers of width 128: four projections, attention, a gated feed-forward of 344, and 128 logits a token."""
    layer = 4 * tokens * 128 * 128 + 2 * tokens * tokens * 128 + 3 * tokens * 128 * 344
    return 4 * layer + tokens * 128 * 128


def minilm_by_hand(tokens: int) -> int:
    """Six layers of width 384: four projections, attention, a feed-forward of 1536, and two logits at the end."""
    layer = 4 * tokens * 384 * 384 + 2 * tokens * tokens * 384 + 2 * tokens * 384 * 1536
    return 6 * layer + 384 * 2


@pytest.mark.cases
def test_efficientnet_lite0_is_b0_without_excitation(case_models: Path) -> None:
    """The paper's table has 390 M for B0 with excitation; 407 M for Lite0 come of a counter of more than products."""
    model = load(case_models / "efficientnet_lite0.onnx")
    counted = model_cost(model, infer_shapes(model, {"N": 1})).macs
    assert counted == efficientnet_b0_without_excitation() == 385_187_552


@pytest.mark.cases
def test_fashion_resnet_agrees_with_its_architecture(case_models: Path) -> None:
    model = load(case_models / "fashion_resnet.onnx")
    assert model_cost(model, infer_shapes(model, {"N": 1}, run=False)).macs == sum(fashion_resnet_by_hand())


@pytest.mark.cases
@pytest.mark.parametrize("tokens", [64, 128])
def test_tinylm_agrees_with_its_architecture(case_models: Path, tokens: int) -> None:
    model = load(case_models / "tinylm.onnx")
    counted = model_cost(model, infer_shapes(model, {"N": 1, "T": tokens})).macs
    assert counted == tinylm_by_hand(tokens)


@pytest.mark.cases
@pytest.mark.parametrize("tokens", [64, 128])
def test_minilm_agrees_with_its_architecture(tokens: int) -> None:
    if not MINILM.is_file():
        pytest.skip("minilm_sentiment.onnx has not been built; FEATHERWEIGHT_CASES_CACHE names its folder")
    model = load(MINILM)
    assert model_cost(model, infer_shapes(model, {"N": 1, "T": tokens})).macs == minilm_by_hand(tokens)


@pytest.mark.cases
@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("fashion_resnet", 476_202),
        ("efficientnet_lite0", 4_631_083),
        ("ppocr_det", 1_171_841),
        ("ppocr_cls", 133_700),
        ("silero_vad", 309_635),
        ("silero_vad_stateful", 545_286),
        ("tinylm", 808_064 + 311_328),
    ],
)
def test_stored_values_agree_with_the_cases_own_table(case_models: Path, name: str, stored: int) -> None:
    model = load(case_models / f"{name}.onnx")
    assert model_cost(model, infer_shapes(model, {}, run=False)).parameters == stored


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("vgg19", 19_632_062_464),  # 19.6 G: Simonyan & Zisserman, 2015
        ("resnet50", 4_089_184_256),  # 4.1 G: He et al., 2016, in torchvision's form
        ("squeezenet", 349_151_936),  # 0.35 G: SqueezeNet 1.1, 2.4 times fewer than 1.0
    ],
)
def test_networks_of_the_onnx_package_have_their_published_counts(name: str, published: int) -> None:
    model = load(Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx")
    assert model_cost(model, infer_shapes(model, {}, run=False)).macs == published
