"""Data sets as texts of the command line, there and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.base.errors import StudioError
from studio.records.measure import DataSpec, Preprocess, data_spec_text, parse_data_spec

numbers = st.floats(0.01, 100, allow_nan=False)
preprocesses = st.builds(
    Preprocess,
    height=st.integers(1, 500),
    width=st.integers(1, 500),
    resize=st.sampled_from(["stretch", "crop", "pad"]),
    crop_share=st.floats(0.1, 1),
    scale=numbers,
    mean=st.lists(numbers, min_size=1, max_size=3).map(tuple),
    std=st.lists(numbers, min_size=1, max_size=3).map(tuple),
    channels=st.sampled_from(["rgb", "bgr", "gray"]),
    layout=st.sampled_from(["nchw", "nhwc"]),
)
specs = st.builds(
    DataSpec,
    path=st.just("."),
    kind=st.sampled_from(["auto", "npz", "images", "csv"]),
    limit=st.integers(0, 1000),
    shuffle=st.booleans(),
    seed=st.integers(0, 1000),
    input=st.sampled_from(["", "x", "input_ids"]),
    label_column=st.sampled_from(["", "kind"]),
    batch=st.integers(0, 64),
    preprocess=st.none() | preprocesses,
)


@given(specs)
def test_a_text_says_all_of_a_data_set(spec: DataSpec) -> None:
    assert parse_data_spec(data_spec_text(spec)) == spec


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_random_data_have_a_text_too(limit: int, seed: int) -> None:
    spec = DataSpec(kind="random", limit=limit, seed=seed)
    assert parse_data_spec(data_spec_text(spec)) == spec
    assert parse_data_spec(f"random:{limit}") == DataSpec(kind="random", limit=limit)


def test_defaults_are_left_out() -> None:
    assert data_spec_text(DataSpec(path="a.npz")) == "a.npz"


def test_a_colon_of_the_path_is_no_setting(tmp_path: Path) -> None:
    path = tmp_path / "a:b.npz"
    path.touch()
    assert parse_data_spec(str(path)).path == str(path)
    assert parse_data_spec(f"{path}:limit=3") == DataSpec(path=str(path), limit=3)


def test_a_fraction_is_a_number() -> None:
    assert parse_data_spec(".:scale=1/255,mean=1/2|0.5|0.5").preprocess == Preprocess(mean=(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nowhere.npz", "there is no file or folder nowhere.npz"),
        (".:colour=red", "'colour' is unknown"),
        (".:limit=many", "Cannot use the data"),
        (".:scale=1/0", "Cannot use the data"),
        (".:channels=cmyk", "Cannot use the data"),
    ],
)
def test_what_cannot_be_used_is_told(text: str, words: str) -> None:
    with pytest.raises(StudioError, match=words):
        parse_data_spec(text)
