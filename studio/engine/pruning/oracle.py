"""The check shipped with every structured prune: cut model = original whose sums skip the gone channels.

An equality on constant or saturated outputs would prove nothing. So what is compared lies in front of a last
sigmoid, softmax or clip, and values without a live spread do not count.

Both sides round differently, the more so where the runtime fuses quantized layers, and some networks make much of
that. Where the difference is larger than rounding usually makes it, both run again as they are written, and the
oracle is compared with itself under nudges no larger than rounding; only what clearly exceeds that noise is a
fault, and noise that would hide one makes the check say that it cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from studio.engine.execute import Array, Optimization, run, session
from studio.engine.graph import copy
from studio.engine.groups.atoms import Array as Mask
from studio.engine.groups.cut import Twins
from studio.engine.groups.masked import masked_twins
from studio.engine.groups.trace import Trace

_SATURATING = {"Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Tanh", "Clip", "Identity", "Cast"}
_TOLERANCE = 1e-4
_DEAD = 1e-6
_NUDGE = 2.0**-23  # a unit in the last place of a float32, relative
_CLEARLY = 8.0  # times the noise is a fault
_DEAFENING = 0.01  # noise above this share of the spread could hide a wrong channel


@dataclass(frozen=True)
class Verified:
    """How far the cut model is from its oracle.

    Attributes:
        error: largest difference relative to the spread of the live values.
        live: how many values have a spread.
        noise: what rounding alone does to the oracle, likewise; 0 where that was not worth asking.
    """

    error: float
    live: int
    noise: float = 0.0

    @property
    def deaf(self) -> bool:
        """Whether nothing can be told: no value is live, or rounding alone could hide a wrong channel."""
        return not self.live or self.noise > _DEAFENING

    @property
    def exact(self) -> bool:
        """Whether the cut is right, as far as the values can tell."""
        return not self.deaf and self.error <= max(_TOLERANCE, _CLEARLY * self.noise)

    @property
    def words(self) -> str:
        """For the notes of the version."""
        if not self.live:
            return "Channels not verified: the outputs are constant on these inputs"
        if self.deaf:
            return (
                f"Channels not verified: rounding alone moves the outputs by {self.noise:.1g} of their spread"
            )
        words = f"Channels verified: largest difference {self.error:.1g} of the outputs' spread"
        return f"{words}, rounding alone makes {self.noise:.1g}" if self.noise else words


def verify(trace: Trace, gone: Mask, twins: Twins, feed: Mapping[str, Array], threads: int = 0) -> Verified:
    """Compare a cut model (before refit) with its oracle on one feed."""
    oracle = masked_twins(trace, gone)
    values = fronts(trace)
    mine, theirs = _Exposed(twins, values), _Exposed(oracle, values)
    error, live = _difference(mine.run(feed, threads), theirs.run(feed, threads))
    if error <= _TOLERANCE or not np.isfinite(error):
        return Verified(error, live)
    plain = theirs.run(feed, threads, "off")
    error, live = _difference(mine.run(feed, threads, "off"), plain)
    noise = max(
        _difference(theirs.run(feed, threads, "basic"), plain)[0],
        _difference(theirs.run(_nudged(feed), threads, "off"), plain)[0],
    )
    return Verified(error, live, noise)


def _difference(mine: list[Array], theirs: list[Array]) -> tuple[float, int]:
    """The largest difference relative to the spread of live values, and how many live ones there are."""
    worst, live = 0.0, 0
    for a, b in zip(mine, theirs, strict=True):
        if a.shape != b.shape:
            return float("inf"), 1
        if a.dtype.kind != "f" or not a.size:
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        spread = float(y.std())
        if not np.isfinite(spread) or spread <= _DEAD * max(1.0, float(np.abs(y).max())):
            continue
        live += 1
        worst = max(worst, float(np.abs(x - y).max()) / spread)
    return worst, live


def _nudged(feed: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs a unit in the last place away, up and down in turn."""
    found = {}
    for name, array in feed.items():
        signs = np.where(np.arange(array.size).reshape(array.shape) % 2, 1.0, -1.0)
        found[name] = (array * (1 + _NUDGE * signs)).astype(array.dtype) if array.dtype.kind == "f" else array
    return found


def fronts(trace: Trace) -> list[ir.Value]:
    """For every graph output the value in front of the saturating operators that make it."""
    found = []
    for output in trace.model.graph.outputs:
        value = output
        while (node := value.producer()) is not None and node.op_type in _SATURATING:
            source = node.inputs[0]
            if source is None or source.producer() is None:
                break
            value = source
        if value.producer() is not None and value not in found:
            found.append(value)
    return found


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


class _Exposed:
    """A model that gives chosen values of the original's main graph."""

    def __init__(self, twins: Twins, values: list[ir.Value]) -> None:
        self._model = copy(twins.copy)
        by_name = {v.name: v for node in self._model.graph for v in node.outputs}
        present = {v.name for v in self._model.graph.outputs}
        self._names = [twins.values[v].name or "" for v in values]
        for name in self._names:
            if name not in present:
                self._model.graph.outputs.append(by_name[name])
                present.add(name)

    def run(self, feed: Mapping[str, Array], threads: int, optimize: Optimization = "all") -> list[Array]:
        return run(session(self._model, threads=threads, optimize=optimize), feed, self._names)
