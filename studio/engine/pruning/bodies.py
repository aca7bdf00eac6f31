"""The bodies of If, Loop and Scan while refit steps through the original and the cut model side by side.

A body is a graph whose feeds are made by the graph around it: an If gives its branch one for every sample that
takes it, a Loop or Scan one for every round. What a loop carries from round to round is taken from the original
in both models: a layer shall learn from states as they will be once all of the body is repaired, not from those
that half of a body has spoilt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from studio.base.errors import StudioError
from studio.engine.execute import Array, stream
from studio.engine.execute.stepper import Stepper
from studio.engine.graph import Model, graphs, subgraphs
from studio.engine.groups.cut import Twins
from studio.engine.groups.grouping import kept
from studio.engine.groups.trace import Trace

_MOST_ROUNDS = 512  # of all samples together; more are picked evenly


@dataclass(frozen=True)
class Pair:
    """One graph in both models, over the same samples."""

    original: Stepper
    cut: Stepper


class Bodies:
    """A pair of steppers for every graph of a model, made when it is asked for.

    Args:
        trace: of the original.
        gone: mask over all atoms.
        twins: the cut model as the twin of the original.
        feeds: calibration samples, all of them.
        threads: of onnxruntime.
    """

    def __init__(
        self, trace: Trace, gone: Array, twins: Twins, feeds: Sequence[dict[str, Array]], threads: int
    ) -> None:
        self._trace, self._gone, self._twins = trace, gone, twins
        self._holders = dict(_holders(trace.model))
        main = Pair(Stepper(trace.model, feeds, threads), Stepper(twins.copy, feeds, threads))
        self._pairs: dict[ir.Graph, Pair | None] = {trace.model.graph: main}

    def around(self, node: ir.Node) -> Pair | None:
        """Both models at the graph that a node lies in; None where no sample comes or its rounds differ in shape.

        Graphs that do not surround the node are forgotten: they have been left behind.
        """
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        chain = [graph]
        while chain[-1] in self._holders:
            holder = self._holders[chain[-1]].graph
            assert isinstance(holder, ir.Graph)
            chain.append(holder)
        self._pairs = {g: pair for g, pair in self._pairs.items() if g in chain}
        for inner, outer in reversed(list(pairwise(chain))):
            if inner not in self._pairs:
                around = self._pairs[outer]
                self._pairs[inner] = None if around is None else self._entered(inner, around)
        return self._pairs[graph]

    def _entered(self, graph: ir.Graph, around: Pair) -> Pair | None:
        holder = self._holders[graph]
        twin = self._twins.nodes[holder]
        name = next(name for name, inner in subgraphs(holder) if inner is graph)
        body = next((inner for attribute, inner in subgraphs(twin) if attribute == name), None)
        if twin.graph is None or body is None:
            return None
        pairs = zip(around.original.read_by(graph), around.cut.read_by(body), strict=True)
        if holder.op_type == "If":
            taken = _taken(holder, twin, name, around)
            feeds = [both for both, here in zip(pairs, taken, strict=True) if here]
        else:
            try:
                rounds = zip(
                    around.original.rounds(holder, graph), around.cut.rounds(twin, body), strict=True
                )
                feeds = self._turns(holder, graph, list(zip(pairs, rounds, strict=True)))
            except StudioError:
                return None
        if not feeds:
            return None
        old, new = zip(*feeds, strict=True)
        return Pair(around.original.inside(graph, old), around.cut.inside(body, new))

    def _turns(
        self, holder: ir.Node, graph: ir.Graph, samples: list[tuple[_Feeds, _Feeds]]
    ) -> list[tuple[dict[str, Array], dict[str, Array]]]:
        """One pair of feeds for every round that is picked, from what is captured and given at a sample."""
        carried = [v for v in _carried(holder, graph) if v.uses()]
        most = -(-_MOST_ROUNDS // max(1, len(samples)))
        feeds = []
        for (old_read, new_read), (old, new) in samples:
            count = min((len(stack) for stack in (*old.values(), *new.values())), default=0)
            for turn in np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)):
                before = {name: stack[turn] for name, stack in old.items()}
                after = {name: stack[turn] for name, stack in new.items()}
                for value in carried:
                    after[self._twins.values[value].name or ""] = self._narrowed(
                        before[value.name or ""], value
                    )
                feeds.append((old_read | before, new_read | after))
        return feeds

    def _narrowed(self, array: Array, value: ir.Value) -> Array:
        """A value of the original without the channels that are gone."""
        for axis, labels in enumerate(self._trace.labels.get(value, ())):
            if labels is not None:
                array = np.compress(kept(self._trace, self._gone, labels), array, axis=axis)
        return array


_Feeds = tuple[dict[str, Array], dict[str, Array]]  # of the original and of the cut model


def _holders(model: Model) -> Iterator[tuple[ir.Graph, ir.Node]]:
    """Every body and the node that holds it."""
    for _path, graph in graphs(model):
        for node in graph:
            yield from ((inner, node) for _name, inner in subgraphs(node))


def _taken(holder: ir.Node, twin: ir.Node, branch: str, around: Pair) -> list[bool]:
    """Which samples take a branch in both models."""
    wanted = branch == "then_branch"
    old, new = holder.inputs[0], twin.inputs[0]
    assert old is not None
    assert new is not None
    answers = zip(around.original.get(old), around.cut.get(new), strict=True)
    return [bool(a.all()) == bool(b.all()) == wanted for a, b in answers]


def _carried(holder: ir.Node, graph: ir.Graph) -> list[ir.Value]:
    """What the body of a Loop or Scan passes on to its next round, as it gets it."""
    if holder.op_type == "Loop":
        return list(graph.inputs)[2:]
    return list(graph.inputs)[: len(graph.inputs) - holder.attributes["num_scan_inputs"].as_int()]


def passed(node: ir.Node) -> Iterator[tuple[ir.Value | None, ir.Value]]:
    """What an If, Loop or Scan hands in, round and out: (value, what it becomes)."""
    for _name, body in subgraphs(node):
        outputs = list(body.outputs)
        if node.op_type == "Loop":
            yield from zip(node.inputs[2:], list(body.inputs)[2:], strict=False)
            outputs = outputs[1:]
        elif node.op_type == "Scan":
            yield from zip(node.inputs, body.inputs, strict=False)
        if node.op_type != "If":
            yield from zip(outputs, _carried(node, body), strict=False)
        yield from zip(outputs, node.outputs, strict=False)


def changed(model: Model, nodes: Mapping[ir.Node, object] | set[ir.Node]) -> set[ir.Value]:
    """Values that depend on these nodes, in all graphs."""
    found: set[ir.Value] = set()
    every = [node for _path, graph in graphs(model) for node in graph]
    before = -1
    while before < len(found):
        before = len(found)
        for node in every:
            if any(True for _ in subgraphs(node)):
                found.update(after for value, after in passed(node) if value in found)
            elif node in nodes or any(v in found for v in node.inputs):
                found.update(node.outputs)
    return found


def unvisited(
    model: Model, layers: Mapping[str, ir.Node], feeds: Iterable[Mapping[str, Array]], threads: int
) -> frozenset[str]:
    """Bodies that no sample comes to.

    Args:
        model: as it is run.
        layers: a layer in every body that is asked about, by the body's path.
        feeds: the samples.
        threads: of onnxruntime.
    """
    names = {path: f"{path}/{node.outputs[0].name}" for path, node in layers.items()}
    idle = set(layers)
    for values in stream(model, list(names.values()), feeds, threads=threads):
        idle -= {path for path in idle if names[path] in values and values[names[path]].size}
    return frozenset(idle)


def in_order(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of a graph and of the bodies in it, as they run."""
    for node in graph:
        for _name, inner in subgraphs(node):
            yield from in_order(inner)
        yield node
