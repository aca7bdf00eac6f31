"""From an input of a node back to the stored weight, through everything that exporters put between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from studio.engine.graph import constant, is_constant_node, subgraphs

# Operators that change how a weight is stored or laid out, not what it is.
_STORAGE = {"Identity", "Cast", "CastLike", "DequantizeLinear", "QuantizeLinear"}
_LAYOUT = {"Reshape", "Squeeze", "Unsqueeze", "Flatten"}
_MAX_DEPTH = 32


@dataclass(frozen=True)
class Source:
    """Where the weights of an input lie.

    Attributes:
        value: the initializer or Constant output that holds them.
        between: nodes from the weight to the input, the nearest to the input first.
        parts: scales and zero points on the way.
        perm: axis of the stored weight for every axis that the node sees; None = as stored.
        computed: operator that makes the weights from constants in a way that no technique follows; ''.
        numbers: how many the constants hold that computed weights are made of.
    """

    value: ir.Value
    between: tuple[ir.Node, ...] = ()
    parts: tuple[ir.Value, ...] = ()
    perm: tuple[int, ...] | None = None
    computed: str = ""
    numbers: int = 0

    @property
    def dequantized(self) -> bool:
        """Whether a DequantizeLinear lies between the weight and the node."""
        return any(n.op_type == "DequantizeLinear" for n in self.between)

    @property
    def fake_quantized(self) -> bool:
        """Whether the stored weights are floats that are quantized and dequantized on the way."""
        return any(n.op_type == "QuantizeLinear" for n in self.between)


def source(value: ir.Value | None) -> Source | None:
    """Where the weights behind `value` lie; None when it depends on the model's inputs."""
    between: list[ir.Node] = []
    parts: list[ir.Value] = []
    perm: tuple[int, ...] | None = None
    computed = ""
    while value is not None and len(between) < _MAX_DEPTH:
        if value.is_initializer() or is_constant_node(value.producer()):
            if constant(value) is None:
                return None
            return Source(value, tuple(between), tuple(parts), perm, computed, _size(value))
        node = value.producer()
        if node is None or not node.inputs:
            return None
        if node.op_type == "Transpose":
            perm = _through_transpose(node, perm)
            computed = computed or ("Transpose" if perm is None else "")
        elif node.op_type in _LAYOUT and all(
            constant(v) is not None for v in node.inputs[1:] if v is not None
        ):
            computed = computed or node.op_type
        elif node.op_type not in _STORAGE:
            return _computed(value, node, between, parts)
        if node.op_type in {"DequantizeLinear", "QuantizeLinear"}:
            parts.extend(v for v in node.inputs[1:3] if v is not None)
        between.append(node)
        value = node.inputs[0]
    return None


def _through_transpose(node: ir.Node, perm: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The axes after one more Transpose on the way back; None where its permutation is not known."""
    attr = node.attributes.get("perm")
    rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape is not None else 0
    held = constant(node.inputs[0])
    rank = len(held.shape) if held is not None else rank
    own = tuple(attr.as_ints()) if attr is not None else tuple(reversed(range(rank)))
    if not own:
        return None
    return own if perm is None else tuple(own[axis] for axis in perm)


def _computed(
    value: ir.Value, node: ir.Node, between: Sequence[ir.Node], parts: Sequence[ir.Value]
) -> Source | None:
    """The largest constant from which `node` computes the weights; None when not all of it is constant."""
    leaves: list[ir.Value] = []
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        if constant(current) is not None:
            leaves.append(current)
            continue
        producer = current.producer()
        inputs = [] if producer is None else [v for v in producer.inputs if v is not None]
        if producer is None or not inputs or len(seen) > _MAX_DEPTH or any(subgraphs(producer)):
            return None  # what bodies read of the graph around them is no input of the node
        waiting.extend(v for v in inputs if v not in seen)
        seen.update(inputs)
    largest = max(leaves, key=_size)
    numbers = sum(map(_size, leaves))
    return Source(largest, (*between, node), tuple(parts), None, node.op_type, numbers)


def _size(value: ir.Value) -> int:
    tensor = constant(value)
    return 0 if tensor is None else int(tensor.size)
