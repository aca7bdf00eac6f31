"""Which channels of a group go first: an order, and what going costs.

A criterion gives every group its channels in the order in which they would go and the error after each.
Orders are nested: pruning more removes a superset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from studio.base.progress import Progress
from studio.engine.graph import Model, constant, graphs
from studio.engine.groups.atoms import Array, Axis
from studio.engine.groups.grouping import ChannelGroup, Grouping
from studio.engine.groups.trace import Reading, Trace
from studio.engine.pruning.elimination import by_elimination
from studio.engine.pruning.linear import Linear, linear
from studio.engine.pruning.moments import Statistics
from studio.engine.pruning.orders import Order, Reader


@dataclass(frozen=True)
class Consumer:
    """A layer that sums over channels, as a matrix, with the second moments of its input."""

    reading: Reading
    view: Linear
    value: str

    @property
    def weight(self) -> Array:
        """(groups, rows, cols), float64."""
        tensor = constant(self.reading.node.inputs[1])
        if tensor is None:
            raise ValueError("a consumer without weights")
        return self.view.matrix(tensor.numpy().astype(np.float64))


def consumers(trace: Trace) -> dict[str, Consumer]:
    """Layers whose summed channels may go, by the path and name of their first output, as values are streamed."""
    found: dict[str, Consumer] = {}
    called = _streamed(trace.model)
    for reading in trace.readings:
        node = reading.node
        tensor = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        source = node.inputs[0]
        if tensor is None or reading.position != 0 or source is None or node.inputs[1] is None:
            continue
        view = linear(node, tuple(int(d) for d in tensor.shape.numpy()))
        if view is not None and view.groups == 1:
            found[called[node.outputs[0]]] = Consumer(reading, view, called.get(source, source.name or ""))
    return found


def _streamed(model: Model) -> dict[ir.Value, str]:
    """The names under which values can be streamed, those in bodies with their path."""
    found: dict[ir.Value, str] = {}
    for path, graph in graphs(model):
        for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
            found[value] = f"{path}/{value.name}" if path else value.name or ""
    return found


def by_weights(grouping: Grouping, criterion: str, seed: int) -> dict[str, Order]:
    """Orders from the weights alone.

    'l1' and 'l2' sum a norm of every slice that goes with a channel, each weight relative to its mean;
    'fpgm' prefers channels near to all others; 'random' is a control.

    Sources: Li et al., Pruning Filters for Efficient ConvNets, 2017 (L1); He et al., Filter Pruning via
    Geometric Median, 2019; Fang et al., DepGraph, 2023, section 4.2 (norms over a whole group).
    """
    if criterion == "random":
        rng = np.random.default_rng(seed)
        return {g.record.name: _order(rng.random(g.record.width)) for g in grouping.groups}
    scores = _scores(grouping.trace, criterion)
    return {g.record.name: _order(scores[g.atoms]) for g in grouping.groups}


def _scores(trace: Trace, criterion: str) -> Array:
    scores = np.zeros(trace.atoms.count)
    for held in trace.constants.values():
        tensor = constant(held.value)
        if tensor is None or len(tensor.shape) < 2 or not np.issubdtype(tensor.dtype.numpy(), np.floating):
            continue
        data = tensor.numpy().astype(np.float32)
        for k, axis in enumerate(held.labels):
            if axis is None:
                continue
            parts = trace.atoms.parts(axis)
            if not parts.any():
                continue
            slices = np.moveaxis(data, k, 0).reshape(len(axis), -1)
            found = _slice_scores(slices, criterion)
            for column in parts.T:
                np.add.at(scores, column, found / max(float(found.mean()), 1e-30))
    return scores


def _slice_scores(slices: Array, criterion: str) -> Array:
    if criterion == "l1":
        return np.asarray(np.abs(slices).sum(axis=1), np.float64)
    if criterion == "l2":
        return np.asarray(np.square(slices).sum(axis=1), np.float64)
    squares = np.square(slices).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * slices @ slices.T
    return np.asarray(np.sqrt(np.maximum(distances, 0)).sum(axis=1), np.float64)


def _order(scores: Array) -> Order:
    channels = np.argsort(scores, kind="stable")
    total = max(float(scores.sum()), 1e-30)
    return Order(channels, np.concatenate([[0.0], np.cumsum(scores[channels]) / total]))


def readers(grouping: Grouping, statistics: Mapping[str, Statistics]) -> dict[str, list[Reader]]:
    """The layers with statistics that read each group, by group name; groups that none reads are left out."""
    found: dict[str, list[Reader]] = {}
    known = {name: consumer for name, consumer in consumers(grouping.trace).items() if name in statistics}
    for group in grouping.groups:
        for name, consumer in known.items():
            columns = _columns_of(grouping.trace, group, consumer)
            if columns is not None:
                found.setdefault(group.record.name, []).append(_reader(consumer, statistics[name], columns))
    return found


def by_data(
    reading: Mapping[str, Sequence[Reader]],
    criterion: str,
    fallback: Mapping[str, Order],
    limits: Mapping[str, int],
    progress: Progress,
) -> dict[str, Order]:
    """Orders from the second moments of what reads the channels; groups that no such layer reads fall back.

    'activation': Σ ‖W_j‖² E[x_j²] over a channel's columns. 'obs': the error that is left when the other
    columns make up for it, channel after channel with H⁻¹ and W brought up to date:
    tr(W_c (H⁻¹_cc)⁻¹ W_cᵀ). `limits` says how many channels of a group can go at most.

    Sources: Sun et al., Wanda, 2023; Hassibi & Stork, Optimal Brain Surgeon, 1993; Kurtic et al., ZipLM,
    2023, section 3.1 (structures).
    """
    found = dict(fallback)
    for name in progress.over(list(reading), lambda n: f"Order the channels of {n}"):
        several = reading[name]
        if criterion == "activation":
            found[name] = _order(sum(_energy(r.w, r.moments())[r.columns].sum(axis=1) for r in several))
        elif limits.get(name, 0):
            found[name] = by_elimination(several, limits[name])
    return found


@dataclass(frozen=True)
class Felt:
    """A value of the main graph that some layer sums over, and where its channels lie."""

    name: str
    axis: int
    labels: Axis


def felt_values(trace: Trace) -> list[Felt]:
    """Every computed value of the main graph whose channels a layer sums over, each once."""
    main = {value for node in trace.model.graph for value in node.outputs}
    found: dict[tuple[str, int], Felt] = {}
    for reading in trace.readings:
        value = reading.node.inputs[reading.position]
        if value in main and value is not None and value.name and constant(value) is None:
            found.setdefault((value.name, reading.axis), Felt(value.name, reading.axis, reading.labels))
    return list(found.values())


def by_gradients(
    grouping: Grouping,
    criterion: str,
    felt: Sequence[Felt],
    probes: Iterable[tuple[Mapping[str, Array], Mapping[str, Array]]],
    fallback: Mapping[str, Order],
) -> dict[str, Order]:
    """Orders from values a and gradients g of the answer, feed by feed; groups that nothing felt fall back.

    Taking a channel away changes the answer of sample n by s_n = Σ a·g over its positions, to first order.
    'taylor': mean of |s_n|; 'fisher': mean of s_n², the second-order change of a log-likelihood.

    Sources: Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, 2017,
    eq. 7; Theis et al., Faster Gaze Prediction with Dense Networks and Fisher Pruning, 2018, section 2.1.
    """
    trace = grouping.trace
    scores = np.zeros(trace.atoms.count)
    for values, gradients in probes:
        for value in felt:
            change = values[value.name] * gradients[value.name]
            axis = value.axis % change.ndim
            rest = tuple(k for k in range(1, change.ndim) if k != axis)
            sums = change.sum(axis=rest, dtype=np.float64) if axis else change.sum(axis=rest)[None]
            each = np.abs(sums) if criterion == "taylor" else np.square(sums)
            for column in trace.atoms.parts(value.labels).T:
                np.add.at(scores, column, each.sum(axis=0).reshape(-1))
    return {
        name: _order(scores[group.atoms]) if scores[group.atoms].any() else fallback[name]
        for group in grouping.groups
        for name in (group.record.name,)
    }


def _columns_of(trace: Trace, group: ChannelGroup, consumer: Consumer) -> Array | None:
    """Matrix columns of every channel of a group: (width, columns per channel); None when it reads none."""
    parts = trace.atoms.parts(consumer.reading.labels)
    index = {atom: k for k, atom in enumerate(group.atoms.tolist())}
    where: list[list[int]] = [[] for _ in index]
    for row, column in zip(*np.nonzero(np.isin(parts, group.atoms)), strict=True):
        where[index[int(parts[row, column])]].append(int(row))
    counts = {len(w) for w in where}
    if counts == {0} or len(counts) != 1:
        return None
    channels = np.array(where)  # (width, channels)
    taps = np.arange(consumer.view.taps) * len(consumer.reading.labels)
    return np.asarray((taps[None, :, None] + channels[:, None, :]).reshape(len(channels), -1))


def _energy(w: Array, h: Array) -> Array:
    """Share of the output's power that each column alone makes."""
    power = max(float(((w @ h) * w).sum()), 1e-30)
    return np.asarray(np.square(w).sum(axis=0) * np.diag(h) / power)


def _reader(consumer: Consumer, statistics: Statistics, columns: Array) -> Reader:
    node = consumer.reading.node
    users = tuple(node.outputs[0].uses())
    added = (
        len(users) == 1
        and users[0].node.op_type == "Add"
        and constant(users[0].node.inputs[1 - users[0].idx])
    )
    biased = (len(node.inputs) > 2 and node.inputs[2] is not None) or bool(added)
    return Reader(node, consumer.view, consumer.weight[0], statistics, biased, columns)
