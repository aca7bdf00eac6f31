"""Refit of the input weights of LSTM, GRU and RNN: W'x' shall be Wx for every gate, before any recurrence.

The recurrent weights are left alone: what they read depends on themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from studio.engine.edit import set_constant
from studio.engine.execute import Array
from studio.engine.execute.stepper import Stepper
from studio.engine.graph import constant, holder
from studio.engine.groups.atoms import Axis
from studio.engine.groups.grouping import kept
from studio.engine.groups.trace import Trace
from studio.engine.pruning.least_squares import Problem, Rows
from studio.engine.pruning.moments import sample

_CELLS = {"LSTM", "GRU", "RNN"}
_ROWS_PER_COLUMN, _LEAST_COLUMNS = 32, 256


@dataclass(frozen=True)
class Cell:
    """A recurrent layer in the original and in the cut model."""

    old: ir.Node
    new: ir.Node


def is_cell(node: ir.Node) -> bool:
    """Whether a node is a recurrent layer with input weights of its own, (T, B, I) layout."""
    weight = node.inputs[1] if node.op_type in _CELLS else None
    tensor = constant(weight)
    return (
        weight is not None
        and tensor is not None
        and tensor.dtype in {ir.DataType.FLOAT, ir.DataType.FLOAT16}
        and holder(weight) is weight
        and len(weight.uses()) == 1
    )


def refit_cell(
    cell: Cell, trace: Trace, gone: Array, original: Stepper, cut: Stepper, rng: np.random.Generator
) -> tuple[float, float]:
    """Fit W (D, gates·H, I), and the input half of B where it is the layer's own; relative errors before, after."""
    weight, twin = constant(cell.old.inputs[1]), constant(cell.new.inputs[1])
    source, value = cell.old.inputs[0], cell.new.inputs[0]
    if weight is None or twin is None or source is None or value is None or cell.new.inputs[1] is None:
        raise ValueError("a recurrent layer without weights")
    before, after = weight.numpy().astype(np.float32), twin.numpy().astype(np.float64)
    stay = _stay(trace, gone, cell.old, before.shape[1])
    held = cell.new.inputs[3] if len(cell.new.inputs) > 3 else None
    bias = constant(held) if held is not None and len(held.uses()) == 1 and holder(held) is held else None
    offsets = (
        np.zeros(after.shape[:2]) if bias is None else bias.numpy()[:, : after.shape[1]].astype(np.float64)
    )
    xs, ys = cut.get(value), original.get(source)
    budget = -(-_ROWS_PER_COLUMN * max(after.shape[2], _LEAST_COLUMNS) // max(1, len(xs)))
    problem = Problem(after.shape)
    for number, (x, y) in enumerate(zip(xs, ys, strict=True)):
        rows, whole = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        at = sample(rng, len(rows), budget)
        wanted = whole[at].astype(np.float32) @ before[:, stay].transpose(0, 2, 1) + offsets[:, None].astype(
            "f4"
        )
        here = np.broadcast_to(rows[at].astype(np.float32), (len(after), len(at), rows.shape[1]))
        problem.add(Rows(here, wanted), number if len(xs) > 1 else None)
    found = problem.solve(after, offsets, intercept=bias is not None)
    set_constant(cell.new.inputs[1], ir.tensor(found.w.astype(twin.dtype.numpy()), name=twin.name))
    if bias is not None and held is not None:
        data = bias.numpy().copy()
        data[:, : after.shape[1]] = found.b
        set_constant(held, ir.tensor(data, name=bias.name))
    return float(found.before.mean()), float(found.error.mean())


def _stay(trace: Trace, gone: Array, node: ir.Node, rows: int) -> Array:
    """Mask of the gate rows that stay."""
    labels = trace.get(node, 1)
    axis: Axis | None = labels[1] if labels is not None else None
    return np.ones(rows, bool) if axis is None else kept(trace, gone, axis)
