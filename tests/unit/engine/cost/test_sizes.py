"""Stored values and bytes, packed types included."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from studio.engine.cost import constant_cost, model_cost, stored_values, tensor_bytes
from studio.engine.graph import Model, infer_shapes
from studio.records.model import Cost


@pytest.mark.parametrize(
    ("dtype", "count", "wanted"),
    [
        (ir.DataType.FLOAT, 7, 28),
        (ir.DataType.FLOAT16, 7, 14),
        (ir.DataType.BFLOAT16, 7, 14),
        (ir.DataType.INT8, 7, 7),
        (ir.DataType.UINT4, 7, 4),
        (ir.DataType.INT4, 8, 4),
        (ir.DataType.INT2, 9, 3),
        (ir.DataType.BOOL, 7, 7),
        (ir.DataType.INT64, 7, 56),
    ],
)
def test_bytes_are_those_of_the_file(dtype: ir.DataType, count: int, wanted: int) -> None:
    tensor = ir.Tensor(np.zeros(count, dtype.numpy()), dtype=dtype)
    assert tensor_bytes(tensor) == wanted


def test_texts_count_their_letters() -> None:
    assert tensor_bytes(ir.StringTensor([b"ab", b"cde"], shape=ir.Shape([2]))) == 5


def _model(constants: dict[str, np.ndarray], nodes: list, opset: int = 21) -> Model:
    out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph(
        nodes, "g", [x], [out], [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return Model(ir.from_proto(helper.make_model(graph, opset_imports=opsets)))


def test_sizes_and_axes_are_no_weights_but_take_bytes() -> None:
    model = _model(
        {"shape": np.array([2, 2]), "w": np.zeros((4, 4), np.float32)},
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Reshape", ["y", "shape"], ["z"])],
    )
    assert model_cost(model, infer_shapes(model, {}, run=False)) == Cost(
        parameters=16, bytes=64 + 16, macs=16, activation_bytes=32
    )


def test_a_quantized_bias_of_32_bits_is_a_weight() -> None:
    model = _model(
        {"b": np.zeros(4, np.int32), "s": np.float32(1)},
        [helper.make_node("DequantizeLinear", ["b", "s"], ["f"]), helper.make_node("Add", ["x", "f"], ["y"])],
    )
    assert stored_values(model.graph.initializers["b"]) == 4


def test_four_bit_weights_count_as_values_not_as_bytes() -> None:
    packed = {
        "b": np.zeros((3, 1, 8), np.uint8),
        "s": np.zeros(3, np.float32),
    }
    model = _model(
        packed,
        [
            helper.make_node(
                "MatMulNBits",
                ["x16", "b", "s"],
                ["y"],
                "m",
                domain="com.microsoft",
                K=16,
                N=3,
                bits=4,
                block_size=16,
            )
        ],
    )
    values = model.graph.initializers
    assert constant_cost([values["b"], values["s"]]) == Cost(parameters=16 * 3 + 3, bytes=24 + 12)


def test_a_shared_tensor_counts_once() -> None:
    model = _model(
        {"w": np.zeros((4, 4), np.float32)},
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("MatMul", ["y", "w"], ["z"])],
    )
    cost = model_cost(model, infer_shapes(model, {}, run=False))
    assert (cost.parameters, cost.macs) == (16, 32)


def test_an_unknown_shape_leaves_the_figure_unknown() -> None:
    model = _model(
        {"w": np.zeros((4, 4), np.float32)},
        [
            helper.make_node("Odd", ["x"], ["h"], domain="com.microsoft"),
            helper.make_node("MatMul", ["h", "w"], ["y"]),
        ],
    )
    cost = model_cost(model, infer_shapes(model, {}, run=False))
    assert cost.macs is None
    assert cost.activation_bytes is None


def test_values_of_the_types_that_numpy_lacks_can_be_counted() -> None:
    tensor = ir.Tensor(np.zeros(3, ml_dtypes.float8_e4m3fn))
    assert tensor_bytes(tensor) == 3
