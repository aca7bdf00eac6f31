"""Biases that attention does not hear, and those that can be added later: fewer nodes, the same answers.

With P = softmax(Q Kᵀ / √d + M) the rows of P sum to one. So a bias of the keys adds the same number to a whole row of
scores, which softmax ignores, and one of the values comes out as it went in:

    softmax(Q (K + 1 bᵀ)ᵀ) = softmax(Q Kᵀ)        P (V + 1 bᵀ) W + c = P V W + (c + Wᵀ b)

Each is an addition of its own over the whole sequence, and waking a second thread for it takes longer than adding.

Source: Vaswani et al., *Attention Is All You Need*, 2017 (scaled dot-product attention).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Model, constant, holder
from studio.engine.groups.folding import Array, integer, integers

_SPLIT, _KEYS = (
    (0, 2, 1, 3),
    (0, 2, 3, 1),
)  # (samples, positions, heads, width) as values and as keys are read
_LAST, _LAST_BY_DEFAULT = (
    {-1, 3},
    13,
)  # axes of a Softmax over keys; the operator set from which on it needs none


def absorb(model: Model, may: Callable[[ir.Node], bool], *, structure: bool = False) -> int:
    """Drop biases of keys and move those of values into the product after them, in the main graph.

    Args:
        model: changed in place; weights keep their names, nodes of layers too.
        may: whether a product's weights and bias may change.
        structure: only nodes and shapes are wanted; no weight is read.

    Returns:
        How many additions have gone.
    """
    gone = 0
    axis = -1 if model.opset >= _LAST_BY_DEFAULT else 1
    for softmax in [n for n in model.graph if n.op_type == "Softmax" and integer(n, "axis", axis) in _LAST]:
        scores = _scores(softmax.inputs[0])
        key = None if scores is None else _biased(scores.inputs[1], _KEYS, scaled=True)
        if key is not None and may(key.product):
            key.drop()
            gone += 1
        weighted = _reader(softmax.outputs[0])
        if weighted is None or weighted.op_type != "MatMul" or weighted.inputs[0] is not softmax.outputs[0]:
            continue
        value, output = _biased(weighted.inputs[1], _SPLIT), _output(weighted)
        if value is None or output is None or output.sizes[0] != value.sizes[1]:
            continue
        if may(value.product) and may(output.product):
            if not structure:
                output.add(model, value.bias)
            value.drop()
            gone += 1
    if gone:
        edit.remove_dead(model)
    return gone


@dataclass(frozen=True)
class _Biased:
    """A product with constant weights (in, out), and the addition of a constant bias (out) to it."""

    product: ir.Node
    addition: ir.Node
    position: int

    @property
    def bias(self) -> Array:
        """The numbers that are added."""
        tensor = constant(self.addition.inputs[self.position])
        assert tensor is not None
        return tensor.numpy()

    @property
    def sizes(self) -> tuple[int, int]:
        """How many channels the product reads and makes."""
        weights = constant(self.product.inputs[1])
        assert weights is not None
        rows, columns = weights.shape.numpy()
        return int(rows), int(columns)

    def drop(self) -> None:
        """Take the addition out."""
        edit.replace_uses(self.addition.outputs[0], self.product.outputs[0])
        edit.owner(self.addition).remove(self.addition, safe=True)

    def add(self, model: Model, before: Array) -> None:
        """Let the bias do what adding `before` to the product's input did."""
        weights = constant(self.product.inputs[1])
        value = self.addition.inputs[self.position]
        held = holder(value)
        assert weights is not None
        assert value is not None
        assert held is not None
        moved = before.astype(np.float64) @ weights.numpy().astype(np.float64)
        bias = (self.bias + moved).astype(self.bias.dtype)
        if len(held.uses()) == 1:
            edit.set_constant(value, bias)
        else:
            stored = edit.add_constant(model, edit.owner(self.addition), held.name or "bias", bias)
            self.addition.replace_input_with(self.position, stored)


def _scores(value: ir.Value | None) -> ir.Node | None:
    """The product of queries and keys behind the scores, through scaling and masks."""
    node = _maker(value)
    if node is None or node.op_type == "MatMul":
        return node
    if _scaling(node) is not None:
        return _scores(_scaling(node))
    if node.op_type != "Add":
        return None
    found = [scores for v in node.inputs if (scores := _scores(v)) is not None]
    return found[0] if len(found) == 1 else None


def _biased(value: ir.Value | None, order: tuple[int, ...], *, scaled: bool = False) -> _Biased | None:
    """The biased product that is split into heads and laid out in this order to make a value."""
    axes: tuple[int, ...] = (0, 1, 2, 3)
    while (node := _maker(value)) is not None and node.op_type != "Reshape":
        perm = integers(node, "perm") if node.op_type == "Transpose" else None
        if perm is not None and len(perm) == len(axes):
            axes = tuple(perm[axis] for axis in axes)
            value = node.inputs[0]
        elif scaled and (source := _scaling(node)) is not None:
            value = source
        else:
            return None
    found = _addition(_maker(node.inputs[0])) if node is not None and axes == order else None
    if node is None or found is None:
        return None
    target = _target(node)
    return found if len(target) == 4 and target[2] * target[3] == found.sizes[1] else None


def _output(weighted: ir.Node) -> _Biased | None:
    """The biased product that reads the heads, put side by side again."""
    merge = _reader(weighted.outputs[0])
    if merge is None or merge.op_type != "Transpose" or integers(merge, "perm") != _SPLIT:
        return None
    reshape = _reader(merge.outputs[0])
    if reshape is None or reshape.op_type != "Reshape" or len(_target(reshape)) != 3:
        return None
    product = _reader(reshape.outputs[0])
    if product is None or product.op_type != "MatMul" or product.inputs[0] is not reshape.outputs[0]:
        return None
    return _addition(_reader(product.outputs[0]))


def _addition(node: ir.Node | None) -> _Biased | None:
    """An addition of a constant vector to a product with constant weights."""
    if node is None or node.op_type != "Add":
        return None
    for position in (0, 1):
        bias, product = constant(node.inputs[position]), _maker(node.inputs[1 - position])
        weights = None if product is None or product.op_type != "MatMul" else constant(product.inputs[1])
        if product is None or weights is None or bias is None or len(weights.shape) != 2:
            continue
        if bias.shape == (weights.shape[1],) and bias.dtype in {ir.DataType.FLOAT, ir.DataType.DOUBLE}:
            return _Biased(product, node, position)
    return None


def _scaling(node: ir.Node) -> ir.Value | None:
    """What a node multiplies or divides by a constant number."""
    if node.op_type not in {"Mul", "Div"}:
        return None
    for position in (0, 1) if node.op_type == "Mul" else (1,):
        number = constant(node.inputs[position])
        if number is not None and number.size == 1:
            return node.inputs[1 - position]
    return None


def _target(reshape: ir.Node) -> list[int]:
    """The constant sizes of a Reshape that leaves the first two axes as they are; none for any other."""
    tensor, source = constant(reshape.inputs[1]), reshape.inputs[0]
    target = [] if tensor is None else [int(size) for size in tensor.numpy().ravel()]
    if len(target) < 2 or source is None or (0 in target and integer(reshape, "allowzero", 0)):
        return []
    # With what lies behind them unchanged, one of the two says it of the other.
    dims = [None, None] if source.shape is None else [d if isinstance(d, int) else None for d in source.shape]
    return target if any(size in {0, dim} for size, dim in zip(target[:2], dims, strict=False)) else []


def _maker(value: ir.Value | None) -> ir.Node | None:
    """The node that makes a value which only one node reads."""
    node = None if value is None else value.producer()
    return node if node is not None and value is not None and _reader(value) is not None else None


def _reader(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value, once, in the same graph."""
    uses = value.uses()
    user = next(iter(uses))[0] if len(uses) == 1 and not value.is_graph_output() else None
    producer = value.producer()
    return user if user is not None and producer is not None and user.graph is producer.graph else None
