"""Lossless storage of large constants with few different values: attention masks, one-hot tables, position grids.

A constant with two values becomes one bit a value, one with up to 256 becomes a byte a value and a table. The nodes that
unpack it depend on constants alone, so that a runtime computes them once when it loads the model.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Model, constant, graphs, is_constant_node

Array: TypeAlias = npt.NDArray[Any]

# Smaller ones are not worth five nodes.
_SMALLEST = 4096
_OLDEST = 11  # of the operator set that has BitShift


def pack(model: Model, keep: Collection[str]) -> int:
    """Store large float constants with few values in less space; how many bytes that saves.

    Args:
        model: changed in place.
        keep: names of constants to leave alone.
    """
    saved = 0
    if model.opset < _OLDEST:
        return 0
    for _path, graph in list(graphs(model)):
        held = [*graph.initializers.values(), *(n.outputs[0] for n in graph if is_constant_node(n))]
        for value in held:
            tensor = constant(value)
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _SMALLEST:
                continue
            if value.name in keep or value.is_graph_output() or value.is_graph_input() or not value.uses():
                continue
            saved += _pack_one(model, graph, value, tensor.numpy())
    edit.remove_dead(model)
    return saved


def _pack_one(model: Model, graph: ir.Graph, value: ir.Value, numbers: Array) -> int:
    flat = np.ascontiguousarray(numbers).reshape(-1)
    if len(np.unique(flat[:: max(1, len(flat) // 1024)].view(np.uint32))) > 256:
        return 0
    bits, codes = np.unique(flat.view(np.uint32), return_inverse=True)
    if len(bits) > 256:
        return 0
    nodes: list[ir.Node] = []

    def add(op: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        nodes.append(edit.make_node(model, op, inputs, attributes, name=f"{value.name}_unpack"))
        return nodes[-1].outputs[0]

    def store(what: str, array: Array) -> ir.Value:
        return edit.add_constant(model, graph, f"{value.name}_{what}", array)

    if len(bits) <= 2:
        packed = np.packbits(codes.astype(np.uint8), bitorder="little")
        # Up by 7 − i pushes the higher bits out, down by 7 the lower ones: bit i is left.
        up, down = np.arange(7, -1, -1, dtype=np.uint8), np.full(1, 7, np.uint8)
        lifted = add("BitShift", [store("bits", packed.reshape(-1, 1)), store("up", up)], direction="LEFT")
        index = add("BitShift", [lifted, store("down", down)], direction="RIGHT")
        if len(flat) % 8:
            ends = [store("end", np.asarray(a, np.int64)) for a in ([-1], [0], [len(flat)])]
            index = add("Slice", [add("Reshape", [index, ends[0]]), ends[1], ends[2]])
    else:
        packed = codes.astype(np.uint8)
        index = store("codes", packed)
    index = add("Cast", [index], to=int(ir.DataType.INT32))
    looked_up = add("Gather", [store("values", bits.view(np.float32)), index])
    result = add("Reshape", [looked_up, store("shape", np.asarray(numbers.shape, np.int64))])
    result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(numbers.shape)
    edit.replace_uses(value, result)
    graph.insert_before(graph[0], nodes)
    return flat.nbytes - packed.nbytes
