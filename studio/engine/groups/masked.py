"""The oracle: a model with all its channels, in which nothing reads those that go.

Physically removing channels must equal it exactly, for any activation: not the producer is silenced
(f(0) may not be 0), but every sum over the channels skips them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from studio.engine.edit import add_constant, insert_before, owner
from studio.engine.graph import Model, constant
from studio.engine.groups.atoms import Array
from studio.engine.groups.cut import Twins
from studio.engine.groups.grouping import kept
from studio.engine.groups.trace import Trace


def masked(trace: Trace, gone: Array) -> Model:
    """A copy of the traced model in which every contraction multiplies the gone channels by zero first."""
    return masked_twins(trace, gone).copy


def masked_twins(trace: Trace, gone: Array) -> Twins:
    """Like `masked`; with what became of every node and value of the original."""
    twins = Twins(trace.model)
    for reading in trace.readings:
        mask = kept(trace, gone, reading.labels)
        if mask.all():
            continue
        node = twins.nodes[reading.node]
        value = node.inputs[reading.position]
        source = reading.node.inputs[reading.position]
        rank = len(_dims(trace, source))
        shape = [-1 if k == reading.axis else 1 for k in range(rank)]
        kind = _type(trace, source)
        factor = add_constant(twins.copy, owner(node), "kept_channels", mask.astype(kind).reshape(shape))
        if value is not None:
            insert_before(
                twins.copy,
                node,
                reading.position,
                "Mul",
                [factor],
                dtype=ir.DataType.from_numpy(np.dtype(kind)),
            )
    return twins


def _dims(trace: Trace, value: ir.Value | None) -> tuple[int, ...]:
    dims = trace.dims(value)
    if dims is None:
        raise ValueError("a contraction over an unknown shape")
    return dims


def _type(trace: Trace, value: ir.Value | None) -> np.dtype[np.generic]:
    tensor = constant(value)
    if tensor is not None:
        return np.dtype(tensor.dtype.numpy())
    return np.dtype(trace.shapes.dtype(value) or "float32")
