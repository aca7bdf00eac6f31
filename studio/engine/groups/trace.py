"""A walk over the graph that gives every axis its atoms, by one rule an operator.

What a rule may say: `same` (axes are equal), `fix` (an axis must stay), `put` (the labels of an
output), `reads` (a contraction: where a mask would be exact), `repair` (what must be rewritten in
the node once axes are narrower).

The one thing to know: an axis without labels (None) is one that nothing can narrow: batch, time, space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from studio.engine.graph import Model, Shapes, constant, holder, is_constant_node, subgraphs
from studio.engine.groups.atoms import Array, Atoms, Axis
from studio.engine.groups.folding import Folder
from studio.engine.groups.repairs import Repair, Rescaled

Labels: TypeAlias = tuple[Axis | None, ...]
Rule: TypeAlias = "Callable[[Trace, ir.Node], None]"

RULES: dict[tuple[str, str], Rule] = {}

_WEIGHTS = {
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8,
    ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT32, ir.DataType.BOOL,
    ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2,
}  # fmt: skip


def rule(*operators: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register the rule of operators."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            RULES[domain, operator] = function
        return function

    return register


@dataclass(frozen=True)
class Constant:
    """A constant and the labels of its axes.

    Attributes:
        value: initializer or Constant output.
        use: (node, input) where a vector serves several layers: each use is cut on its own; None = all uses alike.
    """

    value: ir.Value
    labels: Labels
    use: tuple[ir.Node, int] | None = None


@dataclass(frozen=True)
class Reading:
    """A contraction: node sums over `axis` of its input `position`; a zero there removes exactly that channel."""

    node: ir.Node
    position: int
    axis: int
    labels: Axis


@dataclass(frozen=True)
class Role:
    """An axis of a layer: 'out', 'in' or 'hidden' (recurrent)."""

    node: ir.Node
    axis: str
    labels: Axis


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of a node, proportional to the product of the lengths of these axes."""

    node: ir.Node
    axes: tuple[Axis, ...]
    share: float = 1.0


class Trace:
    """Labels of every value, and everything the rules said. Made by `trace`."""

    def __init__(self, model: Model, shapes: Shapes) -> None:
        self.model = model
        self.shapes = shapes
        self.atoms = Atoms()
        self.fold = Folder(shapes)
        self.labels: dict[ir.Value, Labels] = {}
        self.constants: dict[object, Constant] = {}
        self.readings: list[Reading] = []
        self.roles: list[Role] = []
        self.work: list[Work] = []
        self.repairs: list[Repair] = []

    # ------------------------------------------------------------------ looking

    def dims(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The shape in numbers; None when not fully known."""
        tensor = constant(value)
        if tensor is not None:
            return tuple(int(d) for d in tensor.shape.numpy())
        dims = self.shapes.of(value)
        if dims is None or not all(isinstance(d, int) for d in dims):
            return None
        return tuple(int(d) for d in dims)

    def get(self, node: ir.Node, position: int) -> Labels | None:
        """Labels of an input; None when there is no such input or its shape is not known."""
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is None:
            return None
        if constant(value) is not None:
            return self._constant(value, node, position)
        if value not in self.labels:
            dims = self.dims(value)
            return None if dims is None else (None,) * len(dims)
        return self.labels[value]

    def _constant(self, value: ir.Value, node: ir.Node, position: int) -> Labels:
        held, tensor = holder(value), constant(value)
        if held is None or tensor is None:
            raise ValueError(f"{value.name} is not constant")
        sizes = tuple(int(d) for d in tensor.shape.numpy())
        if tensor.dtype not in _WEIGHTS:
            return (None,) * len(sizes)
        vector = sum(d > 1 for d in sizes) == 1 and len(held.uses()) > 1
        key = (held, node, position) if vector else held
        if key not in self.constants:
            labels = tuple(self.atoms.fresh(d) if d > 1 else None for d in sizes)
            self.constants[key] = Constant(held, labels, (node, position) if vector else None)
        return self.constants[key].labels

    # ------------------------------------------------------------------ saying

    def put(self, value: ir.Value | None, labels: Sequence[Axis | None]) -> None:
        """Set the labels of an output."""
        if value is not None:
            self.labels[value] = tuple(None if a is None or len(a) == 1 else a for a in labels)

    def fix(self, axis: Axis | None, reason: str) -> None:
        """Keep an axis whole."""
        self.atoms.fix(axis, reason)

    def fix_all(self, labels: Labels | None, reason: str) -> None:
        """Keep every axis whole."""
        for axis in labels or ():
            self.atoms.fix(axis, reason)

    def same(self, a: Axis | None, b: Axis | None, node: ir.Node) -> Axis | None:
        """Two axes are one; returns the labels. With an axis that has none, the other is fixed."""
        if a is None or b is None:
            self.fix(a if b is None else b, f"meets values that cannot be narrowed at {where(node)}")
        elif len(a) != len(b):
            self.fix(a, f"is broadcast at {where(node)}")
            self.fix(b, f"is broadcast at {where(node)}")
        else:
            self.atoms.unify(a, b)
        return b if a is None else a

    def same_all(self, a: Labels | None, b: Labels | None, node: ir.Node) -> None:
        """Two values of one shape are labelled alike."""
        if a is None or b is None or len(a) != len(b):
            self.fix_all(a, f"changes its shape at {where(node)}")
            self.fix_all(b, f"changes its shape at {where(node)}")
            return
        for x, y in zip(a, b, strict=True):
            self.same(x, y, node)

    def reads(self, node: ir.Node, left: tuple[int, int], right: tuple[int, int]) -> Axis | None:
        """Node sums over axis left[1] of input left[0] times axis right[1] of input right[0]."""
        a, b = self.get(node, left[0]), self.get(node, right[0])
        if a is None or b is None:
            self.fix_all(a, f"has an unknown shape at {where(node)}")
            self.fix_all(b, f"has an unknown shape at {where(node)}")
            return None
        axis = self.same(a[left[1]], b[right[1]], node)
        masked = left if constant(node.inputs[left[0]]) is None else right
        self.read(node, *masked, axis)
        return axis

    def read(self, node: ir.Node, position: int, axis: int, labels: Axis | None) -> None:
        """Node sums over an axis of an input; one in integers of a range taken at every run is masked in front of that."""
        source = node.inputs[position]
        producer = None if source is None else source.producer()
        ranged = producer is not None and producer.op_type == "DynamicQuantizeLinear"
        if labels is not None and not ranged:
            self.readings.append(Reading(node, position, axis, labels))

    def role(self, node: ir.Node, axis: str, labels: Axis | None) -> None:
        """Say what an axis is to a layer."""
        if labels is not None:
            self.roles.append(Role(node, axis, labels))

    def works(self, node: ir.Node, *axes: Axis | None, share: float = 1.0) -> None:
        """Say what a node's multiply-accumulates are proportional to."""
        self.work.append(Work(node, tuple(a for a in axes if a is not None), share))

    def repair(self, repair: Repair) -> None:
        """Remember what must be rewritten."""
        self.repairs.append(repair)


def trace(model: Model, shapes: Shapes) -> Trace:
    """Label every axis of every value of a model."""
    import studio.engine.groups.rules  # noqa: F401 - fills RULES

    t = Trace(model, shapes)
    for value in model.graph.inputs:
        if not value.is_initializer():
            dims = t.dims(value) or ()
            t.put(
                value,
                [
                    t.atoms.fixed(d, f"belongs to the model's input '{value.name}'") if d > 1 else None
                    for d in dims
                ],
            )
    walk(t, model.graph)
    for index, value in enumerate(model.graph.outputs):
        labels = t.labels.get(value)
        if labels is None and constant(value) is not None and value.producer() is None:
            labels = next((c.labels for c in t.constants.values() if c.value is value), None)
        t.fix_all(labels, f"belongs to the model's output '{model.graph.outputs[index].name}'")
    return t


def walk(t: Trace, graph: ir.Graph) -> None:
    """Apply the rules to every node of a graph, in order."""
    for node in graph:
        if is_constant_node(node):
            continue
        domain = "" if node.domain == "ai.onnx" else node.domain
        function = RULES.get((domain, node.op_type))
        if function is not None and all(
            t.dims(v) is not None or v in t.labels for v in node.inputs if v is not None
        ):
            function(t, node)
        else:
            unknown(t, node)
        for value in node.outputs:
            _settle(t, value)


def _settle(t: Trace, value: ir.Value) -> None:
    """Labels for an output that its rule left out; whole axes where labels and shape disagree."""
    labels, dims = t.labels.get(value), t.dims(value)
    if dims is None:
        return
    if labels is None or len(labels) != len(dims):
        t.fix_all(labels, "has a shape that is not known beforehand")
        t.put(value, (None,) * len(dims))


def unknown(t: Trace, node: ir.Node) -> None:
    """The rule of operators without a rule: everything they touch stays."""
    why = "whose effect on channels is not known"
    for position in range(len(node.inputs)):
        t.fix_all(t.get(node, position), f"goes into {where(node)}, {why}")
    for _name, graph in subgraphs(node):
        walk(t, graph)
        for value in graph.outputs:
            t.fix_all(t.labels.get(value), f"leaves {where(node)}, {why}")


def where(node: ir.Node) -> str:
    """A node in words."""
    name = node.name or next((v.name for v in node.outputs if v.name), "")
    return f"{node.op_type} '{name}'"


def known_sizes(labels: Labels, dims: tuple[int, ...]) -> Array:
    """Sizes of labelled axes, 0 for the others."""
    return np.array([d if a is not None else 0 for a, d in zip(labels, dims, strict=True)])


__all__ = [
    "RULES",
    "Constant",
    "Labels",
    "Reading",
    "Rescaled",
    "Role",
    "Trace",
    "Work",
    "rule",
    "trace",
    "unknown",
    "walk",
    "where",
]
