"""A model run piece by piece over all calibration feeds, as far as is asked, never anything twice.

Sequential refit needs the input of layer after layer while earlier weights have just changed. Running
the model from the start for each costs L² / 2 layer runs; here each piece between two questions becomes
a small session of its own, and only values that later pieces still need are held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from studio.base.progress import Progress
from studio.engine.execute.sessions import Array, run, session
from studio.engine.graph import Model, constant, is_constant_node, subgraphs


class Stepper:
    """Values of one model's main graph over a list of feeds.

    Args:
        model: its weights may change between questions; what has been computed stays as it was.
        feeds: all of them, held.
        threads: of onnxruntime.
    """

    def __init__(self, model: Model, feeds: Sequence[Mapping[str, Array]], threads: int = 0) -> None:
        self._model, self._threads = model, threads
        self._count = len(feeds)
        self._held: dict[ir.Value, list[Array]] = {}
        for value in model.graph.inputs:
            if value.name and all(value.name in feed for feed in feeds):
                self._held[value] = [np.asarray(feed[value.name]) for feed in feeds]
        self._kept = set(model.graph.outputs)
        self._done: set[ir.Node] = set()
        self._order = {node: index for index, node in enumerate(model.graph)}
        self._needs = {node: _needs(node) for node in model.graph}
        self._users: dict[ir.Value, set[ir.Node]] = {}
        for node, values in self._needs.items():
            for value in values:
                self._users.setdefault(value, set()).add(node)

    def get(self, value: ir.Value, progress: Progress | None = None) -> list[Array]:
        """A value for every feed; what nothing needs any more is forgotten at the next question."""
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
            pending.extend(self._needs[node])
        return sorted(nodes, key=self._order.__getitem__), list(inputs)


def _needs(node: ir.Node) -> list[ir.Value]:
    """Values of the main graph that a node reads, those that its subgraphs capture included."""
    found = [v for v in node.inputs if v is not None]
    for _name, graph in subgraphs(node):
        own = set(graph.inputs) | set(graph.initializers.values())
        for inner in graph:
            own.update(inner.outputs)
            found.extend(v for v in _needs(inner) if v not in own)
        found.extend(v for v in graph.outputs if v not in own)
        found = [v for v in found if v not in own]
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
