"""Models for tests, written as text or node by node, and run in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]


def model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[int | str | None] | None]],
    outputs: list[str],
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A model, unchecked; outputs have no declared type."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def floats(*shape: int, seed: int = 0) -> Array:
    """Gaussian float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dense(size: int = 32, **kwargs: Any) -> onnx.ModelProto:
    """x (N, size) times a weight `w`, then a Relu; large enough for its weight to be mapped."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Relu", ["h"], ["y"], name="relu"),
    ]
    weights = {"w": floats(size, size)}
    return model(nodes, {"x": (TensorProto.FLOAT, ["N", size])}, ["y"], weights, **kwargs)


def write(proto: onnx.ModelProto, path: Path) -> Path:
    """The model as a file."""
    path.write_bytes(proto.SerializeToString())
    return path


def run(source: Path | bytes | onnx.ModelProto, feed: Mapping[str, Array]) -> list[Any]:
    """The outputs of one unoptimized run."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(source, onnx.ModelProto):
        source = source.SerializeToString()
    given = source if isinstance(source, bytes) else str(source)
    session = ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))
