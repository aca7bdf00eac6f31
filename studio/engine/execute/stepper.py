"""A model run piece by piece over all calibration feeds, as far as is asked, never anything twice.

Sequential refit needs the input of layer after layer while earlier weights have just changed. Running
the model from the start for each costs L² / 2 layer runs; here each piece between two questions becomes
a small session of its own, and only values that later pieces still need are held. The body of an If, Loop or
Scan is stepped through the same way, fed with what it reads of the graph around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from studio.base.progress import Progress
from studio.engine.execute.sessions import Array, run, session
from studio.engine.execute.streaming import stream
from studio.engine.graph import Model, constant, is_constant_node, node_key, subgraphs


class Stepper:
    """Values of one graph of a model over a list of feeds.

    Args:
        model: its weights may change between questions; what has been computed stays as it was.
        feeds: all of them, held.
        threads: of onnxruntime.
        graph: a body of the model, whose feeds hold what it `captures`, too; None = the main graph.
    """

    def __init__(
        self,
        model: Model,
        feeds: Sequence[Mapping[str, Array]],
        threads: int = 0,
        graph: ir.Graph | None = None,
    ) -> None:
        self._model, self._threads = model, threads
        graph = model.graph if graph is None else graph
        self._count = len(feeds)
        self._held: dict[ir.Value, list[Array]] = {}
        for value in (*graph.inputs, *captured(graph)):
            if value.name and all(value.name in feed for feed in feeds):
                self._held[value] = [np.asarray(feed[value.name]) for feed in feeds]
        self._kept = set(graph.outputs)
        self._done: set[ir.Node] = set()
        self._order = {node: index for index, node in enumerate(graph)}
        self._needs = {node: _needs(node) for node in graph}
        self._users: dict[ir.Value, set[ir.Node]] = {}
        for node, values in self._needs.items():
            for value in values:
                self._users.setdefault(value, set()).add(node)

    def get(self, value: ir.Value, progress: Progress | None = None) -> list[Array]:
        """A value for every feed; what nothing needs any more is forgotten at the next question."""
        tensor = constant(value)
        if tensor is not None:
            return [tensor.numpy()] * self._count
        if value not in self._held:
            self._advance(value, progress)
        return self._held[value]

    def known(self, value: ir.Value) -> bool:
        """Whether a value is held or can be had without running a layer again."""
        return value in self._held

    def keep(self, value: ir.Value) -> None:
        """Hold a value until `release`, whoever has read it."""
        self._kept.add(value)

    def release(self, value: ir.Value) -> None:
        """Undo `keep`."""
        self._kept.discard(value)

    def redo(self, node: ir.Node) -> None:
        """Forget the outputs of a node whose weights have changed; its inputs must be held still."""
        self._done.discard(node)
        for value in node.outputs:
            self._held.pop(value, None)

    def inside(self, graph: ir.Graph, feeds: Sequence[Mapping[str, Array]]) -> Stepper:
        """A stepper through a body of this model."""
        return Stepper(self._model, feeds, self._threads, graph)

    def read_by(self, graph: ir.Graph) -> list[dict[str, Array]]:
        """What a body captures of this graph, for every feed."""
        columns = {v.name or "": self.get(v) for v in captured(graph)}
        return [{name: column[i] for name, column in columns.items()} for i in range(self._count)]

    def rounds(self, node: ir.Node, graph: ir.Graph) -> list[dict[str, Array]]:
        """What the body of a Loop or Scan is given in every round (rounds, …), for every feed.

        Raises:
            StudioError: it changes its shape from round to round.
        """
        values = [v for v in graph.inputs if v.uses()]
        for value in self._needs[node]:
            self.get(value)
        output = next(v for v in node.outputs if v.name)
        nodes, inputs = self._piece(output)
        feeds = self._feeds(inputs)
        piece = _extract(self._model, nodes, inputs, [output], feeds[0])
        attribute = next(name for name, inner in subgraphs(node) if inner is graph)
        path = f"{node.name or node_key(node)}/{attribute}"
        names = [f"{path}/{value.name}" for value in values]
        return [
            {value.name or "": found[name] for value, name in zip(values, names, strict=True)}
            for found in stream(piece, names, feeds, threads=self._threads)
        ]

    def forget(self) -> None:
        """Let go of what no node that is still to run reads."""
        for value in list(self._held):
            if value not in self._kept and not self._users.get(value, set()) - self._done:
                del self._held[value]

    def _advance(self, value: ir.Value, progress: Progress | None) -> None:
        nodes, inputs = self._piece(value)
        piece = set(nodes)
        outputs = [value]
        outputs.extend(
            out
            for node in nodes
            if not is_constant_node(node)
            for out in node.outputs
            if out is not value and (out in self._kept or self._users.get(out, set()) - piece - self._done)
        )
        feeds = self._feeds(inputs)
        sess = session(_extract(self._model, nodes, inputs, outputs, feeds[0]), threads=self._threads)
        names = [out.name or "" for out in outputs]
        found: list[list[Array]] = [[] for _ in outputs]
        for feed in feeds:
            if progress is not None:
                progress.tick(0.0)
            for column, array in zip(found, run(sess, feed, names), strict=True):
                column.append(array)
        self._held.update(zip(outputs, found, strict=True))
        self._done.update(node for node in nodes if not is_constant_node(node))
        self.forget_all_but(value)

    def forget_all_but(self, value: ir.Value) -> None:
        """Like `forget`, but keep one value."""
        kept = self._held[value]
        self.forget()
        self._held[value] = kept

    def _feeds(self, inputs: list[ir.Value]) -> list[dict[str, Array]]:
        return [{v.name or "": self._held[v][i] for v in inputs} for i in range(self._count)]

    def _piece(self, value: ir.Value) -> tuple[list[ir.Node], list[ir.Value]]:
        """Nodes between what is held and a value, in graph order, and the held values that they read."""
        nodes: set[ir.Node] = set()
        inputs: dict[ir.Value, None] = {}
        pending = [value]
        while pending:
            top = pending.pop()
            if top in self._held:
                inputs[top] = None
                continue
            node = top.producer()
            if node is None or node in nodes:
                continue
            nodes.add(node)
            pending.extend(self._needs[node] if node in self._needs else _needs(node))
        # Constants of the graphs around this one come first.
        return sorted(nodes, key=lambda n: self._order.get(n, -1)), list(inputs)


def captured(graph: ir.Graph) -> list[ir.Value]:
    """What a body reads of the graphs around it, constants apart."""
    return [v for v in dict.fromkeys(_borrowed(graph)) if constant(v) is None]


def _borrowed(graph: ir.Graph) -> list[ir.Value]:
    """Values of the graphs around a body that it reads."""
    own = set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        own.update(node.outputs)
    read = [v for node in graph for v in _needs(node)]
    return [v for v in (*read, *graph.outputs) if v not in own]


def _needs(node: ir.Node) -> list[ir.Value]:
    """Values that a node reads, those that its bodies capture included."""
    found = [v for v in node.inputs if v is not None]
    for _name, graph in subgraphs(node):
        found.extend(_borrowed(graph))
    return found


def _extract(
    model: Model,
    nodes: list[ir.Node],
    inputs: list[ir.Value],
    outputs: list[ir.Value],
    feed: Mapping[str, Array],
) -> Model:
    """A model of its own of these nodes."""
    read = [v for node in nodes for v in _needs(node)]
    weights = dict.fromkeys(v for v in read if v.is_initializer() and constant(v) is not None)
    view = ir.GraphView(
        inputs, outputs, nodes=nodes, initializers=tuple(weights), name="piece",
        opset_imports=model.ir.opset_imports,
    )  # fmt: skip
    graph = view.clone()
    for value in graph.inputs:
        array = feed[value.name or ""]
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value.shape = ir.Shape([None] * array.ndim)
    for value in (v for node in graph for v in node.outputs):
        value.shape = None
    return Model(
        ir.Model(graph, ir_version=model.ir.ir_version, functions=tuple(model.ir.functions.values()))
    )
