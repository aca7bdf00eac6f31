"""A model in memory, and how its graphs, nodes and constants are reached."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir
from onnx_ir import Graph


@dataclass(frozen=True)
class Model:
    """A graph with weights.

    Attributes:
        ir: the graph; weights are read when asked for.
        path: the file it was read from; None for a model made in memory.
        maps: the mapped files that weights come from.
    """

    ir: ir.Model
    path: Path | None = None
    maps: tuple[mmap.mmap, ...] = ()

    @property
    def graph(self) -> Graph:
        """The main graph."""
        return self.ir.graph

    @property
    def opset(self) -> int:
        """Version of the default operator set; 0 when the model imports none."""
        return self.ir.opset_imports.get("", 0)

    def release(self) -> None:
        """Give back the memory of weights read so far; they are read from the file again when asked for."""
        for mapped in self.maps:
            if hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_DONTNEED)


_NUMPY_NAMES = {"FLOAT": "float32", "DOUBLE": "float64"}


def type_name(dtype: ir.DataType | None) -> str:
    """An element type as numpy calls it: 'float32', 'int8', 'uint4', 'bfloat16'; '' for None."""
    return "" if dtype is None else _NUMPY_NAMES.get(dtype.name, dtype.name.lower())


def type_of(name: str) -> ir.DataType:
    """The element type that `type_name` calls so."""
    return ir.DataType[next((own for own, numpy in _NUMPY_NAMES.items() if numpy == name), name.upper())]


def copy(model: Model) -> Model:
    """The same model with nodes and values of its own; tensors are shared (they are immutable)."""
    return Model(model.ir.clone(), model.path, model.maps)


def leave_old_ir(model: Model, version: int = 4) -> None:
    """Raise the IR version to `version`, in place.

    Before version 4 every weight had to be named among the inputs; from then on that would let a
    caller replace it, and keep a runtime from optimizing it.
    """
    before = model.ir.ir_version or 0
    if before < 4 <= version:
        for value in [v for v in model.graph.inputs if v.is_initializer()]:
            model.graph.inputs.remove(value)
    model.ir.ir_version = max(before, version)


def node_key(node: ir.Node) -> str:
    """The first output name that is not empty: unique within a graph, unlike node names."""
    return next((v.name for v in node.outputs if v.name), "")


_GRAPHS = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}


def subgraphs(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """The graphs that a node holds as attributes, by attribute name ('then_branch', 'branches.1')."""
    for name, attr in node.attributes.items():
        if attr.type not in _GRAPHS or attr.is_ref():
            continue
        if attr.type == ir.AttributeType.GRAPH:
            yield name, attr.as_graph()
        else:
            for index, graph in enumerate(attr.as_graphs()):
                yield f"{name}.{index}", graph


def graphs(model: Model) -> Iterator[tuple[str, ir.Graph]]:
    """Every graph with its path: '' for the main one, 'if_7/then_branch' for a subgraph of node 'if_7'."""
    yield from _walk("", model.graph)


def _walk(path: str, graph: ir.Graph) -> Iterator[tuple[str, ir.Graph]]:
    yield path, graph
    for node in graph:
        for attribute, inner in subgraphs(node):
            yield from _walk("/".join(filter(None, (path, node.name or node_key(node), attribute))), inner)


def nodes(model: Model) -> Iterator[ir.Node]:
    """Every node, those of subgraphs included."""
    for _path, graph in graphs(model):
        yield from graph


def change_tensors(model: Model, change: Callable[[ir.TensorProtocol, str], ir.TensorProtocol]) -> None:
    """Replace every stored tensor by change(tensor, name), in place: initializers and attributes, functions too."""
    for graph in (*(g for _path, g in graphs(model)), *(f.graph for f in model.ir.functions.values())):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = change(value.const_value, value.name or "")
        for node in graph:
            for name, attr in list(node.attributes.items()):
                if attr.is_ref():
                    continue
                if attr.type == ir.AttributeType.TENSOR:
                    tensor = _tensor_of(attr)
                    node.attributes[name] = ir.AttrTensor(name, change(tensor, tensor.name or ""))
                elif attr.type == ir.AttributeType.TENSORS:
                    changed = [change(t, t.name or "") for t in attr.as_tensors()]
                    node.attributes[name] = ir.AttrTensors(name, changed)


def is_constant_node(node: ir.Node | None) -> bool:
    """Whether a node is a standard Constant."""
    return node is not None and node.op_type == "Constant" and node.domain in {"", "ai.onnx"}


def holder(value: ir.Value | None) -> ir.Value | None:
    """The value that really holds a constant: an initializer or the output of a Constant node.

    Identity nodes between it and `value` are followed; None when `value` is not constant.
    """
    while value is not None:
        if value.is_initializer():
            return value if value.const_value is not None else None
        node = value.producer()
        if node is None:
            return None
        if is_constant_node(node):
            return value if _constant_tensor(node) is not None else None
        if node.op_type != "Identity" or node.domain not in {"", "ai.onnx"}:
            return None
        value = node.inputs[0]
    return None


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant tensor behind a value, wherever it lies; None when the value is computed."""
    held = holder(value)
    if held is None:
        return None
    node = held.producer()
    return held.const_value if node is None else _constant_tensor(node)


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node in any of its attribute forms."""
    for name, kind in (
        ("value_float", np.float32),
        ("value_int", np.int64),
        ("value_floats", np.float32),
        ("value_ints", np.int64),
    ):
        if name in node.attributes:
            return ir.tensor(np.array(node.attributes[name].value, dtype=kind))
    attr = node.attributes.get("value")
    if attr is None or attr.is_ref() or attr.type != ir.AttributeType.TENSOR:
        return None
    return _tensor_of(attr)


def _tensor_of(attr: ir.Attr) -> ir.TensorProtocol:
    """Not attr.as_tensor(): its check against a Protocol costs 0.1 ms, thousands of times."""
    return cast("ir.TensorProtocol", attr.value)
