"""Channel scaling that changes nothing but how well 8 bits fit: small channels are made as large as the others.

Equation: W₂·f(W₁·x) = (W₂ S⁻¹)·f(S W₁·x) for a diagonal S > 0 and any f with f(s·x) = s·f(x), channel by channel: what
makes a channel is multiplied, what reads it is divided. s_c = (max_k r_k / r_c)^α with r_c the largest magnitude in channel
c. Channels that are added, joined or passed on are scaled together, found by giving them one label. A clip from above
(ReLU6) ends the scaling: a bound that holds on the data seen would cut off larger values later.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", §4.1; the strength
as in Xiao et al. 2023, "SmoothQuant".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit, execute
from studio.engine.graph import Model, Shapes, constant, copy, holder
from studio.engine.quantization.simplify import array
from studio.engine.quantization.static import counterpart

Array: TypeAlias = npt.NDArray[Any]

# Operators that pass every channel on, and for which f(s·x) = s·f(x).
_PASS = {
    "Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Dropout",
    "Resize", "Upsample",
}  # fmt: skip
_FIXED = 0
# No channel is scaled by more.
_MOST = 64.0


class Labels:
    """Which channels are scaled alike: a number for every channel of every value, equal ones joined."""

    def __init__(self) -> None:
        self._parent = [_FIXED]

    def fresh(self, count: int) -> Array:
        """New labels."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, label: int) -> int:
        """The label that stands for all it was joined with; 0 where the channel may not be scaled."""
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def roots(self, labels: Array) -> Array:
        """The same for many."""
        return np.array([self.root(int(label)) for label in labels])

    def join(self, a: Array, b: Array) -> None:
        """Let two values be scaled alike; `FIXED` wins."""
        for one, other in zip(a, b, strict=True):
            x, y = self.root(int(one)), self.root(int(other))
            self._parent[max(x, y)] = min(x, y)

    def fix(self, labels: Array) -> None:
        """Let channels stay as they are."""
        self.join(labels, np.zeros(len(labels), np.int64))


@dataclass
class _Flow:
    """What was found on the way through a graph.

    Attributes:
        labels: of every value with channels.
        made: convolutions with the labels of what they make.
        read: layers with the labels of what they read.
        shifts: per-channel constants that are added, with the labels of the sum.
    """

    union: Labels
    labels: dict[ir.Value, Array]
    made: list[tuple[ir.Node, Array]]
    read: list[tuple[ir.Node, Array]]
    shifts: list[tuple[ir.Node, int, Array]]


def equalize(
    model: Model,
    shapes: Shapes,
    sites: Collection[str],
    feeds: Iterable[Mapping[str, Array]],
    strength: float,
    threads: int = 0,
) -> Model:
    """A copy that computes the same, with channels of more equal ranges.

    Args:
        model: simplified; its main graph is looked at.
        shapes: of its values.
        sites: names of the values that are to be stored as integers.
        feeds: what ranges are taken from.
        strength: α, 0 to 1.
        threads: of the runtime.
    """
    result = copy(model)
    flow = _walk(result, shapes)
    factors = _factors(result, flow, sites, feeds, strength, threads)
    if (factors == 1).all():
        return result
    for node, labels in flow.made:
        _scale_made(node, factors[flow.union.roots(labels)])
    for node, labels in flow.read:
        _scale_read(node, 1 / factors[flow.union.roots(labels)])
    for node, position, labels in flow.shifts:
        values = np.asarray(array(node.inputs[position]))
        s = factors[flow.union.roots(labels)].reshape(1, -1, *([1] * (values.ndim - 2)))
        node.replace_input_with(
            position, edit.add_constant(result, result.graph, "scaled", (values * s).astype(np.float32))
        )
    return result


def _walk(model: Model, shapes: Shapes) -> _Flow:
    union = Labels()
    flow = _Flow(union, {}, [], [], [])
    for value in model.graph.inputs:
        _no_labels(flow, value)
    for node in model.graph:
        _visit(flow, node, shapes)
        for value in node.outputs:  # what leaves the graph, or is used inside a subgraph, stays as it is
            labels = flow.labels.get(value)
            if labels is not None and (
                value.is_graph_output() or any(user.graph is not model.graph for user, _ in value.uses())
            ):
                union.fix(labels)
    return flow


def _visit(flow: _Flow, node: ir.Node, shapes: Shapes) -> None:
    """Label what a node makes and note what it reads; what is not understood fixes all that goes in."""
    if node.domain in {"", "ai.onnx"} and _understood(flow, node, shapes):
        return
    for value in node.inputs:
        if value is not None:
            _no_labels(flow, value)


def _understood(flow: _Flow, node: ir.Node, shapes: Shapes) -> bool:
    given = flow.labels.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
    match node.op_type:
        case "Conv":
            return _convolution(flow, node, given)
        case "Add" | "Sub":
            return _sum(flow, node)
        case "Mul":
            return _product(flow, node, shapes)
        case "Concat":
            return _concat(flow, node, shapes)
    if given is None:
        return False
    if node.op_type in {"Gemm", "MatMul"} and _plain_product(node, given):
        flow.read.append((node, given))
        return True
    if node.op_type in _PASS or _open_clip(node) or _flat(node, given, shapes):
        flow.labels[node.outputs[0]] = given
        return True
    return False


def _convolution(flow: _Flow, node: ir.Node, given: Array | None) -> bool:
    weight = constant(node.inputs[1])
    if weight is None or not _scalable(node):
        return False
    if given is not None:
        flow.read.append((node, given))
    made = flow.union.fresh(int(weight.shape.numpy()[0]))
    flow.labels[node.outputs[0]] = made
    flow.made.append((node, made))
    return True


def _no_labels(flow: _Flow, value: ir.Value) -> None:
    """Keep a value as it is."""
    if value in flow.labels:
        flow.union.fix(flow.labels[value])


def _scalable(node: ir.Node) -> bool:
    """A convolution with weights of its own, dense or depthwise."""
    weight, held = constant(node.inputs[1]), holder(node.inputs[1])
    if weight is None or held is None or len(held.uses()) > 1 or weight.dtype != ir.DataType.FLOAT:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        held = holder(bias)
        if held is None or len(held.uses()) > 1:
            return False
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    return groups == 1 or weight.shape[1] == 1


def _plain_product(node: ir.Node, labels: Array) -> bool:
    """A product of rows (n, channels) with constant weights of its own."""
    weight = constant(node.inputs[1])
    held = holder(node.inputs[1])
    if weight is None or held is None or len(held.uses()) > 1 or len(weight.shape) != 2:
        return False
    if "transA" in node.attributes and node.attributes["transA"].as_int():
        return False
    return weight.shape[_in_axis(node)] == len(labels)


def _in_axis(node: ir.Node) -> int:
    if node.op_type == "Conv":
        return 1
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    return 1 if transposed else 0


def _open_clip(node: ir.Node) -> bool:
    """A Clip at zero from below and at nothing from above, which is a Relu."""
    low, high = (*node.inputs[1:], None, None)[:2]
    bottom = array(low) if low is not None else None
    return high is None and bottom is not None and not bottom.any()


def _sum(flow: _Flow, node: ir.Node) -> bool:
    """Both summands are scaled alike; a constant is scaled too."""
    known = [flow.labels.get(v) if v is not None else None for v in node.inputs]
    for position in (0, 1):
        labels, other = known[1 - position], array(node.inputs[position])
        if labels is None or other is None:
            continue
        if other.ndim >= 3 and other.shape[1] == len(labels) and other.size == len(labels):
            flow.shifts.append((node, position, labels))
            flow.labels[node.outputs[0]] = labels
            return True
    if known[0] is None or known[1] is None or len(known[0]) != len(known[1]):
        return False
    flow.union.join(known[0], known[1])
    flow.labels[node.outputs[0]] = known[0]
    return True


def _product(flow: _Flow, node: ir.Node, shapes: Shapes) -> bool:
    """A gate (n, c, 1, 1) or a constant stays as it is; what it multiplies is passed on."""
    for position in (0, 1):
        value, gate = node.inputs[position], node.inputs[1 - position]
        labels = flow.labels.get(value) if value is not None else None
        if labels is None or gate is None:
            continue
        if array(gate) is not None:
            flow.labels[node.outputs[0]] = labels
            return True
        mine, dims = shapes.of(value), shapes.of(gate)
        if (
            mine
            and dims
            and len(dims) == len(mine) >= 3
            and all(d == 1 for d in dims[2:])
            and mine[2:] != dims[2:]
        ):
            _no_labels(flow, gate)
            flow.labels[node.outputs[0]] = labels
            return True
    return False


def _concat(flow: _Flow, node: ir.Node, shapes: Shapes) -> bool:
    """Channels side by side; inputs without labels stay as they are."""
    if node.attributes["axis"].as_int() != 1:
        return False
    parts = []
    for value in node.inputs:
        dims = None if value is None else shapes.of(value)
        if value is None or not dims or not isinstance(dims[1], int):
            return False
        labels = flow.labels.get(value)
        parts.append(np.full(dims[1], _FIXED) if labels is None else labels)
    flow.labels[node.outputs[0]] = np.concatenate(parts)
    return True


def _flat(node: ir.Node, labels: Array, shapes: Shapes) -> bool:
    """(n, c, 1, 1) as (n, c)."""
    if node.op_type not in {"Flatten", "Squeeze", "Reshape"}:
        return False
    before, after = shapes.of(node.inputs[0]), shapes.of(node.outputs[0])
    if not before or not after or len(after) != 2 or after[1] != len(labels):
        return False
    return before[1] == len(labels) and all(d == 1 for d in before[2:])


def _factors(
    model: Model,
    flow: _Flow,
    sites: Collection[str],
    feeds: Iterable[Mapping[str, Array]],
    strength: float,
    threads: int,
) -> Array:
    """S by label; 1 for what may not be scaled."""
    union = flow.union
    values = {
        value: labels
        for value, labels in flow.labels.items()
        if value.name in sites and any(union.root(int(i)) for i in labels)
    }
    reach = _reach(model, list(values), feeds, threads)
    count = len(union._parent)
    logs, weights = np.zeros(count), np.zeros(count)
    for value, labels in values.items():
        roots, r = union.roots(labels), reach[value.name or ""]
        top = r.max()
        if not top:
            continue
        alive = r > top / 1e6
        wanted = strength * np.log(top / np.maximum(r, top / 1e6))
        np.add.at(logs, roots[alive], wanted[alive])
        np.add.at(weights, roots[alive], 1.0)
    factors = np.exp(np.divide(logs, weights, out=np.zeros(count), where=weights > 0))
    factors = np.minimum(factors, _MOST)
    factors[_FIXED] = 1.0
    return np.asarray(factors)


def _reach(
    model: Model, values: list[ir.Value], feeds: Iterable[Mapping[str, Array]], threads: int
) -> dict[str, Array]:
    """The largest magnitude by channel."""
    if not values:
        return {}
    watched = copy(model)
    nodes = dict(zip(model.graph, watched.graph, strict=True))
    results = []
    for value in values:
        source = counterpart(value, nodes, watched)
        for op in ("Abs", "GlobalMaxPool", "ReduceMax") if _spatial(value) else ("Abs", "ReduceMax"):
            attributes: dict[str, object] = {"axes": [0], "keepdims": 0} if op == "ReduceMax" else {}
            node = edit.make_node(watched, op, [source], attributes, name="reach", dtype=ir.DataType.FLOAT)
            watched.graph.append(node)
            source = node.outputs[0]
        results.append(source)
    watched.graph.outputs.clear()
    watched.graph.outputs.extend(results)
    edit.remove_dead(watched)
    sess = execute.session(watched, threads=threads)
    found: list[Array] = []
    for feed in feeds:
        got = [a.ravel() for a in execute.run(sess, feed)]
        found = [np.maximum(a, b) for a, b in zip(found, got, strict=True)] if found else got
    return {value.name or "": reach for value, reach in zip(values, found, strict=True)}


def _spatial(value: ir.Value) -> bool:
    node = value.producer()
    return not (node is not None and node.op_type in {"Flatten", "Squeeze", "Reshape"})


def _scale_made(node: ir.Node, factors: Array) -> None:
    """Multiply what a convolution makes, channel by channel."""
    weight = np.asarray(array(node.inputs[1]))
    scaled = weight * factors.reshape(-1, *([1] * (weight.ndim - 1)))
    edit.set_constant(node.inputs[1], scaled.astype(np.float32))  # type: ignore[arg-type]
    bias = array(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        edit.set_constant(node.inputs[2], (bias * factors).astype(np.float32))  # type: ignore[arg-type]


def _scale_read(node: ir.Node, factors: Array) -> None:
    """Multiply what a layer reads, channel by channel."""
    weight = np.asarray(array(node.inputs[1]))
    if node.op_type == "Conv" and weight.shape[1] != len(factors):  # depthwise: a filter reads one channel
        per_filter = np.repeat(factors, weight.shape[0] // len(factors))
        scaled = weight * per_filter.reshape(-1, *([1] * (weight.ndim - 1)))
    else:
        shape = [1] * weight.ndim
        shape[_in_axis(node)] = -1
        scaled = weight * factors.reshape(shape)
    edit.set_constant(node.inputs[1], scaled.astype(np.float32))  # type: ignore[arg-type]
