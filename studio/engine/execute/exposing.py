"""Intermediate values as outputs of a copy of the model, those inside subgraphs included.

The main graph's values simply become outputs. A value inside a subgraph climbs: the subgraph gets it as an
output, the node that holds the subgraph gets an output for it, and that one is exposed in turn. The other
branch of an If then owes an output of the same type: an empty constant. A Loop or Scan hands it out as a scan
output, stacked over iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from studio.base.errors import StudioError
from studio.engine.graph import Model, Shapes, copy, graphs, infer_shapes, subgraphs, type_of

_PREFIX = "featherweight_watched_"


@dataclass(frozen=True)
class Exposed:
    """A model that gives its inner values away.

    Attributes:
        model: a copy with more outputs.
        outputs: the output that stands for each name; names of inputs are not among them.
        branched: names whose value is empty where the other branch of an If ran.
    """

    model: Model
    outputs: dict[str, str]
    branched: frozenset[str]


def expose(model: Model, names: Sequence[str]) -> Exposed:
    """A copy of the model with the named values among its outputs.

    Raises:
        StudioError: a name is no value of the model, or the type of one in a subgraph is not known.
    """
    watched = copy(model)
    inputs = {value.name for value in watched.graph.inputs}
    places = _places(watched)
    climber = _Climber(watched, model)
    outputs: dict[str, str] = {}
    branched = set()
    for name in names:
        if name in inputs or name in outputs:
            continue
        if name not in places:
            raise StudioError(f"'{name}' is no value of this model")
        path, value = places[name]
        top, through_if = climber.climb(path, value)
        if top not in watched.graph.outputs:
            watched.graph.outputs.append(top)
        outputs[name] = top.name or ""
        if through_if:
            branched.add(name)
    return Exposed(watched, outputs, frozenset(branched))


def _places(model: Model) -> dict[str, tuple[str, ir.Value]]:
    """Every computed value by its name and by its path and name; the main graph's names come first."""
    found: dict[str, tuple[str, ir.Value]] = {}
    for path, graph in graphs(model):
        values = [value for node in graph for value in node.outputs if value.name]
        for value in [*values, *(graph.inputs if path else ())]:
            place = (path, value)
            found.setdefault(value.name or "", place)
            if path:
                found[f"{path}/{value.name}"] = place
    return found


class _Climber:
    """Takes values of subgraphs up to the main graph, each holder's output made once."""

    def __init__(self, watched: Model, original: Model) -> None:
        self._original = original
        self._shapes: Shapes | None = None
        self._made: dict[int, tuple[ir.Value, bool]] = {}
        self._holders: dict[str, tuple[str, ir.Node, ir.Graph]] = {}
        for path, graph in graphs(watched):
            for node in graph:
                for attribute, inner in subgraphs(node):
                    name = node.name or next((v.name for v in node.outputs if v.name), "") or ""
                    self._holders["/".join(filter(None, (path, name, attribute)))] = (path, node, inner)

    def climb(self, path: str, value: ir.Value) -> tuple[ir.Value, bool]:
        """The value of the main graph that stands for `value` of the graph at `path`; whether an If is between."""
        if not path:
            return value, False
        if id(value) not in self._made:
            outer, node, graph = self._holders[path]
            top, above = self.climb(outer, self._handed_out(node, graph, value))
            self._made[id(value)] = top, above or node.op_type == "If"
        return self._made[id(value)]

    def _handed_out(self, node: ir.Node, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """A new output of `node` for a value of the subgraph that it holds."""
        known = value in graph.inputs or value in graph.outputs
        graph.outputs.append(self._copied(value, graph) if known else value)
        if node.op_type == "If":
            for _attribute, other in subgraphs(node):
                if other is not graph:
                    other.outputs.append(self._nothing_like(value, other))
        elif node.op_type == "Scan":
            for name in ("scan_output_axes", "scan_output_directions"):
                if name in node.attributes:
                    node.attributes[name] = ir.AttrInt64s(name, (*node.attributes[name].as_ints(), 0))
        node.resize_outputs(len(node.outputs) + 1)
        handed = node.outputs[-1]
        handed.name = f"{_PREFIX}{len(self._made)}_{len(node.outputs)}_{value.name}"
        handed.dtype = self._type(value)
        return handed

    def _copied(self, value: ir.Value, graph: ir.Graph) -> ir.Value:
        """A copy of what a subgraph is given or hands out already: handed out twice, onnxruntime mixes the two up."""
        node = ir.Node("", "Identity", [value])
        node.outputs[0].name = f"{_PREFIX}copy_{len(graph)}_{value.name}"
        node.outputs[0].type = value.type
        graph.append(node)
        return node.outputs[0]

    def _nothing_like(self, value: ir.Value, graph: ir.Graph) -> ir.Value:
        """An empty constant of the value's type, for the branch that does not compute it."""
        kind = self._type(value)
        empty = ir.Tensor(np.zeros(0, kind.numpy()), dtype=kind)
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", empty)])
        node.outputs[0].name = f"{_PREFIX}none_{len(graph)}_{value.name}"
        node.outputs[0].dtype = kind
        graph.append(node)
        return node.outputs[0]

    def _type(self, value: ir.Value) -> ir.DataType:
        if value.dtype is not None:
            return value.dtype
        if self._shapes is None:
            self._shapes = infer_shapes(self._original, {}, run=False)
        name = self._shapes.dtype(value)
        if not name:
            raise StudioError(f"The value '{value.name}' cannot be watched", "its type is not known")
        return type_of(name)
