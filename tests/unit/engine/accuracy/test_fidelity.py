"""How far outputs are apart, and what output 0 is taken for."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from studio.base.errors import StudioError
from studio.engine.accuracy import EQUAL_DB, Fidelity, Score, final_operator, kind_of
from studio.engine.accuracy.kinds import Kind
from studio.engine.graph import Model
from studio.records.base import decode, encode
from studio.records.measure import OutputError

RNG = np.random.default_rng(0)


def logits(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3


def error(kind: Kind, *pairs: tuple[np.ndarray, np.ndarray]) -> OutputError:
    fidelity = Fidelity(kind)
    for r, y in pairs:
        fidelity.add([r], [y], len(r))
    return fidelity.result()


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(2, 6))
def test_the_figures_are_those_of_the_formulas(seed: int, rows: int, classes: int) -> None:
    r, y = logits(rows, classes, seed=seed), logits(rows, classes, seed=seed + 1)
    found = error("logits", (r, y))
    p, q = special.softmax(r.astype(float), axis=1), special.softmax(y.astype(float), axis=1)
    assert found.kl == pytest.approx(stats.entropy(p, q, axis=1).mean(), rel=1e-6)
    assert found.agreement == np.mean(r.argmax(1) == y.argmax(1))
    assert found.sqnr_db == pytest.approx(
        10 * np.log10((r.astype(float) ** 2).sum() / ((r.astype(float) - y) ** 2).sum())
    )
    cosines = (r * y).sum(1) / np.linalg.norm(r, axis=1) / np.linalg.norm(y, axis=1)
    assert found.cosine == pytest.approx(cosines.mean(), abs=1e-5)
    assert found.max_abs == pytest.approx(np.abs(r - y).max())


@given(st.integers(0, 1000), st.integers(1, 6))
def test_batches_add_up_to_the_whole(seed: int, cut: int) -> None:
    r, y = logits(7, 4, seed=seed), logits(7, 4, seed=seed + 1)
    parts, whole = error("logits", (r[:cut], y[:cut]), (r[cut:], y[cut:])), error("logits", (r, y))
    assert parts.samples == whole.samples == 7
    for field in ("sqnr_db", "kl", "cosine", "agreement", "max_abs"):
        assert getattr(parts, field) == pytest.approx(getattr(whole, field))


def test_equal_outputs_are_equal() -> None:
    r = logits(3, 4)
    assert error("logits", (r, r)) == OutputError(
        sqnr_db=EQUAL_DB, kl=0.0, cosine=pytest.approx(1.0), agreement=1.0, max_abs=0.0, samples=3
    )


def test_equal_infinities_do_not_differ() -> None:
    r = np.array([[1.0, -np.inf, 2.0]], np.float32)
    found = error("logits", (r, r))
    assert (found.sqnr_db, found.max_abs) == (EQUAL_DB, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_output_that_is_no_number_is_the_worst_there_is(bad: float) -> None:
    r = logits(2, 3)
    y = r.copy()
    y[0, 0] = bad
    found = error("logits", (r, y))
    assert found.sqnr_db == -EQUAL_DB
    assert decode(encode(found), OutputError) == found  # JSON has no infinities


def test_zeros_against_zeros_are_equal_and_against_anything_else_are_not() -> None:
    zero = np.zeros((2, 3), np.float32)
    assert error("plain", (zero, zero)).sqnr_db == EQUAL_DB
    assert error("plain", (zero, zero + 1)).sqnr_db == -EQUAL_DB


def test_a_probability_agrees_on_its_side_of_one_half() -> None:
    r, y = np.array([0.9, 0.2, 0.6], np.float32), np.array([0.8, 0.4, 0.4], np.float32)
    found = error("binary", (r, y))
    assert found.agreement == pytest.approx(2 / 3)
    p, q = r.astype(float), y.astype(float)
    wanted = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert found.kl == pytest.approx(wanted, rel=1e-6)


def test_plain_numbers_have_no_divergence() -> None:
    found = error("plain", (logits(2, 3), logits(2, 3, seed=1)))
    assert (found.kl, found.agreement) == (None, None)


def test_all_float_outputs_count_for_the_noise_and_integers_do_not() -> None:
    fidelity = Fidelity("plain")
    fidelity.add([logits(1, 2), np.array([1])], [logits(1, 2), np.array([9])], 1)
    assert fidelity.result().sqnr_db == EQUAL_DB


def test_outputs_of_different_rank_cannot_be_compared() -> None:
    with pytest.raises(StudioError, match="an output has shape 2×4×1, the reference's 2×3"):
        error("logits", (logits(2, 3), logits(2, 4, 1)))


def test_detections_that_are_missing_count_as_zeros() -> None:
    found = error("plain", (np.ones((3, 2), np.float32), np.ones((2, 2), np.float32)))
    assert found.sqnr_db == pytest.approx(10 * np.log10(6 / 2))


@pytest.mark.parametrize(
    ("r", "y"),
    [(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])), (np.array(list("abcd")), np.array(list("abce")))],
)
def test_integers_and_texts_agree_where_they_are_equal(r: np.ndarray, y: np.ndarray) -> None:
    found = error("plain", (r, y))
    assert (found.agreement, found.kl, found.cosine) == (0.75, None, None)
    assert found.sqnr_db < 20
    assert error("plain", (r, r)).sqnr_db == EQUAL_DB


def test_equal_nans_do_not_differ() -> None:
    r = np.array([[np.nan, 1.0]], np.float32)
    assert error("plain", (r, r)).sqnr_db == EQUAL_DB


# ------------------------------------------------------------------ what output 0 is


def ends_in(text: str) -> Model:
    body = f'<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float y) {{ {text} }}'
    return Model(ir.from_proto(onnx.parser.parse_model(body)))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("y = Gemm (x, x)", "Gemm"),
        ("a = MatMul (x, x) b = Add (a, x) y = Identity (b)", "MatMul"),
        ("a = Sigmoid (x) s = Shape (x) y = Reshape (a, s)", "Sigmoid"),
        ("a = Relu (x) y = Add (a, x)", "Add"),
        ("y = Tanh (x)", "Tanh"),
    ],
)
def test_the_last_operator_is_seen_through_reshapes_and_biases(text: str, wanted: str) -> None:
    assert final_operator(ends_in(text)) == wanted


@pytest.mark.parametrize(
    ("output", "labels", "final", "wanted"),
    [
        (special.softmax(logits(3, 4), axis=1), None, "Softmax", "probabilities"),
        (special.softmax(logits(3, 4), axis=1), None, "", "probabilities"),
        (logits(3, 4), None, "Gemm", "logits"),
        (logits(3, 5, 4), None, "MatMul", "logits"),
        (logits(3, 4), None, "LayerNormalization", "plain"),
        (logits(3, 4), None, "Tanh", "plain"),
        (logits(3, 4), np.array([0, 3, -1]), "Tanh", "logits"),
        (logits(3, 4), np.array([0, 4, 1]), "Tanh", "plain"),
        (logits(2, 5, 6, 6), np.zeros((2, 6, 6), int), "Conv", "logits"),
        (logits(2, 3, 6, 6), None, "Conv", "plain"),
        (special.expit(logits(3, 1)), None, "Sigmoid", "binary"),
        (special.expit(logits(5)), None, "If", "binary"),
        (special.expit(logits(2, 1, 6, 6)), None, "Sigmoid", "binary"),
        (special.expit(logits(3, 4)), None, "Relu", "plain"),
        (np.array([[1, 2]]), None, "ArgMax", "plain"),
    ],
)
def test_what_output_0_is_taken_for(
    output: np.ndarray, labels: np.ndarray | None, final: str, wanted: Kind
) -> None:
    assert kind_of(output, labels, final) == wanted


# ------------------------------------------------------------------ being right


def scored(output: np.ndarray, labels: np.ndarray, final: str = "Gemm") -> object:
    score = Score(final)
    for start in range(0, len(output), 2):
        score.add(output[start : start + 2], labels[start : start + 2])
    return score.result()


def test_top_1_and_top_5_leave_the_unlabelled_out() -> None:
    output = np.eye(8, dtype=np.float32)[[0, 1, 2, 3]] * 5 - np.arange(8) / 10
    found = scored(output, np.array([0, 1, 7, -1]))
    assert (found.metric, found.samples, found.also) == ("top-1", 3, (("top-5", pytest.approx(2 / 3)),))  # type: ignore[attr-defined]
    assert found.value == pytest.approx(2 / 3)  # type: ignore[attr-defined]


def test_tokens_have_a_top_1_and_bits() -> None:
    output, labels = logits(3, 4, 6), np.array([[0, 1, -1, -1], [2, 3, 4, 5], [0, 0, 0, 0]])
    found = scored(output, labels)
    known = labels >= 0
    log_p = special.log_softmax(output.astype(float), axis=-1)[known]
    wanted = -np.take_along_axis(log_p, labels[known][:, None], axis=1).mean() / np.log(2)
    assert (found.metric, found.samples) == ("token top-1", 10)  # type: ignore[attr-defined]
    assert dict(found.also)["bits per token"] == pytest.approx(wanted)  # type: ignore[attr-defined]
    assert found.value == pytest.approx((output.argmax(-1) == labels)[known].mean())  # type: ignore[attr-defined]


def test_pixels_have_a_top_1() -> None:
    output, labels = logits(2, 3, 4, 4), RNG.integers(0, 3, (2, 4, 4))
    found = scored(output, labels, "Conv")
    assert (found.metric, found.samples) == ("pixel top-1", 32)  # type: ignore[attr-defined]
    assert found.value == pytest.approx((output.argmax(1) == labels).mean())  # type: ignore[attr-defined]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_the_area_under_the_curve_is_the_chance_to_rank_a_positive_higher(
    rows: list[tuple[int, bool]],
) -> None:
    scores = np.array([s for s, _ in rows], np.float32)[:, None] / 5
    truths = np.array([int(t) for _, t in rows])
    found = scored(scores, truths, "Sigmoid")
    above, below = scores[truths == 1], scores[truths == 0]
    accuracy = ((scores[:, 0] > 0.5) == (truths == 1)).mean()
    if not len(above) or not len(below):
        assert (found.metric, found.value) == ("accuracy", pytest.approx(accuracy))  # type: ignore[attr-defined]
        return
    pairs = (above[:, None] > below[None]).mean() + (above[:, None] == below[None]).mean() / 2
    assert (found.metric, found.value) == ("AUC", pytest.approx(pairs))  # type: ignore[attr-defined]
    assert dict(found.also)["accuracy"] == pytest.approx(accuracy)  # type: ignore[attr-defined]


def test_frames_of_a_track_are_scored_one_by_one() -> None:
    score = Score("Sigmoid")
    score.add(np.array([0.9, 0.1], np.float32), np.array([[1, 0, -1, -1]]))
    score.add(np.array([0.2, 0.8, 0.7, 0.1], np.float32), np.array([[0, 1, 1, 1]]))
    found = score.result()
    assert found is not None
    assert (found.metric, found.samples) == ("AUC", 6)


def test_class_numbers_are_right_where_they_equal_the_label() -> None:
    found = scored(np.array([1, 2, 3, 4]), np.array([1, 2, 0, -1]))
    assert (found.metric, found.samples) == ("accuracy", 3)  # type: ignore[attr-defined]
    assert found.value == pytest.approx(2 / 3)  # type: ignore[attr-defined]


def test_labels_that_fit_no_output_give_no_figure() -> None:
    assert scored(logits(4, 3), np.array([[1.5]] * 4)) is None
    assert scored(logits(4, 3), np.array([9, 9, 9, 9])) is None
