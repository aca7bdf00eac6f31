"""Sessions: what they accept, and how their errors read."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import nets

from studio.base.errors import StudioError
from studio.engine.execute import run, session
from studio.engine.execute import sessions as sessions_module
from studio.engine.graph import Model, load

IMAGE = np.zeros((2, 3, 16, 16), np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(nets.cnn(), tmp_path / "cnn.onnx")
    return tmp_path / "cnn.onnx"


def test_a_model_a_path_and_bytes_run_alike(path: Path) -> None:
    answers = [run(session(form), {"image": IMAGE})[0] for form in (load(path), path, path.read_bytes())]
    assert all(np.array_equal(answers[0], other) for other in answers)


def test_large_weights_are_handed_over_and_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "_LARGE_BYTES", 16)
    for name in nets.NETS:
        path, feed = nets.write(name, tmp_path), nets.feed(name)
        for optimize in ("off", "all"):
            answers = [run(session(form, optimize=optimize, threads=1), feed) for form in (load(path), path)]  # type: ignore[arg-type]
            assert all(np.array_equal(a, b) for a, b in zip(*answers, strict=True))


def test_a_large_weight_that_nothing_reads_does_not_stand_in_the_way(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "_LARGE_BYTES", 16)
    model = load(path)
    unread = ir.Value(name="unread", const_value=ir.tensor(np.ones((8, 8), np.float32), name="unread"))
    model.graph.register_initializer(unread)
    assert np.array_equal(run(session(model), {"image": IMAGE})[0], run(session(path), {"image": IMAGE})[0])


def test_a_weight_that_the_runtime_must_read_early_is_given_with_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Resize reads its scales while it infers shapes."""
    monkeypatch.setattr(sessions_module, "_LARGE_BYTES", 16)
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y)
    <float[4] scales = {1, 1, 2, 2}> { y = Resize (x, , scales) }"""
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    assert run(session(Model(ir.from_proto(onnx.parser.parse_model(text)))), {"x": x})[0].shape == (
        1,
        1,
        4,
        4,
    )


def test_weights_outside_the_file_are_found_in_memory_and_in_constants(tmp_path: Path) -> None:
    proto = nets.cnn(constants=True)
    onnx.save(
        proto,
        tmp_path / "c.onnx",
        save_as_external_data=True,
        convert_attribute=True,
        size_threshold=0,
        location="c.data",
    )
    here, there = (
        run(session(form), {"image": IMAGE})[0] for form in (load(tmp_path / "c.onnx"), tmp_path / "c.onnx")
    )
    assert np.array_equal(here, there)


def test_a_session_outlives_the_model_that_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "_LARGE_BYTES", 16)
    model = load(nets.write("cnn", tmp_path))
    sess, wanted = session(model), run(session(model), {"image": IMAGE})[0]
    del model
    gc.collect()
    np.random.default_rng(0).normal(size=100_000)  # somebody else takes memory
    assert np.array_equal(run(sess, {"image": IMAGE})[0], wanted)


def test_optimization_may_be_switched_off(path: Path) -> None:
    plain = run(session(path, optimize="off"), {"image": IMAGE})[0]
    assert np.allclose(plain, run(session(path), {"image": IMAGE})[0], atol=1e-5)


def test_samples_fit_a_model_of_another_precision() -> None:
    half = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float16[N, 2] x) => (float16[N, 2] y) { y = Neg (x) }'
    )
    sess = session(Model(ir.from_proto(half)))
    answer = run(sess, {"x": np.ones((1, 2), np.float32), "not an input": IMAGE})[0]
    assert answer.dtype == np.float16


def test_no_model_is_told() -> None:
    with pytest.raises(StudioError, match="onnxruntime cannot load this model"):
        session(b"no model")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="onnxruntime cannot load this model"):
        session(tmp_path / "nowhere.onnx")


def test_a_feed_of_the_wrong_rank_is_told_in_one_sentence(path: Path) -> None:
    with pytest.raises(StudioError, match="Invalid rank for input: image") as caught:
        run(session(path), {"image": IMAGE[0]})
    assert "\n" not in caught.value.sentence
    assert caught.value.details


def test_a_missing_input_is_told(path: Path) -> None:
    with pytest.raises(StudioError, match="onnxruntime cannot run this model"):
        run(session(path), {})


def test_an_operator_that_fails_is_told(path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N] x, int64[1] i) => (float[1] y) { y = Gather (x, i) }"""
    sess = session(Model(ir.from_proto(onnx.parser.parse_model(text))))
    with pytest.raises(StudioError, match="cannot run this model"):
        run(sess, {"x": np.zeros(2, np.float32), "i": np.array([9])})
