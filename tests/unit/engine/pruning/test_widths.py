from pathlib import Path

import pytest

from studio.engine.graph import load
from studio.engine.layers import list_layers
from studio.engine.pruning.widths import Grain, fewer, grain, more, rounded
from studio.engine.techniques.channel_orders import grouping_of

NETS = Path(__file__).parents[3] / "data" / "nets"


@pytest.mark.parametrize(
    ("width", "keep", "kept"),
    [
        (128, 50, 64),  # whole blocks
        (64, 1, 16),
        (40, 20, 16),  # a whole block that is near
        (48, 30, 32),
        (24, 12, 16),  # no less than a block
        (32, 24, 24),  # no whole block is near: what the layout allows
        (32, 22.4, 24),
        (48, 24, 24),
        (40, 35.2, 32),
        (36, 33.1, 32),
        (34, 33.5, 34),
        (16, 8, 8),  # no block in any case
        (12, 5.5, 6),
    ],
)
def test_channels_of_images_keep_widths_that_are_fast_here(width: int, keep: float, kept: int) -> None:
    assert rounded(width, keep, 0, 1, "image") == kept


def test_one_block_that_pointwise_convolutions_read_stays_whole() -> None:
    assert rounded(16, 8, 0, 1, "pointwise") == 16
    assert rounded(16, 8, 1, 1, "pointwise") == 8


@pytest.mark.parametrize(
    ("width", "keep", "kept"), [(12, 6, 8), (12, 4, 4), (8, 2.4, 4), (8, 6, 8), (2, 1, 2)]
)
def test_below_one_block_depthwise_layers_keep_their_layout(width: int, keep: float, kept: int) -> None:
    assert rounded(width, keep, 0, 1, "pointwise") == kept


def test_narrow_matrices_are_free_down_to_one_block() -> None:
    assert rounded(40, 20, 0, 1, "matrix") == 20
    assert rounded(40, 5, 0, 1, "matrix") == 16
    assert rounded(128, 50, 0, 1, "matrix") == 64


def test_a_given_rounding_is_all_the_rounding_there_is() -> None:
    assert rounded(24, 12, 1, 1, "image") == 12
    assert rounded(24, 10, 4, 1, "image") == 12
    assert rounded(24, 3, 1, 6, "image") == 6


def test_heads_and_groups_are_never_rounded() -> None:
    assert rounded(24, 12, 0, 1, "free") == 12
    assert rounded(128, 50, 0, 1, "free") == 50


@pytest.mark.parametrize("grain", ["free", "matrix", "image", "pointwise"])
@pytest.mark.parametrize("width", range(1, 81))
def test_no_width_lies_below_the_minimum_or_above_the_whole(width: int, grain: Grain) -> None:
    for minimum in (1, 9, 20):
        widths = [rounded(width, keep, 0, minimum, grain) for keep in range(width + 1)]
        assert widths == sorted(widths)
        assert all(min(width, minimum) <= found <= width for found in widths)


def test_steps_down_and_up_visit_widths_worth_having() -> None:
    assert [fewer(96, kept, 0, 1, "image", 3) for kept in (96, 80, 16)] == [80, 64, 16]
    assert [fewer(32, kept, 0, 1, "image", 1) for kept in (32, 28, 24, 16)] == [28, 24, 16, 16]
    assert [more(96, kept, 0, "image") for kept in (16, 80, 96)] == [32, 96, 96]
    assert more(16, 16, 0, "pointwise") == 16


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        ("residual", {"image"}),
        ("depthwise_se", {"image", "pointwise"}),
        ("gpt", {"matrix", "free"}),
        ("lstm", {"matrix"}),
    ],
)
def test_what_reads_a_group_decides_its_grain(net: str, expected: set[str]) -> None:
    listing = list_layers(load(NETS / f"{net}.torchscript.onnx"))
    grouping = grouping_of(listing)
    assert {grain(grouping, group) for group in grouping.groups} == expected
