"""The protocol of timing, on a clock of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import nets

from studio.base.errors import Cancelled, StudioError
from studio.base.progress import Progress
from studio.engine.graph import Model, load
from studio.engine.latency import (
    Protocol,
    bootstrap,
    interleave,
    measure_latency,
    summarise,
    time_so_far,
    timing_feed,
)
from studio.records.measure import DataSpec

FEED = {"image": np.zeros((1, 3, 16, 16), np.float32)}


class Clock:
    """Time that passes only when somebody runs."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 0.0
        self.ran: list[str] = []
        self._rng = np.random.default_rng(seed)

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, seconds: float, noise: float = 0.0) -> Callable[[], None]:
        def one() -> None:
            self.ran.append(name)
            self.now += seconds * (1 + noise * float(self._rng.random()))

        return one


def timed(
    clock: Clock, runs: Sequence[Callable[[], None]], protocol: Protocol | None = None, loading: float = 0.0
) -> tuple[np.ndarray, tuple[int, ...], int]:
    opened = 0

    def open_again() -> Sequence[Callable[[], None]]:
        nonlocal opened
        opened += 1
        clock.now += loading
        return runs

    times, repeats = interleave(open_again, Progress(), protocol or Protocol(), clock)
    return times, repeats, opened


def test_quiet_models_are_done_after_thirty_rounds() -> None:
    clock = Clock()
    times, repeats, opened = timed(clock, [clock.run("a", 0.01, 0.01), clock.run("b", 0.005, 0.01)])
    assert times.shape == (4, 8, 2)
    assert repeats == (1, 1)
    assert opened == 4  # new sessions for every block
    a, b = summarise(times, repeats, 1, "")
    assert a.ratio is None
    assert b.ratio == pytest.approx(2.0, rel=0.01)
    assert b.ratio_low is not None
    assert b.ratio_high is not None
    assert b.ratio_low <= b.ratio <= b.ratio_high
    assert (a.runs, a.busy) == (32, False)
    assert a.low_ms <= a.median_ms <= a.high_ms


def test_models_take_turns_forwards_and_backwards() -> None:
    clock = Clock()
    timed(clock, [clock.run(name, 0.01) for name in "abc"])
    rounds = "".join(clock.ran)[15:39]  # after five warm-ups each
    assert rounds == "abccba" * 4


def test_quick_models_are_run_several_times_a_sample() -> None:
    clock = Clock()
    times, repeats, _ = timed(clock, [clock.run("a", 0.00013), clock.run("b", 0.01)])
    assert repeats == (16, 1)
    assert times[..., 0].mean() == pytest.approx(0.00013)


def test_noise_asks_for_more_rounds_up_to_the_most() -> None:
    clock = Clock()
    times, repeats, _ = timed(clock, [clock.run("a", 0.01, 3.0), clock.run("b", 0.01, 3.0)])
    assert 32 < times.shape[0] * times.shape[1] <= 200
    assert summarise(times, repeats, 1, "")[0].busy


def test_a_slow_model_stops_when_the_time_is_spent() -> None:
    clock = Clock()
    times, _, _ = timed(clock, [clock.run("a", 4.0), clock.run("b", 4.0)], Protocol(limit_s=60))
    assert clock.now < 60 + 4 + 2 * 5 * 4 * 2
    assert times.size


def test_a_steady_slow_model_needs_fewer_rounds_than_thirty() -> None:
    clock = Clock()
    times, _, _ = timed(clock, [clock.run("a", 0.5, 0.01), clock.run("b", 0.4, 0.01)])
    assert times.shape[0] * times.shape[1] < 30


def test_a_slow_and_noisy_model_gets_thirty_rounds_over_its_budget() -> None:
    clock = Clock()
    times, _, _ = timed(clock, [clock.run("a", 0.2, 3.0), clock.run("b", 0.2, 3.0)])
    assert times.shape[0] * times.shape[1] == 32
    assert clock.now > Protocol().budget_s


def test_even_one_round_over_budget_gives_a_figure() -> None:
    clock = Clock()
    times, repeats, _ = timed(clock, [clock.run("a", 100.0)], Protocol(limit_s=1))
    assert summarise(times, repeats, 1, "")[0].median_ms == pytest.approx(100_000)


def test_models_that_load_slowly_are_loaded_once() -> None:
    clock = Clock()
    _, _, opened = timed(clock, [clock.run("a", 0.01)], loading=5.0)
    assert opened == 1


def test_a_drift_of_the_machine_does_not_touch_the_ratio() -> None:
    clock = Clock()
    slower = [1.0]

    def run(seconds: float) -> Callable[[], None]:
        def one() -> None:
            slower[0] *= 1.002  # ever hotter
            clock.now += seconds * slower[0]

        return one

    times, repeats, _ = timed(clock, [run(0.01), run(0.01)])
    ratio = summarise(times, repeats, 1, "")[1].ratio
    assert ratio == pytest.approx(1.0, abs=0.01)


@given(st.floats(0.1, 10), st.integers(1, 6), st.integers(1, 8))
def test_the_interval_of_equal_figures_is_the_figure(value: float, blocks: int, rounds: int) -> None:
    assert bootstrap(np.full((blocks, rounds), value)) == pytest.approx((value, value))


@given(st.integers(0, 10_000))
def test_the_interval_holds_the_median_and_lies_within_the_figures(seed: int) -> None:
    figures = np.random.default_rng(seed).lognormal(size=(4, 8))
    low, high = bootstrap(figures)
    assert figures.min() <= low <= np.median(figures) <= high <= figures.max()


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        low, high = bootstrap(np.random.default_rng(seed).normal(10, 1, (5, 8)), draws=300)
        hits += low <= 10 <= high
    assert 0.88 <= hits / 200 <= 1.0


@pytest.fixture
def model(tmp_path: Path) -> Model:
    onnx.save(nets.cnn(), tmp_path / "cnn.onnx")
    return load(tmp_path / "cnn.onnx")


QUICK = Protocol(warmups=1, sample_s=0.0002, rounds_per_block=4, minimum=4, maximum=8)


def test_real_models_are_timed_with_their_conditions(model: Model) -> None:
    first, second = measure_latency([model, model], FEED, threads=1, protocol=QUICK)
    assert first.input_shapes == "image 1×3×16×16"
    assert (first.threads, second.threads) == (1, 1)
    assert first.median_ms > 0
    assert second.ratio is not None


def test_a_feed_that_does_not_fit_is_told(model: Model) -> None:
    with pytest.raises(StudioError, match="cannot run this model"):
        measure_latency([model], {"image": np.zeros((1, 1, 16, 16), np.float32)}, threads=1)


def test_timing_can_be_cancelled(model: Model) -> None:
    with pytest.raises(Cancelled):
        measure_latency([model], FEED, 1, Progress(cancelled=lambda: True), QUICK)


def test_a_quick_look_at_a_model_in_the_making(model: Model) -> None:
    found = time_so_far(model, model, FEED, threads=1)
    assert found is not None
    assert found.ratio is not None
    assert found.input_shapes == "image 1×3×16×16"


def test_a_half_made_model_gives_no_figure(model: Model) -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Nobody (x) }'
    broken = Model(ir.from_proto(onnx.parser.parse_model(text)))
    assert time_so_far(model, broken, FEED, threads=1) is None


def test_a_model_is_timed_on_the_first_sample_at_hand(model: Model, tmp_path: Path) -> None:
    for name, value in (("e", 1.0), ("c", 2.0)):
        np.savez(tmp_path / f"{name}.npz", image=np.full((3, 3, 16, 16), value, np.float32))
    evaluation, calibration = (DataSpec(path=str(tmp_path / f"{name}.npz")) for name in "ec")
    assert timing_feed(model, evaluation, calibration, {})["image"].mean() == 1
    assert timing_feed(model, None, calibration, {})["image"].mean() == 2
    assert timing_feed(model, None, None, {"N": 1})["image"].shape == (1, 3, 16, 16)


def test_the_process_that_measures_never_imports_torch() -> None:
    code = "import sys, studio.engine.measure, studio.engine.profile, onnxruntime; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
