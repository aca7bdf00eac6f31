"""Surgery on a model's own copy: constants, nodes, names, dead code.

Everything here changes what it is given; `graph.copy` first. Values keep their names where
something outside may know them: graph inputs, graph outputs, layers' first outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from studio.engine.graph import Model, graphs, holder, leave_old_ir, nodes, subgraphs

_NAMES = "featherweight.names"


# Source: the ONNX operator specification, versions of the reductions.
_AXES_AS_INPUT = {
    "ReduceSum": 13,
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"), 18),
}


def fresh_name(model: Model, base: str) -> str:
    """A name that no value and no node of the model has: `base`, `base_1`, and so on."""
    known: tuple[set[str], dict[str, int]] | None = model.ir.meta.get(_NAMES)
    if known is None:
        known = _all_names(model), {}
        model.ir.meta[_NAMES] = known
    taken, last = known
    number = last.get(base, 0)
    name = f"{base}_{number}" if number else base
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    last[base] = number
    return name


def _all_names(model: Model) -> set[str]:
    names: set[str] = set()
    for _path, graph in graphs(model):
        names.update(v.name for v in (*graph.inputs, *graph.initializers.values()) if v.name)
        for node in graph:
            names.update(v.name for v in node.outputs if v.name)
            if node.name:
                names.add(node.name)
    return names


def as_tensor(data: np.ndarray[Any, Any] | ir.TensorProtocol, name: str | None = None) -> ir.TensorProtocol:
    """Numbers as a tensor; a tensor stays as it is."""
    return ir.Tensor(data, name=name) if isinstance(data, np.ndarray) else data


def set_constant(value: ir.Value, data: np.ndarray[Any, Any] | ir.TensorProtocol) -> None:
    """Replace the constant behind a value where it lies: initializers stay initializers, Constant nodes stay nodes.

    Every user of that constant sees the new numbers; type and shape may change.
    """
    held = holder(value)
    if held is None:
        raise ValueError(f"{value.name} is not constant")
    tensor = as_tensor(data, held.name)
    node = held.producer()
    if node is None:
        held.const_value = tensor
    else:
        for name in list(node.attributes):
            del node.attributes[name]
        node.attributes["value"] = ir.AttrTensor("value", tensor)
    _retype(held, tensor)


def _retype(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Carry a constant's new type and shape to the value and through the Identity nodes behind it."""
    value.type = ir.TensorType(tensor.dtype)
    value.shape = ir.Shape(tensor.shape.numpy())
    for user in value.consumers():
        if user.op_type == "Identity" and user.outputs:
            _retype(user.outputs[0], tensor)


def add_constant(
    model: Model, graph: ir.Graph, name: str, data: np.ndarray[Any, Any] | ir.TensorProtocol
) -> ir.Value:
    """A new initializer of `graph`; its name starts with `name`."""
    leave_old_ir(model)
    tensor = as_tensor(data)
    full = fresh_name(model, name)
    value = ir.Value(
        name=full, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    if tensor.name is None:
        tensor.name = full
    graph.register_initializer(value)
    return value


def make_node(
    model: Model,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    domain: str = "",
    name: str = "",
    outputs: int = 1,
    dtype: ir.DataType | None = None,
) -> ir.Node:
    """A node, not yet in any graph; its outputs and itself get fresh names that start with `name`.

    Args:
        model: whose names are taken.
        op: operator.
        inputs: None = left out.
        attributes: plain Python values; the axes of a reduction become an input where the opset wants one.
        domain: of the operator.
        name: base of all names; the operator where empty.
        outputs: how many.
        dtype: element type of the outputs, where known.
    """
    base, inputs, attributes = name or op, list(inputs), dict(attributes or {})
    if not domain and "axes" in attributes and model.opset >= _AXES_AS_INPUT.get(op, sys.maxsize):
        axes = np.asarray(attributes.pop("axes"), np.int64)
        inputs.append(add_constant(model, model.graph, f"{base}_axes", axes))
    values = [
        ir.Value(
            name=fresh_name(model, f"{base}_out" if outputs == 1 else f"{base}_out{index}"),
            type=None if dtype is None else ir.TensorType(dtype),
        )
        for index in range(outputs)
    ]
    return ir.node(
        op,
        inputs,
        attributes=attributes,
        domain=domain,
        outputs=values,
        name=fresh_name(model, base),
    )


def insert_before(
    model: Model,
    node: ir.Node,
    position: int,
    op: str,
    others: Sequence[ir.Value | None] = (),
    attributes: Mapping[str, Any] | None = None,
    *,
    domain: str = "",
    name: str = "",
    dtype: ir.DataType | None = None,
) -> ir.Value:
    """Feed `node` with op(its input at `position`, *others) instead of that input; the new value."""
    graph = owner(node)
    source = node.inputs[position]
    new = make_node(model, op, [source, *others], attributes, domain=domain, name=name, dtype=dtype)
    if source is not None and source.shape is not None:
        new.outputs[0].shape = source.shape.copy()
    graph.insert_before(node, new)
    node.replace_input_with(position, new.outputs[0])
    return new.outputs[0]


def insert_after(
    model: Model,
    value: ir.Value,
    op: str,
    others: Sequence[ir.Value | None] = (),
    attributes: Mapping[str, Any] | None = None,
    *,
    domain: str = "",
    name: str = "",
    dtype: ir.DataType | None = None,
) -> ir.Value:
    """Give every user of `value` (a node's output) op(value, *others) instead; the new value.

    Where `value` is a graph output, the new value takes that place and the name.
    """
    producer = value.producer()
    if producer is None:
        raise ValueError(f"{value.name} is no node's output")
    graph = owner(producer)
    new = make_node(model, op, [value, *others], attributes, domain=domain, name=name, dtype=dtype)
    result = new.outputs[0]
    result.shape = value.shape.copy() if value.shape is not None else None
    replace_uses(value, result, keep=(new,))
    graph.insert_after(producer, new)
    return result


def replace_uses(old: ir.Value, new: ir.Value, keep: Sequence[ir.Node] = ()) -> None:
    """Let every user of `old` (in subgraphs too) use `new`, except the nodes in `keep`.

    A graph output moves too; the name that the graph shows stays the same.
    """
    for user, position in list(old.uses()):
        if user not in keep:
            user.replace_input_with(position, new)
    if old.is_graph_output():
        graph = old.graph
        if graph is None:
            raise ValueError(f"{old.name} belongs to no graph")
        if new.type is None:
            new.type = old.type
        if new.shape is None:
            new.shape = old.shape
        old.name, new.name = new.name, old.name
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new


def replace_node(old: ir.Node, new: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> None:
    """Put nodes (in order) in the place of one; `outputs` take over its outputs' users and names."""
    graph = owner(old)
    graph.insert_before(old, list(new))
    for before, after in zip(old.outputs, outputs, strict=False):
        if after.shape is None:
            after.shape = before.shape
        if after.type is None:
            after.type = before.type
        was_output = before.is_graph_output()
        replace_uses(before, after)
        if not was_output:
            before.name, after.name = after.name, before.name
    graph.remove(old, safe=True)


def owner(node: ir.Node) -> ir.Graph:
    """The graph that a node lies in."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"{node.name} lies in no graph")
    return graph


def remove_dead(model: Model) -> None:
    """Remove nodes whose outputs nobody uses, unused initializers and functions that nobody calls."""
    for _path, graph in reversed(list(graphs(model))):  # bodies first: what they no longer read is free, too
        _remove_dead_nodes(graph)
    for _path, graph in list(graphs(model)):
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                if value.is_graph_input():
                    graph.inputs.remove(value)
                del graph.initializers[name]
    _remove_dead_functions(model)


def _remove_dead_nodes(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        _release_bodies(node)
        graph.remove(node, safe=True)


def _release_bodies(node: ir.Node) -> None:
    """Let go of everything that a node's bodies read."""
    for _name, inner in subgraphs(node):
        for body in reversed(list(inner)):
            _release_bodies(body)
            for position in range(len(body.inputs)):
                body.replace_input_with(position, None)


def _remove_dead_functions(model: Model) -> None:
    functions = model.ir.functions
    wanted = [n.op_identifier() for n in nodes(model)]
    alive: set[ir.OperatorIdentifier] = set()
    while wanted:
        name = wanted.pop()
        if name in functions and name not in alive:
            alive.add(name)
            wanted.extend(n.op_identifier() for n in functions[name].graph.all_nodes())
    for name in list(functions):
        if name not in alive:
            del functions[name]
