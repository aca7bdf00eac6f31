"""The shape and type of every value at chosen input sizes.

The one thing to know: onnx infers on a copy without weights, so this costs little for any model.
What it cannot infer (shapes that are computed, operators it does not know) is asked of onnxruntime,
which runs the model once with a Shape node on every value in question.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import onnx
import onnx_ir as ir

from studio.engine.graph.measured import keeps_values, measured_shapes
from studio.engine.graph.model import Model, graphs, subgraphs, type_name
from studio.engine.graph.sizes import dimension_name
from studio.engine.graph.standins import use_stand_ins
from studio.engine.graph.strip import bare_proto

T = TypeVar("T")
Dims = tuple[int | str, ...]
UNKNOWN = "?"
_SECONDS = 5.0  # for all runs of a model together
_ZEROS_OPSET = 9  # the first that can make zeros in the place of weights


@dataclass(frozen=True)
class Shapes:
    """Shapes and types of one model's values, by the value itself or by its name.

    A name finds the value of the main graph, or the first of that name in a subgraph; so the shapes
    of a model also serve for its copies, whose new values are added by name.
    """

    dims: Mapping[ir.Value, Dims] = field(default_factory=dict)
    types: Mapping[ir.Value, str] = field(default_factory=dict)
    dims_by_name: dict[str, Dims] = field(default_factory=dict)
    types_by_name: Mapping[str, str] = field(default_factory=dict)

    def of(self, value: ir.Value | str | None) -> Dims | None:
        """The shape of a value: sizes, '?' for a dimension that stays unknown; None when nothing is known."""
        if isinstance(value, ir.Value):
            return self.dims.get(value) or self.dims_by_name.get(value.name or "")
        return self.dims_by_name.get(value or "")

    def dtype(self, value: ir.Value | str | None) -> str | None:
        """The element type of a value as numpy calls it ('float32'); None when not known."""
        if isinstance(value, ir.Value):
            return self.types.get(value) or self.types_by_name.get(value.name or "")
        return self.types_by_name.get(value or "")


def infer_shapes(model: Model, input_sizes: Mapping[str, int], *, run: bool = True) -> Shapes:
    """Shapes and types at the given sizes of the inputs' dynamic dimensions.

    Args:
        model: left as it is.
        input_sizes: by dimension name, see `dynamic_dimensions`.
        run: ask onnxruntime where inference does not know.
    """
    bare = _bare(model)
    dims, types = _inferred(model, bare, lambda value, axis: input_sizes.get(dimension_name(value, axis)))
    _declared(model, input_sizes, dims, types)
    until = time.monotonic() + _SECONDS
    if run and not _nested(model):
        for graph, proto in _side_by_side(model.graph, bare.graph):
            unknown = [v for n in graph for v in n.outputs if v.name and not _is_known(dims.get(v))]
            left = until - time.monotonic()
            if unknown and left > 0:
                dims.update(measured_shapes(bare, graph, proto, unknown, dims, types, left))
    return Shapes(dims, types, _by_name(dims), _by_name(types))


def symbolic_shapes(model: Model) -> Shapes:
    """Shapes with a symbol for every dimension that inputs decide: equal symbols are equal sizes, whatever is fed.

    What the file itself says of dynamic dimensions is not relied on: every one of every input is a symbol of its own.
    """
    dims, types = _inferred(model, _bare(model), lambda value, axis: f"{value.name}:{axis}", symbols=True)
    return Shapes(dims, types, _by_name(dims), _by_name(types))


def _bare(model: Model) -> onnx.ModelProto:
    return bare_proto(model, keep=lambda t: model.opset < _ZEROS_OPSET or keeps_values(t))


def _is_known(dims: Dims | None) -> bool:
    return dims is not None and all(isinstance(d, int) for d in dims)


def _inferred(
    model: Model,
    bare: onnx.ModelProto,
    size: Callable[[ir.Value, int], int | str | None],
    *,
    symbols: bool = False,
) -> tuple[dict[ir.Value, Dims], dict[ir.Value, str]]:
    """What onnx infers from the inputs alone; declared shapes are of other input sizes perhaps.

    Args:
        model: left as it is.
        bare: the same, without weights.
        size: of an input's dynamic dimension; a text is a symbol, None leaves it open.
        symbols: give them in the place of '?'.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(bare)
    for info, value in zip(proto.graph.input, model.graph.inputs, strict=True):
        if not value.is_initializer():
            _choose_sizes(info, value, size)
    _forget_shapes(proto.graph, outputs=True)
    use_stand_ins(proto.graph)
    if _nested(model):
        del proto.functions[:]
    proto = _infer(proto)
    dims: dict[ir.Value, Dims] = {}
    types: dict[ir.Value, str] = {}
    for graph, inferred in _side_by_side(model.graph, proto.graph):
        found = {info.name: info.type for info in (*inferred.value_info, *inferred.input, *inferred.output)}
        for value in _values(graph):
            kind = found.get(value.name or "")
            if value.const_value is not None and value.is_initializer():
                dims[value] = tuple(int(d) for d in value.const_value.shape.numpy())
                types[value] = type_name(value.const_value.dtype)
            elif kind is not None and kind.WhichOneof("value") == "tensor_type":
                tensor = kind.tensor_type
                if tensor.elem_type:
                    types[value] = type_name(ir.DataType(tensor.elem_type))
                if tensor.HasField("shape"):
                    dims[value] = tuple(
                        d.dim_value
                        if d.HasField("dim_value") and d.dim_value >= 0
                        else (symbols and d.dim_param) or UNKNOWN
                        for d in tensor.shape.dim
                    )  # a window longer than its input makes onnx infer less than nothing
    return dims, types


def _nested(model: Model) -> bool:
    """Whether functions call functions: a few can stand for more nodes than any inference can walk."""
    functions = model.ir.functions
    return any(n.op_identifier() in functions for f in functions.values() for n in f.graph.all_nodes())


def _infer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inferred as far as onnx gets; the model as it is where it stumbles."""
    for data_prop in (True, False):
        try:
            return onnx.shape_inference.infer_shapes(
                proto, check_type=False, strict_mode=False, data_prop=data_prop
            )
        except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
            continue
    return proto


def _choose_sizes(
    info: onnx.ValueInfoProto, value: ir.Value, size: Callable[[ir.Value, int], int | str | None]
) -> None:
    """Put sizes in the place of an input's dynamic dimensions."""
    for axis, (dim, declared) in enumerate(
        zip(info.type.tensor_type.shape.dim, value.shape or (), strict=False)
    ):
        wanted = declared if isinstance(declared, int) and declared >= 0 else size(value, axis)
        dim.Clear()
        if isinstance(wanted, str):
            dim.dim_param = wanted
        elif wanted is not None:
            dim.dim_value = wanted


def _forget_shapes(graph: onnx.GraphProto, *, outputs: bool = False) -> None:
    """Drop what the file says of values inside: it may be true of other input sizes only."""
    stored = {tensor.name for tensor in graph.initializer}
    for info in (*graph.value_info, *(graph.output if outputs else ())):
        if info.name not in stored:
            info.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for attr in node.attribute:
            for inner in (*((attr.g,) if attr.type == onnx.AttributeProto.GRAPH else ()), *attr.graphs):
                _forget_shapes(inner, outputs=True)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _side_by_side(graph: ir.Graph, proto: onnx.GraphProto) -> Iterator[tuple[ir.Graph, onnx.GraphProto]]:
    """A graph and its subgraphs, each with its own inferred form."""
    yield graph, proto
    for node, inferred in zip(graph, proto.node, strict=False):
        inner = [g for a in inferred.attribute for g in (*((a.g,) if a.HasField("g") else ()), *a.graphs)]
        for (_name, mine), theirs in zip(subgraphs(node), inner, strict=False):
            yield from _side_by_side(mine, theirs)


def _declared(
    model: Model, input_sizes: Mapping[str, int], dims: dict[ir.Value, Dims], types: dict[ir.Value, str]
) -> None:
    """Fill in what the file itself says where inference says nothing."""
    for _path, graph in graphs(model):
        for value in _values(graph):
            if value not in types and value.dtype is not None:
                types[value] = type_name(value.dtype)
            if value not in dims and value.shape is not None:
                dims[value] = tuple(
                    d if isinstance(d, int) else input_sizes.get(str(d.value), UNKNOWN) for d in value.shape
                )
        for node in graph:
            if node.op_type == "Dropout" and len(node.outputs) > 1 and node.outputs[0] in dims:
                dims.setdefault(node.outputs[1], dims[node.outputs[0]])  # the mask, which onnx leaves out
                types.setdefault(node.outputs[1], types.get(node.outputs[0], "float32"))


def _by_name(found: Mapping[ir.Value, T]) -> dict[str, T]:
    """By name, the main graph's values first: they were found first."""
    names: dict[str, T] = {}
    for value, known in found.items():
        if value.name:
            names.setdefault(value.name, known)
    return names
