"""Example inputs on the command line."""

from __future__ import annotations

import pytest

from studio.base.errors import StudioError
from studio.cli.importing import parse_inputs


@pytest.mark.parametrize(
    ("text", "name", "kind", "shape"),
    [
        ("1x3x224x224", "input", "float32", (1, 3, 224, 224)),
        ("ids=int64:1x64", "ids", "int64", (1, 64)),
        ("flag=bool:scalar", "flag", "bool", ()),
    ],
)
def test_an_input_is_a_name_a_type_and_sizes(text: str, name: str, kind: str, shape: tuple[int, ...]) -> None:
    (info,) = parse_inputs([text])
    assert (info.name, info.dtype, info.shape) == (name, kind, shape)


def test_several_inputs_without_names_are_numbered() -> None:
    assert [i.name for i in parse_inputs(["1x2", "3"])] == ["input_0", "input_1"]


def test_what_is_no_input_is_refused_in_words() -> None:
    with pytest.raises(StudioError, match="is no input"):
        parse_inputs(["1x-1"])
