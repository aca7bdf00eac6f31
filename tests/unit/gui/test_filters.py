"""The filter language of the layer table."""

from __future__ import annotations

import pytest
from support.canned import busy_view, layer, resnet_layers

from studio.base.errors import StudioError
from studio.gui.figures import Figures, figures
from studio.gui.layer_table.filters import parse
from studio.records.model import Cost


def kept(text: str, known: Figures | None = None) -> list[str]:
    known = known or figures(busy_view())
    rule = parse(text)
    return [one.name for one in known.layers if rule(one, known)]


def test_a_word_is_found_in_name_operator_shape_and_treatment() -> None:
    assert kept("downsample") == ["layer2.0.downsample.0", "layer3.0.downsample.0", "layer4.0.downsample.0"]
    assert kept("gemm") == ["fc"]
    assert kept("7x7") == kept("7×7") == ["conv1"]
    assert "layer3.0.conv1" in kept("int8")


def test_a_field_compares_in_the_unit_of_its_header_or_in_the_unit_given() -> None:
    everything = kept("size>=0")
    assert kept("size>1") == kept("size>1MB") == kept("size>1000k") == kept(">1 MB") == kept("> 1 MB")
    assert set(kept("size<=1MB")) | set(kept("size>1MB")) == set(everything)
    assert kept("params>10k") == kept("params>10000")
    assert kept("latency>5") == kept("latency>5%") == kept("latency>0.05e2")


def test_a_number_alone_is_in_kilobytes_where_the_header_is() -> None:
    known = Figures(layers=(layer("a", cost=Cost(bytes=640)), layer("b", cost=Cost(bytes=36_000))))
    assert kept("size>1", known) == kept("size>1kB", known) == kept("size>1000B", known) == ["b"]


def test_rules_combine_and_turn_round() -> None:
    assert kept("op:conv size>1MB") == [name for name in kept("op:conv") if name in kept("size>1MB")]
    assert set(kept("-op:conv")) == {"fc"}
    assert kept("layer4 -downsample -conv1") == ["layer4.0.conv2", "layer4.1.conv2"]


def test_a_glob_must_match_the_whole_text() -> None:
    assert kept("layer:layer?.0.conv1") == [
        "layer1.0.conv1",
        "layer2.0.conv1",
        "layer3.0.conv1",
        "layer4.0.conv1",
    ]
    assert kept("layer:conv*") == ["conv1"]


def test_quoted_words_keep_their_spaces_and_signs() -> None:
    known = Figures(layers=(layer("a b"), layer("c:d"), layer("ab")))
    assert kept('"a b"', known) == ["a b"]
    assert kept('"c:d"', known) == ["c:d"]


def test_an_empty_filter_keeps_everything() -> None:
    assert len(kept("  ")) == len(resnet_layers())


def test_unknown_values_match_no_comparison() -> None:
    known = Figures(layers=resnet_layers())
    assert kept("sensitivity>0", known) == []
    assert kept("sensitivity<100", known) == []
    assert len(kept("-sensitivity>0", known)) == len(known.layers)


@pytest.mark.parametrize("text", ["colour:red", "size>many", "op>3", "foo>1MB"])
def test_what_cannot_be_understood_is_said(text: str) -> None:
    with pytest.raises(StudioError):
        parse(text)
