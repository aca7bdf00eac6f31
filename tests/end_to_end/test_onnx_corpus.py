"""All model files of the onnx wheel: opened in a worker, and saved without changing an output by a bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from studio.app.jobs.drive import Driver, Limits
from studio.engine import graph
from studio.records.task import Failed, Inspect, Inspected

ROOT = Path(onnx.__file__).parent / "backend" / "test" / "data"
CORPUS = sorted(p for p in ROOT.rglob("*.onnx") if p.relative_to(ROOT).parts[0] != "node")
LIMITS = Limits(seconds=60, bytes=3_000_000_000)
KINDS = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    one = Driver()
    yield one
    one.close()


def session(path: Path) -> ort.InferenceSession | None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception:
        return None  # not a model that this runtime runs


def feed(sess: ort.InferenceSession) -> dict[str, Any] | None:
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {}
    for given in sess.get_inputs():
        kind = KINDS.get(given.type)
        if kind is None:
            return None
        shape = [d if isinstance(d, int) else 2 for d in given.shape]
        whole = np.dtype(kind).kind in "iub"
        values[given.name] = (rng.integers(0, 2, shape) if whole else rng.random(shape)).astype(kind)
    return values


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list | dict):
        return str(a) == str(b)
    return np.asarray(a).dtype == np.asarray(b).dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_corpus_is_there() -> None:
    assert len(CORPUS) > 100


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: str(p.relative_to(ROOT).with_suffix("")))
def test_a_model_is_opened_and_saved_unchanged(path: Path, driver: Driver, tmp_path: Path) -> None:
    answer = driver.ask(Inspect(model=str(path)), limits=LIMITS, subject=f"Reading {path.name}")
    before = session(path)
    if before is None:
        assert isinstance(answer, Inspected) or (isinstance(answer, Failed) and not answer.bug)
        return
    assert isinstance(answer, Inspected), answer
    graph.save(graph.load(path), tmp_path / "m.onnx")
    after = session(tmp_path / "m.onnx")
    assert after is not None
    given = feed(before)
    if given is None:
        return
    try:
        expected = before.run(None, given)
    except Exception:
        return  # not on these inputs
    assert all(same(a, b) for a, b in zip(expected, after.run(None, given), strict=True))
