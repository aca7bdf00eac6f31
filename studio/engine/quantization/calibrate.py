"""Ranges of activations from calibration data: one pass, bounded memory.

The reductions run inside the model: onnxruntime returns the smallest and largest value and a strided sample of each
tensor, never the tensor itself. The sample is thinned so that it stays below a fixed number of values per tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.engine import edit, execute
from studio.engine.graph import Model, copy
from studio.engine.quantization.search import Judge, expose_scores

Array: TypeAlias = npt.NDArray[Any]
Feed: TypeAlias = Mapping[str, Array]
Calibrator: TypeAlias = Literal["minmax", "percentile", "mse", "entropy"]

_SAMPLE = 4096  # values taken per tensor and feed
_KEPT = 32_768  # values kept per tensor over all feeds, at least; at most twice as many
_BINS = 2048
# Ranges have settled when so many runs have widened them by less than this share on average. Few bytes of input are
# soon read to their end, and a recording of a few seconds may begin with silence.
_SETTLED, _STEADY_RUNS, _FEWEST_RUNS, _FEWEST_BYTES = 0.01, 8, 16, 3 << 18
_IMAGE_OPERATORS = {
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Resize",
}


@dataclass
class Observed:
    """What was seen of one tensor.

    Attributes:
        low / high: over all values of all feeds.
        channel_high: largest value by channel (axis 1 of images, the last axis of rows).
        mean: by channel.
        sample: evenly strided values; empty where none were taken.
    """

    low: float = np.inf
    high: float = -np.inf
    channel_high: Array | None = None
    _sum: Array | None = None
    _feeds: int = 0
    _parts: list[Array] = field(default_factory=list)
    _stride: int = 1

    def add(self, low: float, channel_high: Array, mean: Array, sample: Array | None) -> None:
        """Take in what one feed showed."""
        self.low, self.high = min(self.low, low), max(self.high, float(channel_high.max()))
        if self.channel_high is not None:
            channel_high = np.maximum(self.channel_high, channel_high)
        self.channel_high = channel_high
        self._sum = mean.astype(np.float64) if self._sum is None else self._sum + mean
        self._feeds += 1
        if sample is None:
            return
        self._parts.append(sample[:: self._stride])
        if sum(len(p) for p in self._parts) > 2 * _KEPT:
            self._parts = [np.ascontiguousarray(self.sample[::2])]
            self._stride *= 2

    @property
    def mean(self) -> Array:
        """By channel, over all feeds."""
        assert self._sum is not None
        return np.asarray(self._sum / self._feeds)

    @property
    def sample(self) -> Array:
        """All values kept."""
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.float32)


@dataclass(frozen=True)
class Watch:
    """A value to be watched.

    Attributes:
        name: of a float value of the main graph.
        rank: its number of dimensions.
        floor: nothing below matters (0 behind a Relu); None = everything does.
    """

    name: str
    rank: int
    floor: float | None = None


def observe(
    model: Model,
    watches: Sequence[Watch],
    feeds: Iterable[Feed],
    progress: Progress | None = None,
    *,
    total: int = 0,
    threads: int = 0,
    samples: bool = False,
    settle: bool = False,
    judge: Judge | None = None,
) -> dict[str, Observed]:
    """Run the model over the feeds and watch values of its main graph.

    Args:
        model: what to run.
        watches: which values.
        feeds: what to run it on, one at a time.
        progress: ticked before each run.
        total: how many feeds there are; 0 = not known.
        threads: of the runtime; 0 = its choice.
        samples: take samples of values too (slower), as every calibrator but minmax needs them.
        settle: stop when ranges have settled.
        judge: learns what the model answers.

    Raises:
        StudioError: no feed at all, or a value is NaN or infinite.
    """
    found = {watch.name: Observed() for watch in watches}
    watched, results, answers = _instrumented(model, watches, samples=samples, answers=judge is not None)
    sess = execute.session(watched, threads=threads)
    names = list(dict.fromkeys([*(name for group in results for name in group if name), *answers]))
    seen, read, steady, before, grown = 0, 0, 0, np.inf, np.inf
    for seen, feed in enumerate(feeds, 1):
        if progress is not None:
            progress.tick((seen - 1) / total if total else 0.0, _words(seen, grown))
        read += sum(array.nbytes for array in feed.values())
        got = dict(zip(names, execute.run(sess, feed, names), strict=True))
        if judge is not None and not judge.full:
            judge.learn(feed, [got[name] for name in answers])
        for watch, (low_name, high_name, mean_name, sample_name) in zip(watches, results, strict=True):
            low = float(got[low_name]) if low_name else 0.0
            sample = got[sample_name] if sample_name else None
            if watch.floor is not None:
                low = max(low, watch.floor)
                sample = None if sample is None else np.maximum(sample, watch.floor)
            high, mean = got[high_name].ravel(), got[mean_name].ravel()
            if not (np.isfinite(low) and np.isfinite(high).all() and np.isfinite(mean).all()):
                raise StudioError(
                    f"The calibration data lead to NaN or infinite values in '{watch.name}'",
                    "no range can be taken from them",
                    "Check the data's preprocessing, or keep the layers there in float.",
                )
            found[watch.name].add(low, high, mean, sample)
        reach = sum(np.log(max(o.high, 0.0) - min(o.low, 0.0) + 1e-30) for o in found.values()) / max(
            1, len(found)
        )
        # Before the first run there was no range: it is not wider than one.
        grown = np.expm1(reach - before) if np.isfinite(before) else np.inf
        steady = steady + 1 if reach - before < _SETTLED else 0
        before = reach
        if settle and steady >= _STEADY_RUNS and seen >= _FEWEST_RUNS and read >= _FEWEST_BYTES:
            if progress is not None:
                progress.tick(1.0, f"Ranges have settled after {seen} of {total or 'all'} runs")
            break
    if not seen:
        raise StudioError(
            "The calibration data hold no sample",
            "ranges cannot be taken from nothing",
            "Give at least one sample.",
        )
    return found


def _words(run: int, grown: float) -> str:
    """What the job says of a run: by how much the one before has widened the ranges on average."""
    return f"Calibrating, run {run}" + (f": ranges +{100 * grown:.1f} %" if np.isfinite(grown) else "")


def _instrumented(
    model: Model, watches: Sequence[Watch], *, samples: bool, answers: bool
) -> tuple[Model, list[tuple[str, str, str, str]], list[str]]:
    """A copy whose outputs are statistics, and its answers where they are asked for.

    Returns:
        The copy; for each watch the names of low, high, mean and sample ('' = none); the names of the answers.
    """
    watched = copy(model)
    if answers:
        expose_scores(watched)
    kept = list(watched.graph.outputs) if answers else []
    values: dict[str | None, ir.Value] = {v.name: v for v in watched.graph.inputs}
    values.update((v.name, v) for node in watched.graph for v in node.outputs)
    groups: list[tuple[str, str, str, str]] = []
    results: list[ir.Value] = []
    for watch in watches:
        found = _statistics(watched, values[watch.name], watch, samples=samples)
        results.extend(v for v in found if v is not None)
        groups.append(tuple("" if v is None else v.name or "" for v in found))  # type: ignore[arg-type]
    watched.graph.outputs.clear()
    watched.graph.outputs.extend(dict.fromkeys([*results, *kept]))
    edit.remove_dead(watched)
    return watched, groups, [v.name or "" for v in kept]


def _statistics(model: Model, value: ir.Value, watch: Watch, *, samples: bool) -> tuple[ir.Value | None, ...]:
    graph = model.graph

    def add(op: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        kind = ir.DataType.INT64 if op in {"Shape", "Div", "Mul", "Add"} else ir.DataType.FLOAT
        node = edit.make_node(model, op, inputs, attributes, name="seen", dtype=kind)
        graph.append(node)
        return node.outputs[0]

    def number(x: object) -> ir.Value:
        return edit.add_constant(model, graph, "seen", np.asarray(x, np.int64))

    low = add("ReduceMin", [value], keepdims=0) if watch.floor != 0.0 else None
    if watch.rank >= 3 and watch.rank == _image_rank(value, watch.rank):
        # Pooling runs on the blocked layout that convolutions leave; a plain reduction would reorder first.
        high = add("ReduceMax", [add("GlobalMaxPool", [value])], axes=[0], keepdims=0)
        mean = add("ReduceMean", [add("GlobalAveragePool", [value])], axes=[0], keepdims=0)
    else:
        axes = list(range(watch.rank - 1))
        high = add("ReduceMax", [value], axes=axes, keepdims=0) if axes else value
        mean = add("ReduceMean", [value], axes=axes, keepdims=0) if axes else value
    sample = None
    if samples:
        flat = add("Reshape", [value, number([-1])])
        # An odd step, so that it does not walk along one channel or one column.
        half = add("Div", [add("Shape", [flat]), number([2 * _SAMPLE])])
        step = add("Add", [add("Mul", [half, number([2])]), number([1])])
        sample = add("Slice", [flat, number([0]), number([2**62]), number([0]), step])
    return low, high, mean, sample


def _image_rank(value: ir.Value, rank: int) -> int:
    """`rank` for what convolutions and pools make or read; 0 for rows of features."""
    near = [value.producer(), *(node for node, _ in value.uses())]
    return rank if any(n is not None and n.op_type in _IMAGE_OPERATORS for n in near) or rank == 4 else 0


def choose_range(seen: Observed, calibrator: Calibrator, percentile: float = 99.99) -> tuple[float, float]:
    """The range [low, high] that an 8-bit grid should cover.

    minmax takes everything; percentile leaves out the outermost values; mse and entropy try narrower ranges and keep
    the one with the least squared error, or the least KL(values ‖ quantized values).

    Source: Jacob et al. 2018 (minmax); Migacz 2017, GTC (entropy); Banner et al. 2019 (mse).
    """
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if calibrator == "minmax" or high - low < _BINS * 1e-30:
        return low, high
    sample = seen.sample
    if calibrator == "percentile":
        outer = (100 - percentile) / (2 if low < 0 < high else 1)
        first = np.percentile(sample, outer) if low < 0 else 0.0
        last = np.percentile(sample, 100 - outer) if high > 0 else 0.0
        return (min(float(first), 0.0), max(float(last), 0.0)) if last > first else (low, high)
    counts, edges = np.histogram(sample, bins=_BINS, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    loss = _squared if calibrator == "mse" else _divergence
    best, best_loss = (low, high), loss(counts, centres, low, high)
    for share in np.linspace(0.96, 0.3, 18):
        for candidate in {(low * share, high * share), (low, high * share), (low * share, high)}:
            new = loss(counts, centres, *candidate)
            if new < best_loss:
                best, best_loss = candidate, new
    return best


def _snapped(centres: Array, low: float, high: float) -> Array:
    scale = max((high - low) / 255, 1e-30)
    zero = np.rint(-low / scale)
    return np.asarray((np.clip(np.rint(centres / scale) + zero, 0, 255) - zero) * scale)


def _squared(counts: Array, centres: Array, low: float, high: float) -> float:
    scale = (high - low) / 255
    inside = (centres >= low) & (centres <= high)
    clipped = np.square(centres - np.clip(centres, low, high))
    # Inside the range the error is even over a step: scale² / 12.
    return float(np.sum(counts * np.where(inside, scale * scale / 12, clipped)))


def _divergence(counts: Array, centres: Array, low: float, high: float) -> float:
    p = counts.astype(np.float64)
    codes = _snapped(centres, low, high)
    _levels, cell = np.unique(codes, return_inverse=True)
    mass = np.bincount(cell, weights=p)
    filled = np.bincount(cell, weights=p > 0)
    q = np.where(p > 0, (mass / np.maximum(filled, 1))[cell], 0.0)
    inside = (centres >= low) & (centres <= high)
    reference = np.where(inside, p, 0.0)
    if not reference.sum():
        return np.inf
    reference[np.flatnonzero(inside)[[0, -1]]] += (p[centres < low].sum(), p[centres > high].sum())
    reference /= reference.sum()
    q = np.where(inside, q, 0.0)
    q = (q + 1e-9) / (q + 1e-9).sum()
    return float(np.sum(reference[reference > 0] * np.log(reference[reference > 0] / q[reference > 0])))
