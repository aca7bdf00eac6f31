"""How long one run takes, compared honestly.

The protocol, found by trying:

- Threads do not spin: an A/A ratio over 20 pairs spreads by 0.5 % so, by 12 to 22 % with spinning.
- Runs are interleaved, in turning order (A B B A): what else the machine does hits all models alike, and ratios
  are taken within a round.
- A sample is as many runs as take 2 ms, after 5 warm-ups.
- Two sessions of one file can differ by some percent all their life, so every block of rounds opens new ones
  (where loading is quick), and the bootstrap draws blocks, then rounds within them.
- Enough is when the 95 % interval is ±2 % after 30 rounds, or 200 rounds. A slow model may end with fewer rounds
  once it is ±2 %, and after its budget with 30 rounds whatever their interval; a limit ends the rest.
- The ratio of the medians is checked against that of the 10th percentiles; 5 % apart, or an interval wider than
  ±5 %, means a busy machine.

The process that measures must not import torch, whose threads would be in the way.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import psutil

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.base.units import milliseconds
from studio.base.units import shape as shape_text
from studio.engine.dataset import Feed, open_for
from studio.engine.execute import fitted, run, session
from studio.engine.graph import Model
from studio.records.measure import DataSpec, Latency

if TYPE_CHECKING:
    import onnxruntime as ort

Run: TypeAlias = Callable[[], object]
Clock: TypeAlias = Callable[[], float]
Times: TypeAlias = npt.NDArray[np.float64]  # (blocks, rounds, models), seconds a run

_BUSY = 0.05


@dataclass(frozen=True)
class Protocol:
    """The figures of the module's text."""

    warmups: int = 5
    sample_s: float = 0.002
    rounds_per_block: int = 8
    minimum: int = 30
    maximum: int = 200
    half_width: float = 0.02
    budget_s: float = 10.0
    limit_s: float = 60.0


def measure_latency(
    models: Sequence[Model | Path],
    feed: Feed,
    threads: int = 0,
    progress: Progress | None = None,
    protocol: Protocol | None = None,
    clock: Clock = time.perf_counter,
) -> tuple[Latency, ...]:
    """Time models against the first, interleaved; one Latency each, in order.

    Args:
        models: the first is the baseline of all ratios.
        feed: one run's inputs.
        threads: intra-op threads; 0 = one per core that this process may use.
        progress: ticked after every round.
        protocol: how long and how often.
        clock: seconds, for tests.

    Raises:
        StudioError: a model cannot be loaded or run.
        Cancelled: at any tick.
    """
    count = threads or _cores()

    def opened() -> list[Run]:
        return [_runner(session(model, threads=count), feed) for model in models]

    times, repeats = interleave(opened, progress or Progress(), protocol or Protocol(), clock)
    shapes = ", ".join(f"{name} {shape_text(array.shape)}" for name, array in feed.items())
    return summarise(times, repeats, count, shapes)


def _cores() -> int:
    """Physical cores, as far as this process may use them; two threads of one core only get in each other's way."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)


def _runner(sess: ort.InferenceSession, feed: Mapping[str, Any]) -> Run:
    run(sess, feed)  # tells in words what does not fit
    ready = fitted(sess, feed)
    return lambda: sess.run(None, ready)


def interleave(
    opened: Callable[[], Sequence[Run]], progress: Progress, protocol: Protocol, clock: Clock
) -> tuple[Times, tuple[int, ...]]:
    """Time runs in turning order until the interval is narrow or the time is spent.

    Args:
        opened: makes the runs, with new sessions where it is called again.
        progress: ticked after every round.
        protocol: how long and how often.
        clock: seconds.

    Returns:
        Seconds a run (blocks, rounds, models), and how many runs a sample of each model had.
    """
    started = clock()
    runs = opened()
    loading = clock() - started
    repeats = _repeats(runs, protocol, clock)
    blocks: list[list[list[float]]] = []
    while True:
        if blocks and loading < protocol.budget_s / 50:
            runs = opened()
            _repeats(runs, protocol, clock)
        block: list[list[float]] = []
        while len(block) < protocol.rounds_per_block:
            block.append(_round(runs, repeats, clock, backwards=len(block) % 2 == 1))
            spent = clock() - started
            done = len(blocks) * protocol.rounds_per_block + len(block)
            share = max(min(spent / protocol.budget_s, done / protocol.minimum), done / protocol.maximum)
            progress.tick(min(0.99, share), f"round {done}: {milliseconds(1000 * _typical(block))}")
            if spent > protocol.limit_s:
                break
        if len(block) == protocol.rounds_per_block or not blocks:
            blocks.append(block)
        times = np.array(blocks)
        if _enough(times, protocol, clock() - started):
            progress.tick(1.0)
            return times, repeats


def _typical(block: list[list[float]]) -> float:
    """Seconds a run of the last model, the one that is compared."""
    return float(np.median([times[-1] for times in block]))


def _repeats(runs: Sequence[Run], protocol: Protocol, clock: Clock) -> tuple[int, ...]:
    """Warm every run up, and how many of each make a sample."""
    counts = []
    for one in runs:
        quickest = math.inf
        for _ in range(protocol.warmups):
            start = clock()
            one()
            quickest = min(quickest, clock() - start)
        counts.append(max(1, math.ceil(protocol.sample_s / max(quickest, 1e-7))))
    return tuple(counts)


def _round(runs: Sequence[Run], repeats: Sequence[int], clock: Clock, *, backwards: bool) -> list[float]:
    """Seconds a run of every model, in one direction or the other."""
    taken = [0.0] * len(runs)
    order = range(len(runs))
    for index in reversed(order) if backwards else order:
        one = runs[index]
        start = clock()
        for _ in range(repeats[index]):
            one()
        taken[index] = (clock() - start) / repeats[index]
    return taken


def _enough(times: Times, protocol: Protocol, spent: float) -> bool:
    """Whether the figures are good, or the time is spent; `spent` in seconds."""
    rounds = times.shape[0] * times.shape[1]
    if rounds >= protocol.maximum or spent >= protocol.limit_s:
        return True
    if rounds >= protocol.minimum and spent >= protocol.budget_s:
        return True
    if rounds < protocol.minimum and spent < protocol.budget_s / 2:
        return False
    return _half_width(times) <= protocol.half_width


def _half_width(times: Times) -> float:
    """Of the widest interval: of ratios where there are two models, else of the median."""
    figures = [_ratios(times, index) for index in range(1, times.shape[2])] or [times[..., 0]]
    widths = []
    for figure in figures:
        low, high = bootstrap(figure)
        widths.append((high - low) / 2 / float(np.median(figure)))
    return max(widths)


def _ratios(times: Times, index: int) -> Times:
    """Baseline time / this time, round by round (blocks, rounds)."""
    ratios: Times = times[..., 0] / times[..., index]
    return ratios


def bootstrap(figures: Times, draws: int = 1000) -> tuple[float, float]:
    """The 95 % interval of the median of figures (blocks, rounds): blocks are drawn, then rounds within them.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, percentile interval; Kalibera & Jones,
    Rigorous benchmarking in reasonable time, ISMM 2013, for the levels.
    """
    blocks, rounds = figures.shape
    rng = np.random.default_rng(0)
    drawn = figures[
        rng.integers(0, blocks, (draws, blocks, 1)), rng.integers(0, rounds, (draws, blocks, rounds))
    ]
    low, high = np.percentile(np.median(drawn, axis=(1, 2)), [2.5, 97.5])
    return float(low), float(high)


def summarise(times: Times, repeats: Sequence[int], threads: int, input_shapes: str) -> tuple[Latency, ...]:
    """One Latency per model of interleaved times (blocks, rounds, models)."""
    busy = _busy(times)
    found = []
    for index in range(times.shape[2]):
        low, high = bootstrap(times[..., index])
        ratio = ratio_low = ratio_high = None
        if index:
            ratios = _ratios(times, index)
            ratio = float(np.median(ratios))
            ratio_low, ratio_high = bootstrap(ratios)
        found.append(
            Latency(
                median_ms=float(np.median(times[..., index])) * 1000,
                low_ms=low * 1000,
                high_ms=high * 1000,
                ratio=ratio,
                ratio_low=ratio_low,
                ratio_high=ratio_high,
                runs=times.shape[0] * times.shape[1] * repeats[index],
                threads=threads,
                input_shapes=input_shapes,
                busy=busy,
            )
        )
    return tuple(found)


def _busy(times: Times) -> bool:
    """Whether ratios of medians and of 10th percentiles are 5 % apart, or the interval is wider than ±5 %."""
    if _half_width(times) > _BUSY:
        return True
    flat = times.reshape(-1, times.shape[2])
    median, quick = np.median(flat, axis=0), np.percentile(flat, 10, axis=0)
    by_median, by_quick = median[0] / median[1:], quick[0] / quick[1:]
    return bool((np.abs(by_median / by_quick - 1) > _BUSY).any())


_SO_FAR = Protocol(warmups=2, rounds_per_block=25, maximum=25, limit_s=0.5)


def time_so_far(start: Model, model: Model, feed: Feed, threads: int = 0) -> Latency | None:
    """A quick look at a model in the making, in turns with what it was made of: 25 samples, half a second at most.

    Good for a trend on a plot, not for a verdict: the process may hold torch and other threads. The ratio is
    steadier than the times. None where the half-made model does not run.
    """
    try:
        return measure_latency([start, model], feed, threads, protocol=_SO_FAR)[1]
    except StudioError:
        return None


def timing_feed(
    model: Model, evaluation: DataSpec | None, calibration: DataSpec | None, input_sizes: Mapping[str, int]
) -> Feed:
    """What a model is timed on: the first sample of the evaluation data, else of the calibration data, else a random one.

    Raises:
        StudioError: the data cannot be read or do not fit the model.
    """
    spec = evaluation or calibration or DataSpec(kind="random", limit=1)
    return open_for(model, spec, input_sizes).first()
