"""Which weights become zero: exact counts, patterns, and SparseGPT's compensation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.engine.pruning.zeros import (
    inverse_factor,
    pattern,
    settled,
    smallest,
    smallest_per_row,
    sparsegpt,
    wanda,
)


@given(st.integers(1, 60), st.floats(0, 0.99), st.integers(0, 5))
def test_exactly_the_floor_of_the_share_is_zeroed_and_never_a_larger_weight_before_a_smaller(n, ratio, seed):
    scores = np.abs(np.random.default_rng(seed).integers(-3, 4, n).astype(float))
    mask = smallest(scores, ratio)
    assert mask.sum() == int(ratio * n)
    if mask.any() and not mask.all():
        assert scores[mask].max() <= scores[~mask].min()


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from([(2, 4), (4, 8), (1, 4)]), st.integers(0, 9))
def test_every_run_of_a_pattern_has_its_zeros(rows, runs, kind, seed):
    zeros, of = kind
    scores = np.random.default_rng(seed).random((rows, runs * of))
    mask = pattern(scores, zeros, of)
    assert (mask.reshape(rows, runs, of).sum(axis=2) == zeros).all()


def test_every_row_loses_the_same_share():
    mask = smallest_per_row(np.random.default_rng(0).random((5, 10)), 0.35)
    assert set(mask.sum(axis=1)) == {3, 4}
    assert mask.sum() == 17


def test_the_factor_is_that_of_the_damped_inverse():
    x = np.random.default_rng(0).standard_normal((50, 6))
    h = x.T @ x
    u = inverse_factor(h, damping=0.01)
    assert np.allclose(u, np.triu(u))
    damped = h + np.eye(6) * 0.01 * np.mean(np.diag(h))
    assert np.allclose(u.T @ u @ damped, np.eye(6), atol=1e-8)


@pytest.mark.parametrize("run", [None, (2, 4)])
def test_sparsegpt_loses_less_output_than_wanda_at_equal_zeros(run):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 16)) @ rng.standard_normal((16, 16))
    w = rng.standard_normal((8, 16))
    h = x.T @ x
    mask = smallest_per_row(wanda(w, h), 0.5) if run is None else pattern(wanda(w, h), *run)
    ours = sparsegpt(w, h, 0.5, run)
    assert (ours == 0).sum() == mask.sum()
    assert np.square(x @ (ours - w).T).sum() < np.square(x @ (np.where(mask, 0, w) - w).T).sum()


def test_weights_that_stay_are_the_least_squares_solution_on_their_columns():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 12)) @ rng.standard_normal((12, 12))
    w = rng.standard_normal((5, 12))
    h = x.T @ x
    start = np.where(rng.random(w.shape) < 0.5, 0, w)
    found = settled(start, w, h, damping=0)
    assert ((found == 0) == (start == 0)).all()
    for row, wanted in zip(found, w, strict=True):
        columns = row != 0
        exact = np.linalg.solve(h[np.ix_(columns, columns)], (h @ wanted)[columns])
        assert np.abs(row[columns] - exact).max() < 1e-2 * np.abs(exact).max()


@pytest.mark.parametrize("silent", [0.0, 1.0])
def test_inputs_that_say_nothing_move_no_weight(silent):
    w = np.arange(1.0, 9.0).reshape(2, 4)
    start = np.where(np.arange(4) % 2, 0, w)
    h = np.diag([1.0, 1.0, 1.0, 1.0]) * silent
    assert np.allclose(settled(start, w, h), start)
