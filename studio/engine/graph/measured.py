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

from studio.engine.graph.model import Model, constant, subgraphs, type_of

# A run is worth it for graphs and inputs up to this size, and for so long.
_MAX_MODEL_BYTES = 500_000_000
_MAX_INPUT_VALUES = 50_000_000
_SECONDS = 10.0
_SUFFIX = "\0shape"

Sizes = tuple[int, ...]


def measured_shapes(
    model: Model,
    graph: ir.Graph,
    wanted: Sequence[ir.Value],
    dims: Mapping[ir.Value, tuple[int | str, ...]],
    types: Mapping[ir.Value, str],
) -> dict[ir.Value, Sizes]:
    """The shapes of values in a run of their graph on zeros; empty where it does not run.

    Args:
        model: for its operator sets and functions; left as it is.
        graph: the main graph or a subgraph.
        wanted: values that nodes of `graph` produce.
        dims: shapes known so far; those of all inputs are needed.
        types: element types, likewise.
    """
    captured = list(_captured(graph, set()))
    inputs = [v for v in graph.inputs if not v.is_initializer()] + [
        v for v in captured if constant(v) is None
    ]
    constants = [v for v in captured if constant(v) is not None]
    if any(_may_be_a_size(v, dims, types) for v in inputs if v in captured and not v.is_graph_input()):
        return {}
    feed = _zeros(inputs, dims, types)
    if feed is None or _weight_bytes(graph, constants) > _MAX_MODEL_BYTES:
        return {}
    proto = ir.to_proto(graph)
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
    found = _run(_as_model(model, proto), feed, names)
    return {v: tuple(int(d) for d in shape) for v, shape in zip(wanted, found, strict=False)}


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


def _weight_bytes(graph: ir.Graph, constants: Sequence[ir.Value]) -> int:
    held = [v.const_value for v in graph.initializers.values()] + [constant(v) for v in constants]
    return sum(int(t.nbytes) for t in held if t is not None)


def _as_initializer(value: ir.Value) -> onnx.TensorProto:
    tensor = constant(value)
    assert tensor is not None
    proto = onnx.TensorProto()
    proto.CopyFrom(ir.to_proto(tensor))
    proto.name = value.name or ""
    return proto


def _as_model(model: Model, graph: onnx.GraphProto) -> bytes:
    proto = onnx.ModelProto(ir_version=model.ir.ir_version, graph=graph)
    for domain, version in model.ir.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    proto.functions.extend(ir.to_proto(f) for f in model.ir.functions.values())
    return bytes(proto.SerializeToString())


def _run(
    model: bytes, feed: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]
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

    timer = threading.Timer(_SECONDS, stop)
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
