"""Elimination of channels: what makes up for them, and how much of it may be believed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from studio.engine.pruning.elimination import by_elimination, eliminate, held_out, inverse, made_up
from studio.engine.pruning.gains import unseen
from studio.engine.pruning.linear import Linear
from studio.engine.pruning.moments import Statistics
from studio.engine.pruning.orders import Reader


def reader(rows: int, width: int = 40, noise: float = 0.5) -> Reader:
    """A layer that reads channels which hang together through few causes, seen on `rows` samples a half."""
    rng = np.random.default_rng(0)
    causes, mixing = rng.standard_normal((2, rows, 12)), rng.standard_normal((12, width))
    x = causes @ mixing + noise * rng.standard_normal((2, rows, width))
    statistics = Statistics(
        np.array([rows, rows]), x.sum(axis=1)[:, None], (x.transpose(0, 2, 1) @ x)[:, None]
    )
    w = rng.standard_normal((8, width))
    view = Linear(kind="matrix", shape=w.T.shape, transposed=True)
    columns = np.arange(width)[:, None]
    return Reader(ir.node("MatMul", []), view, w, statistics, centred=False, columns=columns)


def test_others_make_up_for_gone_channels_as_far_as_least_squares_can():
    read = reader(5000)
    gone = np.arange(0, 40, 4)
    h, w = read.moments(), made_up(read, gone, 1e-9)
    plain = read.w.copy()
    plain[:, gone] = 0

    def error(weights: np.ndarray) -> float:
        change = weights - read.w
        return float(((change @ h) * change).sum())

    stay = np.setdiff1d(np.arange(40), gone)
    assert (w[:, gone] == 0).all()
    assert error(w) < 0.5 * error(plain)
    wanted = np.linalg.solve(h[np.ix_(stay, stay)], h[stay] @ read.w.T).T
    np.testing.assert_allclose(w[:, stay], wanted, rtol=1e-4, atol=1e-6)


def test_few_samples_are_believed_less_than_many():
    assert (
        by_elimination([reader(20, noise=3.0)], 20).damping
        > by_elimination([reader(5000, noise=3.0)], 20).damping
    )


def test_what_few_samples_teach_fails_on_others():
    assert held_out(reader(45), [1e-6])[0] > 2 * held_out(reader(5000), [1e-6])[0]


def test_channels_that_others_repeat_go_first():
    read = reader(5000)
    copies = read.moments().copy()
    for k in range(0, 20, 2):  # channel k + 1 says what channel k says
        copies[k + 1] = copies[k]
        copies[:, k + 1] = copies[:, k]
    statistics = Statistics(np.array([1, 1]), np.zeros((2, 1, 40)), np.stack([copies[None], copies[None]]))
    twin = Reader(read.node, read.view, read.w, statistics, centred=False, columns=read.columns)
    first = eliminate([twin], 10, 1e-3).channels[:10]
    assert {int(k) // 2 for k in first} == set(range(10))


def test_an_indefinite_matrix_is_damped_until_it_can_be_inverted():
    found = inverse(-np.eye(3), 0.1)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("feeds", "expected"), [(4, [1, 3]), (2, [1]), (1, [0])])
def test_probes_run_on_samples_that_the_first_half_has_not_seen(feeds, expected):
    arrays = [{"x": np.full((4, 2), k)} for k in range(feeds)]
    found = unseen(arrays, 100)
    assert [int(feed["x"][0, 0]) for feed in found] == expected
    assert len(found[0]["x"]) == (2 if feeds == 1 else 4)
    assert sum(len(feed["x"]) for feed in unseen(arrays, 3)) <= 4
