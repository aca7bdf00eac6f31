"""Shapes that only a run can tell: onnxruntime runs a graph once and reports them.

Only shapes come out of the run, never values, so its outputs are tiny. A subgraph is run by itself:
what it takes from the graphs around it becomes its inputs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from studio.engine.graph.model import constant, subgraphs, type_of

# A run is worth it for inputs up to this size.
_MAX_INPUT_VALUES = 50_000_000
_SMALL_BYTES = 8192
_DIMS = "\0dims"
_SUFFIX = "\0shape"

Sizes = tuple[int, ...]


def keeps_values(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor's values may say something of shapes, or cannot be made as zeros (4-bit types)."""
    return bool(tensor.nbytes < _SMALL_BYTES or tensor.dtype.bitwidth < 8)


def measured_shapes(
    model: onnx.ModelProto,
    graph: ir.Graph,
    bare: onnx.GraphProto,
    wanted: Sequence[ir.Value],
    dims: Mapping[ir.Value, tuple[int | str, ...]],
    types: Mapping[ir.Value, str],
    seconds: float,
) -> dict[ir.Value, Sizes]:
    """The shapes of values in a run of their graph on zeros; empty where it does not run.

    Args:
        model: for its operator sets and functions.
        graph: the main graph or a subgraph.
        bare: the same as protobuf; large weights may lack their values. Left as it is.
        wanted: values that nodes of `graph` produce.
        dims: shapes known so far; those of all inputs are needed.
        types: element types, likewise.
        seconds: after which the run is ended.
    """
    captured = list(_captured(graph, set()))
    inputs = [v for v in graph.inputs if not v.is_initializer()] + [
        v for v in captured if constant(v) is None
    ]
    constants = [v for v in captured if constant(v) is not None]
    if any(_may_be_a_size(v, dims, types) for v in inputs if v in captured and not v.is_graph_input()):
        return {}
    feed = _zeros(inputs, dims, types)
    if feed is None:
        return {}
    proto = onnx.GraphProto()
    proto.CopyFrom(bare)
    del proto.input[:], proto.output[:]
    for value in inputs:
        kind, shape = type_of(types[value]).value, feed[value.name or ""].shape
        proto.input.append(onnx.helper.make_tensor_value_info(value.name or "", kind, shape))
    for value in constants:
        proto.initializer.append(_as_initializer(value))
    names = [f"{v.name}{_SUFFIX}" for v in wanted]
    for value, name in zip(wanted, names, strict=True):
        proto.node.add(op_type="Shape", input=[value.name or ""], output=[name])
        proto.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    _make_zeros(proto)
    whole = onnx.ModelProto(
        ir_version=model.ir_version, graph=proto, opset_import=model.opset_import, functions=model.functions
    )
    found = _run(whole.SerializeToString(), feed, names, seconds)
    return {v: tuple(int(d) for d in shape) for v, shape in zip(wanted, found, strict=False)}


def _make_zeros(graph: onnx.GraphProto) -> None:
    """Let weights without values be made as zeros when they are needed, and freed again."""
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    for tensor in graph.initializer:
        if _has_values(tensor):
            initializers.append(tensor)
        else:
            nodes += _zeros_of(tensor, tensor.name)
    for node in graph.node:
        for attr in node.attribute:
            for inner in (*((attr.g,) if attr.type == onnx.AttributeProto.GRAPH else ()), *attr.graphs):
                _make_zeros(inner)
        constants = [a.t for a in node.attribute if node.op_type == "Constant" and a.HasField("t")]
        if constants and not _has_values(constants[0]):
            nodes += _zeros_of(constants[0], node.output[0])
        else:
            nodes.append(node)
    kept = onnx.GraphProto(initializer=initializers, node=nodes)
    graph.ClearField("initializer")
    graph.ClearField("node")
    graph.MergeFrom(kept)


def _has_values(tensor: onnx.TensorProto) -> bool:
    stored = (
        tensor.raw_data, tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data,
        tensor.uint64_data, tensor.string_data,
    )  # fmt: skip
    return 0 in tensor.dims or any(stored)


def _zeros_of(tensor: onnx.TensorProto, name: str) -> list[onnx.NodeProto]:
    """Nodes that make zeros of a tensor's type and dimensions."""
    dims = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [len(tensor.dims)], list(tensor.dims))
    zero = onnx.helper.make_tensor("", tensor.data_type, [1], [0])
    return [
        onnx.helper.make_node("Constant", [], [f"{name}{_DIMS}"], value=dims),
        onnx.helper.make_node("ConstantOfShape", [f"{name}{_DIMS}"], [name], value=zero),
    ]


def _captured(graph: ir.Graph, known: set[ir.Value]) -> Iterator[ir.Value]:
    """Values of the graphs around that `graph` and its own subgraphs use, each once."""
    known |= {*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in known:
                known.add(value)
                yield value
        for _name, inner in subgraphs(node):
            yield from _captured(inner, known)
    for value in graph.outputs:
        if value not in known:
            known.add(value)
            yield value


def _may_be_a_size(
    value: ir.Value, dims: Mapping[ir.Value, tuple[int | str, ...]], types: Mapping[ir.Value, str]
) -> bool:
    """Computed integers that say how large something is: zeros would be a lie."""
    return types.get(value) in {"int64", "int32"} and len(dims.get(value, ())) <= 1


def _zeros(
    inputs: Sequence[ir.Value], dims: Mapping[ir.Value, tuple[int | str, ...]], types: Mapping[ir.Value, str]
) -> dict[str, npt.NDArray[Any]] | None:
    """Inputs of zeros; None where one has no known shape or type, or is too large."""
    feed: dict[str, npt.NDArray[Any]] = {}
    for value in inputs:
        shape = dims.get(value)
        if shape is None or types.get(value) in {None, "string"}:
            return None
        sizes = [d for d in shape if isinstance(d, int)]
        if len(sizes) < len(shape) or math.prod(sizes) > _MAX_INPUT_VALUES:
            return None
        feed[value.name or ""] = np.zeros(sizes, type_of(types[value]).numpy())
    return feed


def _as_initializer(value: ir.Value) -> onnx.TensorProto:
    """A constant of a graph around; large ones without their values."""
    tensor = constant(value)
    assert tensor is not None
    proto = onnx.TensorProto(data_type=tensor.dtype.value, dims=[int(d) for d in tensor.shape.numpy()])
    if keeps_values(tensor):
        proto.CopyFrom(ir.to_proto(tensor))
    proto.name = value.name or ""
    return proto


def _run(
    model: bytes, feed: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str], seconds: float
) -> list[npt.NDArray[Any]]:
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    run_options = ort.RunOptions()
    run_options.log_severity_level = 4

    def stop() -> None:
        run_options.terminate = True

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return list(session.run(list(outputs), dict(feed), run_options))
    except (
        state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented,
        state.RuntimeException, RuntimeError, ValueError,
    ):  # fmt: skip
        return []
    finally:
        timer.cancel()
