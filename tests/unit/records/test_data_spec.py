from __future__ import annotations

from pathlib import Path

import pytest

from studio.base.errors import StudioError
from studio.records.measure import DataSpec, Preprocess, data_spec_text, parse_data_spec


@pytest.mark.parametrize(
    "rest",
    ["", ":limit=4", ":kind=images,limit=8,shuffle=True,seed=3,height=32,mean=0.5|0.25|0.5,channels=bgr"],
)
def test_what_is_read_is_written_alike(tmp_path: Path, rest: str) -> None:
    spec = parse_data_spec(f"{tmp_path}{rest}")
    assert spec.path == str(tmp_path)
    assert parse_data_spec(data_spec_text(spec)) == spec


def test_preprocessing_with_defaults_only_is_not_lost(tmp_path: Path) -> None:
    spec = DataSpec(path=str(tmp_path), preprocess=Preprocess())
    assert parse_data_spec(data_spec_text(spec)) == spec


def test_random_data_need_no_path() -> None:
    assert parse_data_spec("random:limit=8") == DataSpec(kind="random", limit=8)
    assert data_spec_text(DataSpec(kind="random")) == "random"


def test_a_colon_in_a_path_is_a_colon(tmp_path: Path) -> None:
    path = tmp_path / "a:b.npz"
    path.touch()
    assert parse_data_spec(str(path)).path == str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nowhere.npz", "no file or folder"),
        ("random:limit=-1", "limit must be at least 0."),
        ("random:seed=x", "seed must be a whole number."),
        (".:kind=odd", "kind cannot be 'odd'."),
        (".:colour=red", "Known are: kind"),
        (".:limit=x", "limit"),
        (".:height=0", "height"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(text: str, words: str) -> None:
    with pytest.raises(StudioError) as caught:
        parse_data_spec(text)
    assert words in caught.value.sentence
