"""Which channels of a group go first: an order, and what going costs.

A criterion gives every group its channels in the order in which they would go and the error after each.
Orders are nested: pruning more removes a superset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from studio.base.progress import Progress
from studio.engine.graph import constant
from studio.engine.groups.atoms import Array
from studio.engine.groups.grouping import ChannelGroup, Grouping
from studio.engine.groups.trace import Reading, Trace
from studio.engine.pruning.linear import Linear, linear
from studio.engine.pruning.moments import Statistics
from studio.engine.pruning.zeros import inverse_factor

# Tried in this order, more only where the first learns the samples by heart.
_DAMPINGS = (0.01, 0.3)
_OVERFIT = 1.5
_MEASURE_EVERY = 6


@dataclass(frozen=True)
class Order:
    """Channels of a group (indices) from the first to go to the last, and the error when the first k are gone.

    Attributes:
        channels: (width,).
        error: (width + 1,), ascending from 0; relative to the power of what reads the group.
    """

    channels: Array
    error: Array


@dataclass(frozen=True)
class Consumer:
    """A layer of the main graph that sums over channels, as a matrix, with the second moments of its input."""

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
    """Layers of the main graph whose summed channels may go, by the name of their first output."""
    found: dict[str, Consumer] = {}
    main = set(trace.model.graph)
    for reading in trace.readings:
        node = reading.node
        tensor = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        source = node.inputs[0]
        if (
            node not in main
            or tensor is None
            or reading.position != 0
            or source is None
            or node.inputs[1] is None
        ):
            continue
        view = linear(node, tuple(int(d) for d in tensor.shape.numpy()))
        if view is not None and view.groups == 1:
            found[node.outputs[0].name or ""] = Consumer(reading, view, source.name or "")
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


@dataclass(frozen=True)
class Reader:
    """A layer that reads a group.

    Attributes:
        node, view: it, and its linear map.
        w: its matrix (rows, cols).
        statistics: of its input.
        centred: it has a bias, which makes up for means.
        columns: of every channel (width, per channel).
    """

    node: ir.Node
    view: Linear
    w: Array
    statistics: Statistics
    centred: bool
    columns: Array

    def moments(self, half: int | None = None) -> Array:
        """H (cols, cols)."""
        return np.asarray(self.statistics.moments(half, centred=self.centred)[0])


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


def by_elimination(readers: Sequence[Reader], limit: int) -> Order:
    """Eliminate on one half of the samples, with the error measured on the other.

    Where few samples meet many columns, making up for the gone ones learns the samples by heart: then
    stronger damping is tried, and the order comes from all samples with the damping that served best.
    """
    found: list[tuple[float, float, Order]] = []
    for damping in _DAMPINGS:
        order, expected = eliminate(readers, limit, 0, 1, damping)
        reached = max(1, min(limit, len(order.channels) - 1))
        seen = float(order.error[reached])
        found.append((seen, damping, order))
        if len(found) == 1 and seen <= _OVERFIT * expected:
            return order
    _seen, damping, measured = min(found, key=lambda item: item[0])
    order, _ = eliminate(readers, limit, None, None, damping)
    return Order(order.channels, measured.error)


def eliminate(
    readers: Sequence[Reader],
    limit: int,
    train: int | None,
    test: int | None,
    damping: float,
    steps: int = 48,
) -> tuple[Order, float]:
    """Remove channels a few at a time, always those that cost least with the others making up for them.

    Args:
        readers: every layer that reads the group.
        limit: after so many the order is that of the last round, which nobody asks for.
        train: the half of the samples that decides; None = both.
        test: the half on which the error is measured.
        damping: see `zeros.inverse_factor`.
        steps: in about how many rounds; a round brings W and H⁻¹ up to date.

    Returns:
        The order, and the error at `limit` that the deciding half expects.
    """
    width = len(readers[0].columns)
    states = [_State(reader, train, test, damping) for reader in readers]
    left = np.arange(width)
    order: list[int] = []
    expected = [0.0]
    marks: list[tuple[int, float]] = [(0, 0.0)]
    chunk = max(1, width // steps)
    rounds = 0
    while len(left):
        if len(order) >= limit:
            chunk = len(left)
        scores = np.sum([state.scores(left) for state in states], axis=0)
        gone = np.argsort(scores, kind="stable")[: min(chunk, len(left))]
        for k in gone:
            order.append(int(left[k]))
            expected.append(expected[-1] + float(scores[k]))
        if len(gone) < len(left):
            for state in states:
                state.remove(left[gone])
        left = np.delete(left, gone)
        rounds += 1
        if len(left) and (rounds % _MEASURE_EVERY == 0 or len(order) >= limit):
            marks.append((len(order), sum(state.error() for state in states)))
    at = np.arange(width + 1)
    ratio = np.interp(
        at, [m for m, _ in marks], [e / max(expected[m], 1e-12) if m else 1.0 for m, e in marks]
    )
    error = np.maximum.accumulate(np.array(expected) * ratio)
    return Order(np.array(order), error), expected[min(limit, width)]


class _State:
    """W and H⁻¹ of one reader while channels go."""

    def __init__(self, reader: Reader, train: int | None, test: int | None, damping: float) -> None:
        h = reader.moments(train)
        self._check = h if train == test else reader.moments(test)
        power = max(float(((reader.w @ self._check) * reader.w).sum()), 1e-30)
        self._start = reader.w / np.sqrt(power)
        self._w = self._start.copy()
        factor = inverse_factor(h, damping)
        self._inverse = factor.T @ factor
        self._columns = reader.columns

    def scores(self, channels: Array) -> Array:
        """What each channel would cost: (channels,)."""
        return _structure_errors(self._w, self._inverse, self._columns[channels])

    def error(self) -> float:
        """Share of the output's power that is wrong now, on the half that checks."""
        change = self._start - self._w
        return float(((change @ self._check) * change).sum())

    def remove(self, channels: Array) -> None:
        """Bring W and H⁻¹ up to date; what is gone becomes zero (one on the diagonal)."""
        gone = self._columns[channels].reshape(-1)
        solved = np.linalg.solve(self._inverse[np.ix_(gone, gone)], self._inverse[gone])
        self._w = self._w - self._w[:, gone] @ solved
        self._inverse = self._inverse - self._inverse[:, gone] @ solved
        self._w[:, gone] = 0.0
        self._inverse[gone] = 0.0
        self._inverse[:, gone] = 0.0
        self._inverse[gone, gone] = 1.0


def _structure_errors(w: Array, inverse: Array, columns: Array) -> Array:
    """tr(W_c (H⁻¹_cc)⁻¹ W_cᵀ) of every channel c: (channels,)."""
    if columns.shape[1] == 1:
        c = columns[:, 0]
        return np.asarray(np.square(w[:, c]).sum(axis=0) / np.maximum(np.diag(inverse)[c], 1e-30))
    blocks = inverse[columns[:, :, None], columns[:, None, :]]  # (channels, b, b)
    parts = w[:, columns].transpose(1, 2, 0)  # (channels, b, rows)
    solved = np.linalg.solve(blocks, parts)
    return np.asarray((parts * solved).sum(axis=(1, 2)))
