import pytest

from studio.engine.pruning.allocation import rounded


@pytest.mark.parametrize(
    ("width", "keep", "kept"),
    [
        (128, 50, 64),  # whole blocks
        (64, 1, 16),
        (40, 20, 20),  # free down to one block
        (24, 12, 16),
        (16, 8, 8),  # no block in any case
    ],
)
def test_layers_keep_widths_that_are_fast_here(width: int, keep: float, kept: int) -> None:
    assert rounded(width, keep, 0, 1, "plain") == kept


def test_a_given_rounding_is_all_the_rounding_there_is() -> None:
    assert rounded(24, 12, 1, 1, "plain") == 12
    assert rounded(24, 10, 4, 1, "plain") == 12
    assert rounded(24, 3, 1, 6, "plain") == 6


def test_heads_and_groups_are_never_rounded() -> None:
    assert rounded(24, 12, 0, 1, "outer") == 12
    assert rounded(128, 50, 0, 1, "inner") == 50
