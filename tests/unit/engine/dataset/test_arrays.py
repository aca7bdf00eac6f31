"""Samples in .npz and .npy files and in folders of feeds."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studio.base.errors import StudioError
from studio.engine.dataset import Dataset, open_data
from studio.records.measure import DataSpec
from studio.records.model import TensorInfo

IMAGE = TensorInfo(name="x", dtype="float32", shape=("N", 1, 2, 2))
IDS = TensorInfo(name="ids", dtype="int64", shape=("N", "T"))
MASK = TensorInfo(name="mask", dtype="int64", shape=("N", "T"))
FRAME = TensorInfo(name="x", dtype="float32", shape=(1, 4))
STATE = TensorInfo(name="state", dtype="float32", shape=(2, 1, 3))
RATE = TensorInfo(name="rate", dtype="int64", shape=())


def images(count: int) -> np.ndarray:
    return np.arange(count * 4, dtype=np.float32).reshape(count, 1, 2, 2)


def opened(path: Path, *inputs: TensorInfo, **settings: Any) -> Dataset:
    return open_data(DataSpec(path=str(path), **settings), inputs)


def saved(path: Path, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_is_read_in_batches_again_and_again(tmp_path: Path, compressed: bool) -> None:
    data = opened(saved(tmp_path / "d.npz", compressed, x=images(7), labels=np.arange(7)), IMAGE)
    for _ in range(2):
        batches = list(data.batches(3))
        assert [b.count for b in batches] == [3, 3, 1]
        assert np.array_equal(np.concatenate([b.feed["x"] for b in batches]), images(7))
        assert np.array_equal(
            np.concatenate([b.labels for b in batches if b.labels is not None]), np.arange(7)
        )


def test_a_limit_takes_the_first_and_shuffling_draws_with_the_seed(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", x=images(100), labels=np.arange(100))
    first = opened(path, IMAGE, limit=5).labels()
    drawn = opened(path, IMAGE, limit=5, shuffle=True, seed=1)
    again = opened(path, IMAGE, limit=5, shuffle=True, seed=1).labels()
    other = opened(path, IMAGE, limit=5, shuffle=True, seed=2).labels()
    labels = drawn.labels()
    assert first is not None
    assert labels is not None
    assert first.tolist() == [0, 1, 2, 3, 4]
    assert (
        labels.tolist()
        == (again if again is not None else labels).tolist()
        != (other if other is not None else labels).tolist()
    )
    feeds = np.concatenate([f["x"] for f in drawn.feeds(2)])
    assert np.array_equal(feeds, images(100)[labels])


def test_a_part_of_a_shuffled_set_is_a_part_of_the_draw(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", x=images(100), labels=np.arange(100))
    part = opened(path, IMAGE, shuffle=True).take(10).labels()
    assert part is not None
    assert part.max() > 20  # not the first ones of the file


def test_minus_one_is_unlabelled(tmp_path: Path) -> None:
    summary = opened(saved(tmp_path / "d.npz", x=images(4), labels=np.array([2, -1, -1, 0])), IMAGE).summary()
    assert (summary.samples, summary.labelled, summary.classes) == (4, 2, 2)
    assert summary.description == "d.npz · 4 samples"


def test_labels_may_have_a_shape_of_their_own(tmp_path: Path) -> None:
    labels = np.array([[1, 2, -1], [3, -1, -1]])
    path = saved(
        tmp_path / "d.npz", ids=np.ones((2, 3), np.int64), mask=np.ones((2, 3), np.int64), labels=labels
    )
    data = opened(path, IDS, MASK)
    found = data.labels()
    assert found is not None
    assert found.tolist() == labels.tolist()
    assert data.summary().labelled == 2


def test_an_input_that_takes_one_sample_gets_one_a_run(tmp_path: Path) -> None:
    data = opened(saved(tmp_path / "d.npz", x=np.ones((5, 4), np.float32)), FRAME)
    assert [f["x"].shape for f in data.feeds(3)] == [(1, 4)] * 5


def test_an_input_of_eight_samples_leaves_the_rest_out_and_says_so(tmp_path: Path) -> None:
    eight = TensorInfo(name="x", dtype="float32", shape=(8, 4))
    data = opened(saved(tmp_path / "d.npz", x=np.ones((19, 4), np.float32)), eight)
    assert [f["x"].shape for f in data.feeds()] == [(8, 4)] * 2
    assert data.runs() == 2
    assert "the last 3 are left out" in data.summary().cautions[0]
    with pytest.raises(StudioError, match="takes 8 at a time, and there are 5"):
        opened(saved(tmp_path / "few.npz", x=np.ones((5, 4), np.float32)), eight)


def test_rows_that_are_whole_inputs_come_one_a_run(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "d.npz",
        x=np.ones((3, 1, 4), np.float32),
        state=np.arange(18, dtype=np.float32).reshape(3, 2, 1, 3),
        rate=np.array(16000),
    )
    feeds = list(opened(path, FRAME, STATE, RATE).feeds())
    assert [{k: v.shape for k, v in f.items()} for f in feeds] == [
        {"x": (1, 4), "state": (2, 1, 3), "rate": ()}
    ] * 3
    assert feeds[2]["state"].min() == 12


def test_an_axis_of_one_between_is_merged_where_the_model_stacks(tmp_path: Path) -> None:
    data = opened(saved(tmp_path / "d.npz", x=images(4)[:, None]), IMAGE)
    assert next(data.feeds(4))["x"].shape == (4, 1, 2, 2)


def test_a_fixed_input_beside_samples_is_the_same_for_all(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", x=np.ones((5, 4), np.float32), state=np.ones((2, 1, 3), np.float32))
    feeds = list(opened(path, FRAME, STATE).feeds())
    assert len(feeds) == 5
    assert feeds[4]["state"].shape == (2, 1, 3)


def test_a_npy_feeds_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", images(3))
    data = opened(tmp_path / "d.npy", IMAGE)
    assert np.array_equal(next(data.feeds(3))["x"], images(3))
    with pytest.raises(StudioError, match="holds one array, and the model has 2 inputs"):
        opened(tmp_path / "d.npy", IDS, MASK)


def test_columns_first_and_foreign_byte_order_are_understood(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.asfortranarray(images(5)))
    np.save(tmp_path / "b.npy", images(5).astype(">f4"))
    for name in ("f.npy", "b.npy"):
        data = opened(tmp_path / name, IMAGE, shuffle=True, limit=3)
        assert np.array_equal(np.concatenate([f["x"] for f in data.feeds(2)]), images(5)[np.sort(data.order)])


def test_a_folder_of_feeds_keeps_their_widths_and_the_order_of_numbers(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        saved(tmp_path / f"{number}.npz", ids=np.full((1, number), number), mask=np.ones((1, number), int))
    feeds = list(opened(tmp_path, IDS, MASK).feeds(8))
    assert [f["ids"].shape for f in feeds] == [(1, 1), (1, 2), (1, 10)]


def test_labels_of_a_folder_are_filled_up_to_the_longest(tmp_path: Path) -> None:
    for number in (1, 3):
        saved(tmp_path / f"{number}.npz", x=np.ones((1, 4), np.float32), labels=np.arange(number))
    labels = opened(tmp_path, FRAME).labels()
    assert labels is not None
    assert labels.tolist() == [[0, -1, -1], [0, 1, 2]]


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int8])
def test_labels_of_any_whole_type_have_a_place_for_unlabelled(tmp_path: Path, kind: type) -> None:
    for number in (1, 3):
        saved(tmp_path / f"{number}.npz", x=np.ones((1, 4), np.float32), labels=np.ones(number, kind))
    labels = opened(tmp_path, FRAME).labels()
    assert labels is not None
    assert labels.tolist() == [[1, -1, -1], [1, 1, 1]]


def test_doubles_and_whole_numbers_are_converted_where_nothing_is_lost(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", ids=np.ones((2, 3), np.int32), mask=np.ones((2, 3), np.uint8))
    assert next(opened(path, IDS, MASK).feeds())["ids"].dtype == np.int64
    path = saved(tmp_path / "e.npz", x=images(2).astype(np.float64))
    assert next(opened(path, IMAGE).feeds())["x"].dtype == np.float32


def test_unscaled_pixels_are_used_and_told(tmp_path: Path) -> None:
    data = opened(saved(tmp_path / "d.npz", x=images(2).astype(np.uint8), extra=np.ones(3)), IMAGE)
    cautions = data.summary().cautions
    assert "stored as uint8 and used as it is, not scaled" in cautions[0]
    assert cautions[1] == "not used: extra"


def test_reading_never_holds_more_than_a_batch(tmp_path: Path) -> None:
    import tracemalloc

    big = TensorInfo(name="x", dtype="float32", shape=("N", 1000, 100))
    with (
        zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as out,
    ):
        np.lib.format.write_array_header_1_0(
            out, {"descr": "<f4", "fortran_order": False, "shape": (200, 1000, 100)}
        )
        for _ in range(200):
            out.write(np.zeros(100_000, np.float32).tobytes())
    data = opened(tmp_path / "d.npz", big)  # 80 MB unpacked
    tracemalloc.start()
    assert sum(b.count for b in data.batches(4)) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000_000


# ------------------------------------------------------------------ what does not fit, in words


def test_the_sizes_of_dynamic_dimensions_are_those_of_the_data(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", ids=np.ones((4, 9), int), mask=np.ones((4, 9), int))
    assert opened(path, IDS, MASK).summary().input_sizes == (("N", 1), ("T", 9))


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match=r"nothing for input 'mask': it holds 'ids'"):
        opened(saved(tmp_path / "d.npz", ids=np.ones((2, 3), int)), IDS, MASK)


def test_a_wrong_shape_says_expected_and_got(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="expected N×1×2×2, got 5×1×2×3"):
        opened(saved(tmp_path / "d.npz", x=np.ones((5, 1, 2, 3), np.float32)), IMAGE)


def test_a_wrong_type_says_expected_and_got(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="expected int64, got float32"):
        opened(
            saved(tmp_path / "d.npz", ids=np.full((2, 3), 0.5, np.float32), mask=np.ones((2, 3), int)),
            IDS,
            MASK,
        )


def test_inputs_of_different_counts_are_told(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", ids=np.ones((4, 3), int), mask=np.ones((5, 3), int))
    with pytest.raises(StudioError, match="differ in their number of samples"):
        opened(path, IDS, MASK)


def test_labels_of_another_count_are_told(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="expected 4, one a sample, got 3"):
        opened(saved(tmp_path / "d.npz", x=images(4), labels=np.arange(3)), IMAGE)


def test_an_empty_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="holds no samples"):
        opened(saved(tmp_path / "d.npz", x=images(0)), IMAGE)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StudioError, match="holds no samples"):
        opened(tmp_path / "folder", IMAGE)


def test_values_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    bad = images(6)
    bad[3, 0, 0, 0] = np.nan
    data = opened(saved(tmp_path / "d.npz", x=bad), IMAGE)
    with pytest.raises(StudioError, match="values that are not numbers: input 'x' is NaN"):
        list(data.feeds(2))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="there is no such file or folder"):
        opened(tmp_path / "nowhere.npz", IMAGE)


def test_an_unknown_ending_is_told(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"")
    with pytest.raises(StudioError, match="is no ending of a data file"):
        opened(tmp_path / "d.parquet", IMAGE)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes) -> None:
    for name in ("d.npz", "d.npy"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StudioError, match="Cannot read d"):
            opened(tmp_path / name, IMAGE)


def test_a_header_of_nonsense_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", images(3))
    whole = (tmp_path / "d.npy").read_bytes()
    for old, new in ((b"(3, 1, 2, 2)", b"(3, 1, 2, 2("), (b"'shape'", b"b'shap'"), (b"(3, 1,", b"(-3,1,")):
        (tmp_path / "d.npy").write_bytes(whole.replace(old, new))
        with pytest.raises(StudioError, match="Cannot read"):
            opened(tmp_path / "d.npy", IMAGE)


def test_a_file_cut_short_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", images(100))
    whole = (tmp_path / "d.npy").read_bytes()
    (tmp_path / "d.npy").write_bytes(whole[:-200])
    with pytest.raises(StudioError, match="ends in the middle"):
        list(opened(tmp_path / "d.npy", IMAGE).feeds())


def test_pickled_objects_are_never_read(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(StudioError, match="could run code"):
        opened(tmp_path / "d.npy", IMAGE)


def test_an_archive_without_arrays_is_told(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    (tmp_path / "d.npz").write_bytes(buffer.getvalue())
    with pytest.raises(StudioError, match="it holds no arrays"):
        opened(tmp_path / "d.npz", IMAGE)
