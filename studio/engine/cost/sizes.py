"""Stored values and bytes of constants, bytes of activations, and the cost of a whole model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from studio.engine.cost.rules import graph_macs
from studio.engine.graph import Model, Shapes, constant, graphs, holder, is_constant_node, subgraphs, type_of
from studio.records.model import Cost

# Integers of these types are sizes, axes and indices, unless a quantized operator reads them.
_BOOKKEEPING = {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING}
_QUANTIZED_READERS = {
    "DequantizeLinear",
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "MatMulInteger",
    "ConvInteger",
}


def tensor_bytes(tensor: ir.TensorProtocol) -> int:
    """Bytes of a tensor in the file; 4-bit and 2-bit types count packed, rounded up to a byte."""
    if tensor.dtype == ir.DataType.STRING:
        return sum(len(text) for text in tensor.numpy().reshape(-1))
    return math.ceil(int(tensor.size) * int(tensor.dtype.bitwidth) / 8)


def stored_values(value: ir.Value) -> int:
    """How many weight values a constant holds.

    Sizes, axes and indices (64- and 32-bit integers, booleans) are no weights. The weights of MatMulNBits are
    counted as values, not as the bytes that they are packed into.
    """
    tensor = constant(value)
    if tensor is None:
        return 0
    readers = [(use.node, use.idx) for use in value.uses()]
    for node, index in readers:
        if node.op_type == "MatMulNBits" and index == 1:
            return node.attributes["K"].as_int() * node.attributes["N"].as_int()
    if tensor.dtype in _BOOKKEEPING and not any(n.op_type in _QUANTIZED_READERS for n, _ in readers):
        return 0
    return int(tensor.size)


def constant_cost(values: Iterable[ir.Value | None]) -> Cost:
    """Stored values and bytes of the constants behind values, each counted once."""
    held = {id(h): h for h in (holder(v) for v in values) if h is not None}
    tensors = [(h, t) for h in held.values() if (t := constant(h)) is not None]
    return Cost(
        parameters=sum(stored_values(h) for h, _ in tensors), bytes=sum(tensor_bytes(t) for _, t in tensors)
    )


def activation_bytes(node: ir.Node, shapes: Shapes) -> int | None:
    """Bytes of a node's outputs at the shapes' input sizes; None where a shape or type is not known."""
    total = 0
    for value in node.outputs:
        if not value.name:
            continue
        dims, dtype = shapes.of(value), shapes.dtype(value)
        if dims is None or dtype is None or not all(isinstance(d, int) for d in dims):
            return None
        total += math.ceil(math.prod(int(d) for d in dims) * _bits(dtype) / 8)
    return total


def _bits(dtype: str) -> int:
    kind = type_of(dtype)
    return 0 if kind == ir.DataType.STRING else int(kind.bitwidth)


def _graph_activation_bytes(graph: ir.Graph, shapes: Shapes) -> int | None:
    """Of all nodes of a graph; of the subgraphs of a node, those of the largest that can be counted."""
    total = 0
    for node in graph:
        if is_constant_node(node):
            continue
        own = activation_bytes(node, shapes)
        inner = [_graph_activation_bytes(held, shapes) for _, held in subgraphs(node)]
        largest = max((figure for figure in inner if figure is not None), default=None)
        if own is None or (inner and largest is None):
            return None
        total += own + (largest or 0)
    return total


def model_cost(model: Model, shapes: Shapes) -> Cost:
    """Everything stored in the model, subgraphs included, and what one run takes."""
    return constant_cost(_stored(model)) + Cost(
        macs=graph_macs(model.graph, shapes),
        activation_bytes=_graph_activation_bytes(model.graph, shapes),
    )


def used_bytes(model: Model) -> int:
    """Bytes of the constants that something uses: what a model that is still being worked on will store."""
    return constant_cost(v for v in _stored(model) if v.is_graph_output() or next(iter(v.uses()), None)).bytes


def _stored(model: Model) -> Iterator[ir.Value]:
    for _path, graph in graphs(model):
        yield from graph.initializers.values()
        yield from (node.outputs[0] for node in graph if is_constant_node(node))
