"""A slower result is never offered in silence."""

from __future__ import annotations

import pytest

from studio.records.measure import Latency, OutputError
from studio.records.steps import (
    AnySettings,
    Fp16,
    PruneChannels,
    QuantizeDynamic,
    QuantizeStatic,
    QuantizeWeights,
    Sparsify,
)
from studio.records.verdict import alike, slowdown


def timed(ratio: float | None, high: float | None = None, *, busy: bool = False) -> Latency:
    return Latency(
        median_ms=1, low_ms=1, high_ms=1, ratio=ratio, ratio_high=high, runs=20, threads=2, busy=busy
    )


@pytest.mark.parametrize(
    ("settings", "instead"),
    [
        (QuantizeWeights(), "INT8"),
        (QuantizeWeights(bits=3), "space alone"),
        (Fp16(), "INT8"),
        (QuantizeDynamic(), "Static INT8"),
        (QuantizeDynamic(convolutions=True), "leave them out"),
        (QuantizeStatic(), "prune channels"),
        (Sparsify(), "pruning channels"),
    ],
)
def test_a_slower_result_is_named_with_what_to_choose_instead(settings: AnySettings, instead: str) -> None:
    words = slowdown(timed(0.85, 0.9), [settings])
    assert "slower than the original" in words
    assert "0.85×" in words
    assert instead in words


@pytest.mark.parametrize("latency", [None, timed(None), timed(1.4, 1.5), timed(0.98, 0.99), timed(0.9, 1.1)])
def test_nothing_is_said_of_what_is_as_fast_or_not_known(latency: Latency | None) -> None:
    assert slowdown(latency, [QuantizeWeights()]) == ""


def test_a_busy_machine_is_doubted_and_a_step_without_advice_is_told_plainly() -> None:
    words = slowdown(timed(0.8, 0.85, busy=True), [PruneChannels()])
    assert "slower" in words
    assert "busy" in words


def test_how_alike_outputs_are_is_told_with_what_it_was_measured_on() -> None:
    close = OutputError(sqnr_db=38.71, agreement=0.999, max_abs=0.1, samples=64, data="random inputs")
    assert alike(close) == "SQNR 38.7 dB, agreement 99.9 % (n=64, random inputs)"
    assert (alike(OutputError(sqnr_db=200.0)), alike(None)) == ("equal", "")
