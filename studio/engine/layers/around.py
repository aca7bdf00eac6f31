"""What stands around a layer's main node only because its activations or its rows are integers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from studio.engine.graph import holder
from studio.engine.layers.forms import Activations, Form, input_of


@dataclass(frozen=True)
class Around:
    """Nodes that quantize a layer's activations: before, after, and how."""

    nodes: tuple[ir.Node, ...] = ()
    after: tuple[ir.Node, ...] = ()
    activations: Activations = "float"

    @property
    def scales(self) -> list[ir.Value]:
        """Constants that turn the layer's integers back into floats behind it."""
        return [held for node in self.after for value in node.inputs if (held := holder(value)) is not None]


def around(node: ir.Node, form: Form) -> Around:
    """The nodes around a layer's main node that belong to it."""
    if form.activations == "dynamic" and node.op_type.endswith("Integer"):
        before = [p for v in node.inputs[:1] if v is not None and (p := v.producer()) is not None]
        own = [p for p in before if p.op_type == "DynamicQuantizeLinear" and _users(p) == {node}]
        after = _rescaled(node)
        return Around((*own, *after), after)
    if form.op == "Gather" and (rows := _dequantized_after(node)):
        return Around(rows, rows)
    activation = input_of(node, 0 if form.weights[0] else 1)
    before_node = None if activation is None else activation.producer()
    static = before_node is not None and before_node.op_type == "DequantizeLinear"
    return Around(_quantized_after(node), activations="static" if static else "float")


def _users(node: ir.Node) -> set[ir.Node]:
    return {user for v in node.outputs for user in v.consumers() if user.op_type != "Mul"}


def _rescaled(node: ir.Node) -> tuple[ir.Node, ...]:
    """Cast and Mul after an integer product, which turn it back into floats."""
    chain: list[ir.Node] = []
    current = node
    for wanted in ("Cast", "Mul"):
        users = list(current.outputs[0].consumers())
        if len(users) != 1 or users[0].op_type != wanted:
            break
        current = users[0]
        chain.append(current)
    if len(chain) == 2:  # the scale itself is a product of the activations' and the weights' scale
        for value in chain[1].inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer.op_type == "Mul" and producer not in chain:
                chain.append(producer)
    return tuple(chain)


def _dequantized_after(node: ir.Node) -> tuple[ir.Node, ...]:
    """DequantizeLinear nodes that read the integers of a node, where nothing else does."""
    users = list(node.outputs[0].consumers())
    return tuple(users) if all(u.op_type == "DequantizeLinear" for u in users) else ()


def _quantized_after(node: ir.Node) -> tuple[ir.Node, ...]:
    """QuantizeLinear right behind a node, and the DequantizeLinear nodes that read it."""
    users = list(node.outputs[0].consumers())
    if len(users) != 1 or users[0].op_type != "QuantizeLinear":
        return ()
    return (users[0], *(u for u in users[0].outputs[0].consumers() if u.op_type == "DequantizeLinear"))
