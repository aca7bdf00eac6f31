"""LSTM, GRU and RNN: hidden units go together through all gates, both directions, states and outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from studio.engine.groups.atoms import Axis
from studio.engine.groups.folding import integer
from studio.engine.groups.repairs import Counted
from studio.engine.groups.trace import Reading, Trace, rule, unknown, where

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@rule("LSTM", "GRU", "RNN")
def recurrent(t: Trace, node: ir.Node) -> None:
    """X (T, B, I), W (D, gates·H, I), R (D, gates·H, H), B (D, 2·gates·H), states (D, B, H), P (D, 3·H)."""
    gates = _GATES[node.op_type]
    x, w, r = (t.get(node, i) for i in range(3))
    wd = t.dims(node.inputs[1])
    if x is None or w is None or r is None or wd is None or len(x) != 3 or integer(node, "layout", 0):
        unknown(t, node)
        return
    size = wd[1] // gates
    for axis in (w[0], r[0], x[0], x[1]):
        t.fix(axis, f"is no channel at {where(node)}")
    entering = t.reads(node, (0, 2), (1, 2))
    hidden = t.atoms.fresh(size) if size > 1 else None
    if hidden is not None:
        _tie(t, node, hidden, gates)
        t.repair(Counted(node, "hidden_size", hidden))
        t.readings.append(Reading(node, 2, 2, hidden))
    t.role(node, "in", entering)
    t.role(node, "hidden", hidden)
    if node.outputs:
        t.put(node.outputs[0], [None, None, None, hidden])
    for value in node.outputs[1:]:
        t.put(value, [None, None, hidden])
    gated = None if hidden is None else np.tile(hidden, gates)
    directions = wd[0]
    total = directions * wd[1] * ((t.dims(node.inputs[0]) or (1, 1, 1))[2] + size)
    t.works(node, gated, entering, share=directions * wd[1] * wd[2] / total)
    t.works(node, gated, hidden, share=directions * wd[1] * size / total)


def _tie(t: Trace, node: ir.Node, hidden: Axis, gates: int) -> None:
    """Unify the hidden axis of every operand."""
    for position, axis, times in (
        (1, 1, gates),
        (2, 1, gates),
        (2, 2, 1),
        (3, 1, 2 * gates),
        (5, 2, 1),
        (6, 2, 1),
        (7, 1, 3),
    ):
        labels = t.get(node, position)
        if labels is None:
            continue
        for k, other in enumerate(labels):
            if k != axis:
                if position > 2:
                    t.fix(other, f"is no channel at {where(node)}")
                continue
            t.same(np.tile(hidden, times), other, node)
