"""What holds for every grid, weight and shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from studio.base.errors import StudioError
from studio.engine.quantization import blocks, grids, rounding, weights
from studio.engine.quantization.calibrate import Observed, choose_range
from studio.engine.quantization.placement import Site
from studio.engine.quantization.qdq import site_grid

Array = npt.NDArray[Any]

FLOATS = st.floats(-1000, 1000, width=32)
MATRICES = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=FLOATS
)
BITS = st.sampled_from([2, 3, 4, 8])
CALM = settings(deadline=None, max_examples=50)  # numpy's first calls are slow on a busy machine
EPS = 1e-5  # of a float32 product, relative to the largest number on the grid


@CALM
@given(w=MATRICES, bits=BITS)
def test_a_symmetric_grid_moves_no_number_by_more_than_half_a_step(w: Array, bits: int) -> None:
    grid = grids.symmetric(w, (1,), bits)
    assert (np.abs(w - grid.snap(w)) <= grid.scale * (0.5 + EPS) + EPS * np.abs(w)).all()


@CALM
@given(w=MATRICES, bits=st.sampled_from([4, 8]), signed=st.booleans())
def test_an_affine_grid_moves_no_number_by_more_than_a_step_and_zero_not_at_all(
    w: Array, bits: int, signed: bool
) -> None:
    grid = grids.affine(w.min(), w.max(), bits, signed=signed)
    # The zero point is rounded, so that one end may lie half a step outside.
    assert (np.abs(w - grid.snap(w)) <= grid.scale * (1 + EPS) + EPS * np.abs(w)).all()
    assert (grid.snap(np.zeros(3, np.float32)) == 0).all()


@CALM
@given(w=MATRICES, bits=BITS)
def test_snapping_twice_is_snapping_once(w: Array, bits: int) -> None:
    for grid in (grids.symmetric(w, (1,), bits), grids.affine(w.min(), w.max(), bits)):
        once = grid.snap(w)
        assert np.array_equal(grid.quantize(once), grid.quantize(w))


@CALM
@given(w=MATRICES)
def test_one_scale_a_channel_is_no_worse_than_one_for_all(w: Array) -> None:
    by_channel = weights.per_channel(w, 0).real()
    by_tensor = weights.per_channel(w, None).real()
    bound = np.abs(w).max(axis=1, keepdims=True) / 127 / 2
    assert (np.abs(w - by_channel) <= bound * (1 + 1e-3) + 1e-6).all()
    assert (bound <= np.abs(w).max() / 127 / 2 + 1e-9).all()
    assert by_tensor.shape == w.shape


@CALM
@given(w=MATRICES, row=st.integers(0, 11))
def test_an_all_zero_channel_stays_zero(w: Array, row: int) -> None:
    w[row % len(w)] = 0
    for real in (
        weights.per_channel(w, 0).real(),
        weights.per_channel(w, 0, search="mse").real(),
        blocks.fit(w, 16, 4, symmetric=True).real(),
        blocks.fit(w, 16, 4, symmetric=False).real(),
    ):
        assert (real[row % len(w)] == 0).all()
        assert np.isfinite(real).all()


@CALM
@given(w=MATRICES, bits=st.sampled_from([4, 8]), symmetric=st.booleans())
def test_blocks_stay_within_their_codes_and_near_the_weights(w: Array, bits: int, symmetric: bool) -> None:
    fitted = blocks.fit(w, 16, bits, symmetric=symmetric)
    assert fitted.q.min() >= 0
    assert fitted.q.max() < 2**bits
    assert fitted.zero.min() >= 0
    assert fitted.zero.max() < 2**bits
    plain = grids.block_grid(w, 16, bits, symmetric_=symmetric).snap(grids.blocks(w, 16))
    searched = np.square(grids.blocks(w - fitted.real(), 16)).sum()
    assert searched <= np.square(grids.blocks(w, 16) - plain).sum() * (1 + 1e-3) + 1e-6


@CALM
@given(
    q=arrays.arrays(
        np.uint8,
        arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
        elements=st.integers(0, 15),
    )
)
def test_packed_codes_come_back(q: Array) -> None:
    for bits in (2, 4, 8):
        codes = q & (2**bits - 1)
        packed = grids.pack(codes, bits)
        places = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
        back = np.stack(places, axis=-1).reshape(len(q), -1)[:, : q.shape[1]]
        assert np.array_equal(back, codes)
    rows = np.unpackbits(grids.planes(q, 4), axis=1, bitorder="little")[:, : q.size]
    assert np.array_equal((rows * 2 ** np.arange(4)[:, None]).sum(0), q.reshape(-1))


@pytest.mark.parametrize("k", [2, 5, 12, 24])
def test_error_feedback_answers_better_than_plain_rounding(k: int) -> None:
    """Summed over many draws: it is greedy, and a single small matrix may come out worse."""
    losses = np.zeros(2)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(256, k)) @ rng.normal(size=(k, k))
        w = rng.normal(size=(6, k)).astype(np.float32)
        hessian = x.T @ x
        grid = grids.symmetric(w, (1,), 3)
        q = rounding.feedback(w, hessian, grid.scale, grid.zero, grid.low, grid.high)
        assert q.min() >= grid.low
        assert q.max() <= grid.high
        plain = rounding.loss(w, grid.snap(w), hessian)
        losses += np.array([rounding.loss(w, grid.dequantize(q), hessian), plain]) / plain
    assert losses[0] < losses[1]


@CALM
@given(seed=st.integers(0, 1000), size=st.sampled_from([3, 8, 16]), k=st.integers(4, 24))
def test_refitted_scales_answer_no_worse(seed: int, size: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(64, k)) @ rng.normal(size=(k, k))
    w, hessian = rng.normal(size=(6, k)).astype(np.float32), (x.T @ x).astype(np.float32)
    fitted = blocks.fit(w, size, 3, symmetric=False)
    q = fitted.q.reshape(6, -1)[:, :k]
    scale, zero = (np.repeat(v, size, axis=1)[:, :k] for v in (fitted.scale, fitted.zero))
    found = blocks.refit(w, hessian, q, scale, zero, size)
    before, after = (rounding.loss(w, (q - zero) * s, hessian) for s in (scale, found))
    assert after <= before * (1 + 1e-3)
    assert (np.sign(found) == np.sign(scale)).all()


@CALM
@given(seed=st.integers(0, 1000))
def test_many_small_groups_are_rounded_like_one_after_the_other_on_uncorrelated_inputs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(5, 1, 9)).astype(np.float32)
    hessians = np.repeat(np.eye(9)[None], 5, axis=0)
    scale = np.abs(w).max(axis=2, keepdims=True) / 7
    q = rounding.feedback_grouped(w, hessians, scale, -7, 7)
    assert np.array_equal(q, np.clip(np.rint(w / scale.astype(np.float64)), -7, 7))


@CALM
@given(
    low=st.floats(-50, 0),
    high=st.floats(0, 50),
    factor=st.floats(0.05, 20),
    shift=st.floats(-10, 10),
    absorbed=st.booleans(),
)
def test_a_site_reads_factor_times_what_it_writes_plus_shift(
    low: float, high: float, factor: float, shift: float, absorbed: bool
) -> None:
    site = Site(None, None, factor, shift, absorbed=absorbed)  # type: ignore[arg-type]
    low, high = min(low, shift), max(high, shift, low + 1e-3)
    grid = site_grid(site, low, high)
    step = grid.dq_scale
    assert 0 <= grid.q_zero <= 255
    assert 0 <= grid.dq_zero <= 255
    last = np.linspace(low, high, 50)
    first = (last - shift) / factor
    codes = np.clip(np.rint(first / grid.q_scale) + grid.q_zero, 0, 255)
    assert (np.abs((codes - grid.dq_zero) * step + grid.rest - last) <= 2.01 * step).all()
    assert abs(grid.rest) <= step * 0.501


@CALM
@given(value=st.floats(-100, 100, width=32))
def test_constant_activations_get_a_range_that_holds_them(value: float) -> None:
    seen = Observed()
    seen.add(
        value, np.full(3, value, np.float32), np.full(3, value, np.float32), np.full(64, value, np.float32)
    )
    for calibrator in ("minmax", "percentile", "mse", "entropy"):
        low, high = choose_range(seen, calibrator)  # type: ignore[arg-type]
        assert low <= 0 <= high
        grid = grids.affine(np.asarray(low), np.asarray(high))
        assert np.isfinite(grid.scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused_in_words(bad: float) -> None:
    w = np.ones((4, 8), np.float32)
    w[1, 2] = bad
    for deed in (lambda: grids.symmetric(w, (1,), 8), lambda: blocks.fit(w, 16, 4, symmetric=False)):
        with pytest.raises(StudioError, match="NaN or infinities"):
            deed()
