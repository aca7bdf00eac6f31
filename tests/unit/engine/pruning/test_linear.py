"""A layer seen as a matrix computes what onnxruntime computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from studio.engine.pruning.linear import linear

CASES = [
    ("Conv", (2, 4, 9, 8), (6, 4, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", (2, 4, 9, 8), (6, 2, 3, 2), {"pads": [1, 0, 2, 1], "group": 2, "dilations": [2, 1]}),
    ("Conv", (2, 4, 9, 8), (4, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    ("Conv", (2, 4, 9, 8), (4, 1, 3, 3), {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", (2, 4, 9, 8), (4, 4, 2, 2), {"auto_pad": "SAME_LOWER"}),
    ("Conv", (2, 4, 9), (6, 4, 3), {"strides": [2]}),
    ("Conv", (2, 4, 5, 6, 7), (6, 4, 3, 2, 1), {"strides": [2, 1, 1]}),
    ("ConvTranspose", (2, 4, 5, 6), (4, 3, 2, 2), {"strides": [2, 2]}),
    ("ConvTranspose", (2, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1], "group": 2}),
    ("ConvTranspose", (2, 4, 5, 6), (4, 3, 4, 3), {"strides": [2, 1], "pads": [1, 1, 1, 0], "dilations": [1, 2]}),
    ("MatMul", (2, 7, 4), (4, 3), {}),
    ("Gemm", (20, 4), (3, 4), {"transB": 1, "alpha": 2.0}),
    ("Gemm", (20, 4), (4, 3), {}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "xs", "ws", "attributes"), CASES)
def test_rows_times_the_matrix_are_the_outputs(op, xs, ws, attributes):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(xs).astype("f4"), rng.standard_normal(ws).astype("f4")
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", 1, xs)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    y = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    view = linear(ir.from_proto(model).graph.node(0), ws)
    assert view is not None
    assert view.output_shape(xs) == y.shape
    at = np.arange(view.positions(y.shape))
    product = view.rows(x, y.shape, at) @ view.matrix(w).transpose(0, 2, 1)
    assert np.allclose(product, view.targets(y, at), atol=1e-4)
    assert np.array_equal(view.weight(view.matrix(w)), w)


def test_a_gemm_that_transposes_its_input_is_no_such_map():
    node = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)
    assert linear(ir.from_proto(node), (3, 4)) is None
