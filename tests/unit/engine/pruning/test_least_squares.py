import numpy as np

from studio.engine.pruning.least_squares import Problem, Rows


def seen(rows, found):
    """What the activation passes on of a sum, fitted and wanted."""
    fitted = rows.x[0] @ found.w[0].T + found.b[0] + rows.beside[0]
    return np.maximum(fitted, 0), np.maximum(rows.y[0] + rows.beside[0], 0)


def test_what_the_sum_with_a_branch_clips_is_not_asked_of_the_layer():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 2000, 3)).astype(np.float32)
    beside = rng.normal(size=(1, 2000, 2)).astype(np.float32)
    hidden = np.square(rng.normal(size=(1, 2000, 2))).astype(np.float32)
    y = x @ np.array([[[1.0, 0], [0, 1], [1, -1]]], np.float32)
    y = np.where(y + beside > 0, y, y - hidden)  # wrong only where nobody sees it
    rows = Rows(x, y, beside)
    problems = Problem((1, 2, 3)), Problem((1, 2, 3), (0.0, np.inf))
    errors = []
    for problem in problems:
        problem.add(rows, None)
        found = problem.solve(np.zeros((1, 2, 3)), np.zeros((1, 2)), intercept=True)
        fitted, wanted = seen(rows, found)
        errors.append(float(np.square(fitted - wanted).mean()))
    assert errors[1] < 0.6 * errors[0]


def test_rows_of_several_feeds_keep_what_lies_beside_them():
    parts = [Rows(np.ones((1, n, 2)), np.ones((1, n, 1)), np.full((1, n, 1), float(n))) for n in (2, 3)]
    whole = Rows.joined(parts)
    assert whole.x.shape == (1, 5, 2)
    assert np.asarray(whole.beside).reshape(-1).tolist() == [2, 2, 3, 3, 3]
    assert np.asarray(whole.part(slice(1, 3)).beside).reshape(-1).tolist() == [2, 3]


def test_values_that_hardly_vary_around_a_large_mean_are_fitted_all_the_same():
    rng = np.random.default_rng(0)
    x = (3 + 1e-3 * rng.standard_normal((1, 64, 6))).astype("f4")
    w = rng.standard_normal((1, 4, 6)).astype("f4")
    y = x @ w.transpose(0, 2, 1) + 1
    problem = Problem(w.shape)
    problem.add(Rows(x, y), None)
    found = problem.solve(w + 0.3, np.zeros((1, 4)), intercept=True)
    assert np.abs(x @ found.w.transpose(0, 2, 1) + found.b[:, None] - y).max() < 1e-3
