"""Every way a weight can lie: each is one layer with its name, its weight, its axes and its cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import models

from studio.engine import graph
from studio.engine.layers import LayerNode, Listing, float_weights, list_layers

FLOAT = TensorProto.FLOAT
node = helper.make_node


def listing(
    tmp_path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, Any] | None = None,
    shape: list[int | str] | None = None,
    **kwargs: Any,
) -> Listing:
    inputs = kwargs.pop("inputs", None) or {"x": (FLOAT, shape or ["N", 16])}
    proto = models.model(nodes, inputs, [nodes[-1].output[0]], weights, **kwargs)
    return list_layers(graph.load(models.write(proto, tmp_path / "m.onnx")))


def only(found: Listing) -> LayerNode:
    (layer,) = found.nodes.values()
    return layer


def constant(name: str, values: Any) -> onnx.NodeProto:
    return node("Constant", [], [name], value=numpy_helper.from_array(values, name))


W = models.floats(16, 24)


def test_a_product_with_an_initializer(tmp_path: Path) -> None:
    found = listing(tmp_path, [node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": W})
    layer = only(found)
    assert (layer.record.name, layer.record.op, layer.record.weight) == ("fc", "MatMul", "w")
    assert layer.record.weight_shape == (16, 24)
    assert (layer.in_axis, layer.out_axis, layer.quantized) == (0, 1, False)
    assert (layer.record.cost.parameters, layer.record.cost.bytes, layer.record.cost.macs) == (384, 1536, 384)
    assert (layer.record.dtype, layer.record.precision, layer.record.share) == ("float32", "fp32", 1.0)
    assert (layer.record.input_shape, layer.record.output_shape) == ((1, 16), (1, 24))
    assert found.cost.parameters == 384


def test_a_weight_in_a_constant_node(tmp_path: Path) -> None:
    layer = only(listing(tmp_path, [constant("w", W), node("MatMul", ["x", "w"], ["y"])]))
    assert layer.record.weight == "w"
    assert layer.weight.producer() is not None


def test_a_constant_in_its_short_form(tmp_path: Path) -> None:
    nodes = [
        node("Constant", [], ["w"], value_floats=[float(i) for i in range(16)]),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    layer = only(listing(tmp_path, nodes))
    assert layer.record.weight_shape == (16,)
    assert (layer.in_axis, layer.out_axis) == (0, None)


def test_a_constant_behind_identities(tmp_path: Path) -> None:
    nodes = [
        constant("w", W),
        node("Identity", ["w"], ["i"]),
        node("Identity", ["i"], ["j"]),
        node("MatMul", ["x", "j"], ["y"]),
    ]
    layer = only(listing(tmp_path, nodes))
    assert layer.record.weight == "w"
    assert layer.record.untreatable == ""


@pytest.mark.parametrize("perm", [[1, 0], None])
def test_a_transposed_weight_keeps_the_axes_of_what_is_stored(tmp_path: Path, perm: list[int] | None) -> None:
    attributes = {"perm": perm} if perm else {}
    nodes = [node("Transpose", ["w"], ["t"], **attributes), node("MatMul", ["x", "t"], ["y"])]
    layer = only(listing(tmp_path, nodes, {"w": models.floats(24, 16)}))
    assert (layer.out_axis, layer.in_axis, layer.perm) == (0, 1, (1, 0))
    assert "Transpose" in layer.record.operators


def test_gemm_with_and_without_transposition(tmp_path: Path) -> None:
    plain = only(listing(tmp_path, [node("Gemm", ["x", "w", "b"], ["y"])], {"w": W, "b": models.floats(24)}))
    assert (plain.in_axis, plain.out_axis) == (0, 1)
    assert plain.bias is not None
    assert plain.record.cost.parameters == 16 * 24 + 24
    flipped = only(
        listing(tmp_path, [node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": models.floats(24, 16)})
    )
    assert (flipped.in_axis, flipped.out_axis) == (1, 0)


def test_a_weight_on_the_left(tmp_path: Path) -> None:
    found = listing(tmp_path, [node("MatMul", ["w", "x"], ["y"])], {"w": models.floats(24, 16)}, [16, 5])
    layer = only(found)
    assert (layer.position, layer.out_axis, layer.in_axis) == (0, 0, 1)
    assert layer.record.cost.macs == 24 * 16 * 5


def test_convolutions(tmp_path: Path) -> None:
    conv = only(
        listing(
            tmp_path,
            [node("Conv", ["x", "w"], ["y"], group=2)],
            {"w": models.floats(8, 2, 3, 3)},
            [1, 4, 8, 8],
        )
    )
    assert (conv.out_axis, conv.in_axis) == (0, 1)
    assert ("group", "2") in conv.record.attributes
    up = only(
        listing(
            tmp_path,
            [node("ConvTranspose", ["x", "w"], ["y"])],
            {"w": models.floats(4, 8, 3, 3)},
            [1, 4, 8, 8],
        )
    )
    assert (up.out_axis, up.in_axis) == (1, 0)


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_recurrent_cell_is_one_layer_with_both_matrices(tmp_path: Path, op: str, gates: int) -> None:
    weights = {
        "w": models.floats(1, gates * 8, 16),
        "r": models.floats(1, gates * 8, 8),
        "b": models.floats(1, 2 * gates * 8),
    }
    found = listing(tmp_path, [node(op, ["x", "w", "r", "b"], ["y"], hidden_size=8)], weights, [5, 2, 16])
    layer = only(found)
    assert [v.name for v in layer.weights] == ["w", "r"]
    assert layer.record.cost.parameters == gates * 8 * (16 + 8 + 2)
    assert (layer.out_axis, layer.in_axis) == (1, 2)
    assert layer.record.cost.macs == 5 * 2 * gates * 8 * (16 + 8)


def test_an_embedding_is_a_layer_and_a_lookup_in_sizes_is_not(tmp_path: Path) -> None:
    nodes = [
        node("Gather", ["table", "x"], ["e"]),
        node("Gather", ["sizes", "i"], ["s"]),
        node("Add", ["e", "s"], ["y"]),
    ]
    weights = {"table": models.floats(100, 16), "sizes": np.array([1.0, 2.0], np.float32), "i": np.array(0)}
    layer = only(listing(tmp_path, nodes, weights, inputs={"x": (TensorProto.INT64, [1, 4])}))
    assert (layer.record.op, layer.out_axis, layer.in_axis) == ("Gather", 1, 0)
    assert layer.record.cost.macs == 0


def test_a_shared_weight_names_its_users_and_counts_once(tmp_path: Path) -> None:
    nodes = [
        node("Gather", ["w", "x"], ["e"], name="embed"),
        node("Transpose", ["w"], ["t"]),
        node("MatMul", ["e", "t"], ["y"], name="head"),
    ]
    found = listing(tmp_path, nodes, {"w": models.floats(50, 16)}, inputs={"x": (TensorProto.INT64, [1, 4])})
    embed, head = found.layers
    assert (embed.shared_with, head.shared_with) == (("head",), ("embed",))
    assert (embed.cost.bytes, head.cost.bytes) == (3200, 0)
    assert found.cost.bytes == 3200
    assert embed.share + head.share == 1.0


def test_batch_normalization_is_no_layer_but_counts(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="conv"),
        node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"]),
    ]
    weights = {"w": models.floats(8, 4, 1, 1), **{k: np.abs(models.floats(8)) for k in "sbmv"}}
    found = listing(tmp_path, nodes, weights, [1, 4, 4, 4])
    assert [x.name for x in found.layers] == ["conv"]
    assert found.cost.parameters == 32 + 32


def test_weights_in_the_bodies_of_control_flow(tmp_path: Path) -> None:
    def body(name: str, own: bool) -> onnx.GraphProto:
        nodes = [node("MatMul", ["x", "inner" if own else "outer"], ["b"], name="fc")]
        inner = [numpy_helper.from_array(models.floats(16, 8), "inner")] if own else []
        return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name="b")], inner)

    nodes = [
        node("If", ["c"], ["y"], name="choose", then_branch=body("t", True), else_branch=body("e", False))
    ]
    inputs = {"x": (FLOAT, [1, 16]), "c": (TensorProto.BOOL, [])}
    found = listing(tmp_path, nodes, {"outer": models.floats(16, 8)}, inputs=inputs)
    assert {x.name for x in found.layers} == {"choose/then_branch/fc", "choose/else_branch/fc"}
    outer = found.nodes["choose/else_branch/fc"]
    assert outer.path == "choose/else_branch"
    assert outer.weight.graph is found.model.graph
    assert all(x.cost.bytes == 512 and x.cost.macs == 128 for x in found.layers)


def test_a_weight_around_a_loop_is_found_inside(tmp_path: Path) -> None:
    body = helper.make_graph(
        [node("MatMul", ["h", "w"], ["h2"], name="step"), node("Identity", ["go"], ["go2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", FLOAT, [1, 16]),
        ],
        [
            helper.make_tensor_value_info("go2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h2", FLOAT, [1, 16]),
        ],
    )
    nodes = [
        constant("n", np.array(3)),
        constant("t", np.array(True)),
        node("Loop", ["n", "t", "x"], ["y"], name="loop", body=body),
    ]
    layer = only(listing(tmp_path, nodes, {"w": models.floats(16, 16)}, [1, 16]))
    assert layer.record.name == "loop/body/step"


def test_names_are_stable_and_unique_whatever_the_file_says(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="same"),
        node("MatMul", ["a", "v"], ["b"], name="same"),
        node("MatMul", ["b", "v"], ["same"]),
    ]
    found = listing(tmp_path, nodes, {"w": models.floats(16, 16), "v": models.floats(16, 16)})
    assert [x.name for x in found.layers] == ["a", "b", "same"]
    assert [x.key for x in found.layers] == ["a", "b", "same"]


def test_weights_computed_from_constants_are_listed_and_can_be_folded(tmp_path: Path) -> None:
    nodes = [node("Mul", ["w", "s"], ["scaled"]), node("MatMul", ["x", "scaled"], ["y"])]
    layer = only(listing(tmp_path, nodes, {"w": W, "s": np.array(2.0, np.float32)}))
    assert layer.record.weight == "w"
    assert layer.foldable


def test_reshaped_weights_are_listed_and_can_be_folded(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["w", "shape"], ["r"]), node("MatMul", ["x", "r"], ["y"])]
    layer = only(listing(tmp_path, nodes, {"w": models.floats(384), "shape": np.array([16, 24])}))
    assert (layer.out_axis, layer.in_axis) == (None, None)
    assert layer.foldable
    assert not layer.record.untreatable
    assert layer.record.weight_shape == (16, 24)


def test_two_activations_make_no_layer(tmp_path: Path) -> None:
    inputs: dict[str, Any] = {"x": (FLOAT, [4, 4]), "z": (FLOAT, [4, 4])}
    assert not listing(tmp_path, [node("MatMul", ["x", "z"], ["y"])], inputs=inputs).layers


def test_half_precision_behind_a_cast(tmp_path: Path) -> None:
    nodes = [node("Cast", ["w"], ["c"], to=FLOAT), node("MatMul", ["x", "c"], ["y"])]
    layer = only(listing(tmp_path, nodes, {"w": W.astype(np.float16)}))
    assert (layer.record.precision, layer.record.cost.bytes) == ("fp16", 768)
    assert layer.record.untreatable == ""


# ------------------------------------------------------------------ quantized forms


def quantized(w: Any, axis: int | None = None) -> tuple[Any, Any]:
    others = None if axis is None else tuple(i for i in range(w.ndim) if i != axis)
    scale = np.asarray(np.abs(w).max(axis=others, keepdims=axis is not None) / 127, np.float32)
    return np.rint(w / scale).astype(np.int8), scale.reshape(-1) if axis is not None else scale


def close(layer: LayerNode, w: Any) -> None:
    real = float_weights(layer)
    assert real is not None
    assert np.abs(real - w).max() <= np.abs(w).max() / 100


def test_static_int8_with_q_and_dq_around_is_one_layer(tmp_path: Path) -> None:
    w = models.floats(8, 4, 3, 3)
    q, scale = quantized(w, 0)
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="q"),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], name="dq"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0, name="dqw"),
        node("DequantizeLinear", ["b", "bs"], ["bd"], name="dqb"),
        node("Conv", ["xd", "wd", "bd"], ["c"], name="conv"),
        node("QuantizeLinear", ["c", "xs", "xz"], ["cq"], name="q2"),
        node("DequantizeLinear", ["cq", "xs", "xz"], ["y"], name="dq2"),
    ]
    weights = {
        "w": q, "ws": scale, "wz": np.zeros(8, np.int8), "b": np.ones(8, np.int32), "bs": np.array(0.1, np.float32),
        "xs": np.array(0.1, np.float32), "xz": np.array(128, np.uint8),
    }  # fmt: skip
    layer = only(listing(tmp_path, nodes, weights, [1, 4, 8, 8]))
    assert (layer.record.op, layer.record.dtype, layer.record.precision) == ("Conv", "int8", "int8")
    assert layer.quantized
    assert layer.record.nodes == ("c", "wd", "bd", "cq", "y")
    assert layer.record.cost.parameters == 288 + 8 + 8 + 8 + 1
    assert layer.record.cost.bytes == 288 + 32 + 8 + 32 + 4
    close(layer, w)


def test_weights_only_in_integers(tmp_path: Path) -> None:
    q, scale = quantized(W, 1)
    nodes = [node("DequantizeLinear", ["w", "s"], ["d"], axis=1), node("MatMul", ["x", "d"], ["y"])]
    layer = only(listing(tmp_path, nodes, {"w": q, "s": scale}))
    assert layer.record.precision == "int8 weights"
    close(layer, W)


def test_blocks_of_opset_21(tmp_path: Path) -> None:
    import ml_dtypes

    blocks = W.reshape(2, 8, 24)
    scale = (np.abs(blocks).max(axis=1) / 7).astype(np.float32)
    q = np.rint(blocks / scale[:, None]).reshape(16, 24).astype(ml_dtypes.int4)
    nodes = [
        node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=8),
        node("MatMul", ["x", "d"], ["y"]),
    ]
    proto = models.model(nodes, {"x": (FLOAT, ["N", 16])}, ["y"], {"s": scale}, opset=21, ir_version=10)
    import onnx_ir as ir

    proto.graph.initializer.append(ir.to_proto(ir.tensor(q, name="w")))
    layer = only(list_layers(graph.load(models.write(proto, tmp_path / "m.onnx"))))
    assert (layer.record.precision, layer.record.dtype) == ("int4 weights", "int4")
    assert layer.record.cost.bytes == 192 + 192
    real = float_weights(layer)
    assert real is not None
    assert np.abs(real - W).max() <= scale.max() / 2 + 1e-6


def test_floats_that_are_rounded_on_the_way(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("MatMul", ["x", "d"], ["y"]),
    ]
    layer = only(
        listing(tmp_path, nodes, {"w": W, "s": np.array(0.1, np.float32), "z": np.array(0, np.int8)})
    )
    assert layer.record.precision == "fp32, rounded to int8"
    assert not layer.quantized


def test_qlinear_conv(tmp_path: Path) -> None:
    w = models.floats(8, 4, 3, 3)
    q, scale = quantized(w, 0)
    weights = {
        "s": np.array(0.1, np.float32), "z": np.array(0, np.uint8), "w": q, "ws": scale, "wz": np.zeros(8, np.int8),
        "b": np.ones(8, np.int32),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("QLinearConv", ["xq", "s", "z", "w", "ws", "wz", "s", "z", "b"], ["c"], name="conv"),
        node("DequantizeLinear", ["c", "s", "z"], ["y"]),
    ]
    layer = only(listing(tmp_path, nodes, weights, [1, 4, 8, 8]))
    assert (layer.record.op, layer.record.operators[0], layer.record.precision) == (
        "Conv",
        "QLinearConv",
        "int8",
    )
    assert layer.record.cost.macs == 8 * 4 * 9 * 36
    close(layer, w)


def test_dynamic_integers_with_their_casts_are_one_layer(tmp_path: Path) -> None:
    q, scale = quantized(W)
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"], name="dynamic"),
        node("MatMulInteger", ["xq", "w", "xz"], ["i"], name="fc"),
        node("Cast", ["i"], ["f"], to=FLOAT, name="cast"),
        node("Mul", ["xs", "s"], ["ss"], name="scales"),
        node("Mul", ["f", "ss"], ["y"], name="rescale"),
    ]
    layer = only(listing(tmp_path, nodes, {"w": q, "s": scale}))
    assert (layer.record.op, layer.record.precision) == ("MatMul", "int8 dynamic")
    assert set(layer.record.nodes) == {"i", "xq", "f", "y", "ss"}
    assert layer.record.cost.bytes == 384 + 4
    assert layer.record.cost.macs == 384
    close(layer, W)


def test_a_quantized_embedding_that_is_dequantized_behind_the_lookup(tmp_path: Path) -> None:
    table = models.floats(50, 16)
    q, scale = quantized(table)
    nodes = [
        node("Gather", ["w", "x"], ["e"], name="embed"),
        node("DequantizeLinear", ["e", "s", "z"], ["y"]),
    ]
    weights = {"w": q, "s": scale, "z": np.array(0, np.int8)}
    layer = only(listing(tmp_path, nodes, weights, inputs={"x": (TensorProto.INT64, [1, 4])}))
    assert (layer.record.op, layer.record.precision, layer.record.nodes) == (
        "Gather",
        "int8 weights",
        ("e", "y"),
    )
    assert layer.record.cost.bytes == 800 + 4 + 1
    close(layer, table)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_blocks(tmp_path: Path, bits: int) -> None:
    middle, blocks = 2 ** (bits - 1), 1
    w = models.floats(24, 16)  # (N, K)
    scale = (np.abs(w).max(axis=1) / (middle - 1)).astype(np.float32)
    codes = (np.rint(w / scale[:, None]) + middle).astype(np.uint8)
    packed = codes if bits == 8 else codes[:, ::2] | (codes[:, 1::2] << 4)
    attributes = {"K": 16, "N": 24, "bits": bits, "block_size": 16}
    nodes = [node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", name="fc", **attributes)]
    weights = {"w": packed.reshape(24, blocks, -1), "s": scale}
    layer = only(listing(tmp_path, nodes, weights, domains=("com.microsoft",)))
    assert (layer.record.op, layer.record.precision) == ("MatMul", f"int{bits} weights")
    assert layer.record.weight_shape == (16, 24)
    assert layer.record.cost.parameters == 16 * 24 + 24
    assert layer.record.output_shape == (1, 24)
    real = float_weights(layer)
    assert real is not None
    assert np.abs(real - w.T).max() <= scale.max() / 2 + 1e-6


def test_every_bundled_and_evaluated_model_is_fully_listed(sample: Path) -> None:
    found = list_layers(graph.load(sample / "fashion_cnn.onnx"))
    assert found.layers
    assert all(x.cost.macs is not None and x.output_shape is not None for x in found.layers)


PARAMETERS = {
    "fashion_resnet": 476_202,
    "efficientnet_lite0": 4_631_083,
    "ppocr_det": 1_171_841,
    "ppocr_cls": 133_700,
    "silero_vad": 309_635,
    "silero_vad_stateful": 545_286,
    "tinylm": 808_064 + 311_328,
}


@pytest.mark.cases
@pytest.mark.parametrize("name", PARAMETERS)
def test_real_models_are_fully_listed(name: str, case_models: Path) -> None:
    found = list_layers(graph.load(case_models / f"{name}.onnx"))
    assert found.cost.parameters == PARAMETERS[name]
    assert found.cost.macs
    owned = sum(layer.cost.parameters for layer in found.layers)
    assert owned <= found.cost.parameters
    for layer in found.layers:
        assert layer.cost.macs is not None, layer.name
        assert layer.output_shape is not None
        assert all(isinstance(d, int) for d in layer.output_shape)
        assert found.nodes[layer.name].record is layer
    assert len({layer.name for layer in found.layers}) == len(found.layers)


def test_sizes_are_tried_until_every_window_fits_its_input(tmp_path: Path) -> None:
    """A convolution that reads more than there is makes onnx infer sizes below zero."""
    nodes = [node("Unsqueeze", ["x", "one"], ["wide"]), node("Conv", ["wide", "w"], ["y"], strides=[160])]
    found = listing(tmp_path, nodes, {"w": models.floats(8, 1, 512), "one": np.array([1])}, ["N", "long"])
    assert found.input_sizes["long"] >= 512
    assert found.cost.macs == 8 * 512 * (1 + (found.input_sizes["long"] - 512) // 160)
