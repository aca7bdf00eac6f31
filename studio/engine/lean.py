"""Nothing in a written file that nobody reads: long names and repeated types of what compressing has added.

A small int8 model holds a few nodes for every layer; their names and the types of what they make, which every runtime
finds for itself, take a tenth of the file. What the user's model had keeps its names, types and shapes; so do layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Model, graphs
from studio.engine.layers import list_layers


@dataclass(frozen=True)
class Known:
    """What a model held before it was compressed.

    Attributes:
        names: of all its values.
        typed: of the values that say their type.
        nodes: names of its nodes.
    """

    names: frozenset[str]
    typed: frozenset[str]
    nodes: frozenset[str]


def known(model: Model) -> Known:
    """What is to stay as it is in what is made of this model."""
    values = [v for _path, graph in graphs(model) for v in _values(graph)]
    nodes = [node for _path, graph in graphs(model) for node in graph]
    return Known(
        names=frozenset(v.name for v in values if v.name),
        typed=frozenset(v.name for v in values if v.name and v.type is not None),
        nodes=frozenset(n.name for n in nodes if n.name),
    )


def make_lean(model: Model, before: Known) -> None:
    """Shorten what has been added.

    Args:
        model: changed in place.
        before: of the model that the user gave.
    """
    layers = list_layers(model).nodes.values()
    kept = {layer.record.weight for layer in layers} | {layer.record.key for layer in layers}
    named = {id(layer.node) for layer in layers}
    for _path, graph in list(graphs(model)):
        outside = {*graph.inputs, *graph.outputs}
        for node in graph:
            if node.name and node.name not in before.nodes and id(node) not in named:
                node.name = None
        for value in list(_values(graph)):
            if not value.name or value in outside:
                continue
            if value.name not in before.typed and not value.is_initializer():
                value.type = value.shape = None
            if value.name not in before.names and value.name not in kept:
                value.name = edit.fresh_name(model, "v")


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [
        *graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs),
    ]  # fmt: skip
