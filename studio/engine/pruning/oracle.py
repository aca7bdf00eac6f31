"""The check shipped with every structured prune: cut model = original whose sums skip the gone channels.

An equality on constant or saturated outputs would prove nothing. Values in front of a last sigmoid,
softmax or clip are compared too, and outputs without a live spread do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from studio.engine.execute import Array, run, session
from studio.engine.graph import copy
from studio.engine.groups.atoms import Array as Mask
from studio.engine.groups.cut import Twins
from studio.engine.groups.masked import masked_twins
from studio.engine.groups.trace import Trace

_SATURATING = {"Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Tanh", "Clip", "Identity", "Cast"}
_TOLERANCE = 1e-4
_DEAD = 1e-6


@dataclass(frozen=True)
class Verified:
    """Largest difference relative to the spread of the live outputs; `live` counts those."""

    error: float
    live: int

    @property
    def exact(self) -> bool:
        """Whether the cut is right, as far as the outputs can tell."""
        return self.live > 0 and self.error <= _TOLERANCE

    @property
    def words(self) -> str:
        """For the notes of the version."""
        if not self.live:
            return "Channels not verified: the outputs are constant on these inputs"
        return f"Channels verified: largest difference {self.error:.1g} of the outputs' spread"


def verify(trace: Trace, gone: Mask, twins: Twins, feed: Mapping[str, Array], threads: int = 0) -> Verified:
    """Compare a cut model (before refit) with its oracle on one feed."""
    oracle = masked_twins(trace, gone)
    values = watched(trace)
    mine = _outputs(twins, values, feed, threads)
    theirs = _outputs(oracle, values, feed, threads)
    worst, live = 0.0, 0
    for a, b in zip(mine, theirs, strict=True):
        if a.shape != b.shape:
            return Verified(float("inf"), 1)
        if a.dtype.kind != "f" or not a.size:
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        spread = float(y.std())
        if not np.isfinite(spread) or spread <= _DEAD * max(1.0, float(np.abs(y).max())):
            continue
        live += 1
        worst = max(worst, float(np.abs(x - y).max()) / spread)
    return Verified(worst, live)


def watched(trace: Trace) -> list[ir.Value]:
    """Graph outputs, and what goes into the saturating operators that make them."""
    found: list[ir.Value] = []
    for output in trace.model.graph.outputs:
        value: ir.Value | None = output
        while value is not None:
            if value not in found:
                found.append(value)
            node = value.producer()
            value = node.inputs[0] if node is not None and node.op_type in _SATURATING else None
    return [v for v in found if v.producer() is not None]


def _outputs(twins: Twins, values: list[ir.Value], feed: Mapping[str, Array], threads: int) -> list[Array]:
    exposed = copy(twins.copy)
    by_name = {v.name: v for node in exposed.graph for v in node.outputs}
    present = {v.name for v in exposed.graph.outputs}
    names = [twins.values[v].name or "" for v in values]
    for name in names:
        if name not in present:
            exposed.graph.outputs.append(by_name[name])
            present.add(name)
    return run(session(exposed, threads=threads), feed, names)
