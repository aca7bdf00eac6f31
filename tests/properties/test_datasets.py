"""What holds for every data set, however it is stored, limited, drawn and batched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.engine.dataset import Dataset, open_data
from studio.records.measure import DataSpec
from studio.records.model import TensorInfo

INPUT = TensorInfo(name="x", dtype="float32", shape=("N", 3))


def values(count: int) -> np.ndarray:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


def write(folder: Path, form: str, count: int) -> Path:
    x, labels = values(count), np.arange(count)
    match form:
        case "npz":
            np.savez(folder / "d.npz", x=x, labels=labels)
        case "compressed":
            np.savez_compressed(folder / "d.npz", x=x, labels=labels)
        case "columns first":
            np.savez(folder / "d.npz", x=np.asfortranarray(x), labels=labels)
        case "csv":
            rows = "".join(
                ",".join(map(str, [*row, label])) + "\n" for row, label in zip(x, labels, strict=True)
            )
            (folder / "d.csv").write_text("a,b,c,label\n" + rows)
        case "folder":
            for row, label in zip(x, labels, strict=True):
                np.savez(folder / f"{label}.npz", x=row[None], labels=label)
            return folder
    return next(folder.glob("d.*"))


@st.composite
def asked(draw: st.DrawFn) -> tuple[int, DataSpec, int]:
    count = draw(st.integers(1, 25))
    spec = DataSpec(
        limit=draw(st.integers(0, 30)), shuffle=draw(st.booleans()), seed=draw(st.integers(0, 99))
    )
    return count, spec, draw(st.integers(1, 30))


def opened(path: Path, spec: DataSpec) -> Dataset:
    filled = DataSpec(path=str(path), limit=spec.limit, shuffle=spec.shuffle, seed=spec.seed)
    return open_data(filled, (INPUT,))


@settings(max_examples=25, deadline=None)
@given(asked())
@pytest.mark.parametrize("form", ["npz", "compressed", "columns first", "csv", "folder"])
def test_every_sample_drawn_comes_once_with_its_label(
    tmp_path_factory: pytest.TempPathFactory, form: str, case: tuple[int, DataSpec, int]
) -> None:
    count, spec, batch = case
    data = opened(write(tmp_path_factory.mktemp("d"), form, count), spec)
    batches = list(data.batches(batch))
    assert sum(b.count for b in batches) == data.samples == min(spec.limit or count, count)
    assert all(b.count == (batch if form != "folder" else 1) for b in batches[:-1])
    seen = np.concatenate([b.feed["x"] for b in batches])
    labels = np.concatenate([np.ravel(b.labels) for b in batches if b.labels is not None])
    assert len(set(labels.tolist())) == data.samples
    assert np.array_equal(seen, values(count)[labels])
    told = data.labels()
    assert told is not None
    assert np.array_equal(np.ravel(told), labels)


@settings(max_examples=25, deadline=None)
@given(asked(), st.integers(1, 30))
def test_a_part_is_the_start_of_the_draw(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[int, DataSpec, int], part: int
) -> None:
    count, spec, _ = case
    data = opened(write(tmp_path_factory.mktemp("d"), "npz", count), spec)
    few = data.take(part)
    assert few.samples == min(part, data.samples)
    assert np.array_equal(few.order, data.order[:part])
    if not spec.shuffle:
        assert np.array_equal(few.order, np.arange(few.samples))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 99), st.integers(1, 5), st.integers(1, 5))
def test_random_samples_do_not_depend_on_the_batch(count: int, seed: int, one: int, other: int) -> None:
    data = open_data(DataSpec(kind="random", limit=count, seed=seed), (INPUT,))
    walks = [np.concatenate([f["x"] for f in data.feeds(batch)]) for batch in (one, other)]
    assert np.array_equal(*walks)
