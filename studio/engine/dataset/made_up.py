"""Random data, clearly marked: enough to run and time a model, never to judge it.

Floats are N(0, 1), masks are ones, positions count up, other integers stay within the embedding that they
index or are the value that the model compares them with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from studio.engine.dataset.core import Array, Batch, Order
from studio.engine.dataset.fitting import input_shape, numpy_dtype
from studio.engine.graph import Model, constant
from studio.records.measure import DataSpec
from studio.records.model import TensorInfo

Range: TypeAlias = tuple[int, int]  # smallest, largest + 1

_SAMPLES = 32
_UNKNOWN_RANGE: Range = (0, 2)
# Operators that hand their input's values on.
_PASSING = {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Clip", "Expand"}


@dataclass(frozen=True)
class MadeUp:
    """A source of random samples; sample i is the same in every walk and every batch size."""

    inputs: tuple[TensorInfo, ...]
    shapes: Mapping[str, tuple[int, ...]]
    ranges: Mapping[str, Range]
    seed: int
    count: int
    batch: int
    labelled: bool = False
    what: str = "random data"
    cautions: tuple[str, ...] = ("random data: errors and latencies are real, accuracy means nothing",)

    def read(self, order: Order, size: int) -> Iterator[Batch]:
        """See `Source`."""
        for start in range(0, len(order), size):
            wanted = order[start : start + size]
            feed = {}
            for info in self.inputs:
                samples = [self._sample(info, int(index)) for index in wanted]
                feed[info.name] = np.concatenate(samples) if samples[0].ndim else samples[0]
            yield Batch(feed, None, len(wanted))

    def labels(self, order: Order) -> Iterator[Array]:  # noqa: ARG002 - there are none
        """See `Source`."""
        yield from ()

    def _sample(self, info: TensorInfo, index: int) -> Array:
        shape, kind = self.shapes[info.name], numpy_dtype(info)
        rng = np.random.default_rng((self.seed, index, *info.name.encode()))
        if kind.kind == "f":
            return rng.standard_normal(shape).astype(kind)
        if kind.kind == "b" or "mask" in info.name.lower():
            return np.ones(shape, kind)
        if "position" in info.name.lower() and shape:
            return np.broadcast_to(np.arange(shape[-1]), shape).astype(kind)
        low, high = self.ranges.get(info.name, _UNKNOWN_RANGE)
        return np.asarray(rng.integers(low, high, shape)).astype(kind)


def make_up(
    inputs: tuple[TensorInfo, ...],
    input_sizes: Mapping[str, int],
    spec: DataSpec,
    ranges: Mapping[str, Range],
) -> MadeUp:
    """Random samples of the inputs' shapes at the chosen sizes.

    The first axis takes one sample where every input's is dynamic, otherwise a run is as the model demands.
    """
    shapes = {info.name: input_shape(info, input_sizes) for info in inputs}
    stacks = _stacks(inputs)
    if stacks:
        shapes = {name: (1, *shape[1:]) for name, shape in shapes.items()}
    return MadeUp(inputs, shapes, ranges, spec.seed, spec.limit or _SAMPLES, 0 if stacks else 1)


def _stacks(inputs: tuple[TensorInfo, ...]) -> bool:
    """Whether the first axis of every input counts samples: all dynamic, and of one name or of none ('x:0')."""
    first = [info.shape[0] for info in inputs if info.shape]
    if len(first) < len(inputs) or not all(isinstance(name, str) for name in first):
        return False
    named = {name for name in first if ":" not in str(name)}
    return not named or (len(named) == 1 and all(":" not in str(name) for name in first))


def input_ranges(model: Model) -> dict[str, Range]:
    """The sensible range of every integer input, as far as the graph tells.

    The rows of the table that a Gather picks from with it; of a scalar, the constant that an Equal compares it with.
    """
    found = {}
    for value in model.graph.inputs:
        if value.dtype is not None and value.dtype.is_integer():
            span = _range(value)
            if span is not None:
                found[value.name or ""] = span
    return found


def _range(value: ir.Value) -> Range | None:
    """Follow a value to the node that tells its range; the narrowest table wins."""
    highest: int | None = None
    scalar = value.shape is not None and all(d == 1 for d in value.shape)
    waiting, seen = [value], {id(value)}
    while waiting:
        for use in waiting.pop().uses():
            node, index = use.node, use.idx
            if node.op_type == "Equal" and scalar:
                other = constant(node.inputs[1 - index])
                if other is not None and other.size == 1:
                    only = int(other.numpy().reshape(-1)[0])
                    return only, only + 1
            if node.op_type == "Gather" and index == 1 and (rows := _rows(node)) is not None:
                highest = rows if highest is None else min(highest, rows)
            if node.op_type in _PASSING and index == 0 and id(node.outputs[0]) not in seen:
                seen.add(id(node.outputs[0]))
                waiting.append(node.outputs[0])
    return None if highest is None else (0, highest)


def _rows(node: ir.Node) -> int | None:
    """Entries of a Gather's table along its axis."""
    table = node.inputs[0]
    tensor = constant(table)
    shape = tensor.shape if tensor is not None else table.shape if table is not None else None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if shape is None or not len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) and size > 0 else None
