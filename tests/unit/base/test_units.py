"""Numbers as people read them."""

from __future__ import annotations

import pytest

from studio.base.units import change, counted


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [(44.7, 12.9, "−71 %"), (10, 12, "+20 %"), (10, 10, "0 %"), (1000, 999, "0 %"), (0, 5, "")],
)
def test_a_change_has_a_sign_unless_it_is_none(before: float, after: float, words: str) -> None:
    assert change(before, after) == words


def test_one_thing_is_not_many() -> None:
    assert (counted(1, "layer"), counted(0, "layer"), counted(1500, "layer")) == (
        "1 layer", "0 layers", "1,500 layers",
    )  # fmt: skip
