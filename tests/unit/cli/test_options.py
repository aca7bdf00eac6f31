"""From the texts of a command line to records."""

from __future__ import annotations

import pytest
from support.canned import info_of, resnet_layers

from studio.base.errors import StudioError
from studio.cli.options import check_sizes, input_sizes
from studio.records.base import replace


def test_a_size_of_what_is_no_dynamic_dimension_is_refused() -> None:
    info = replace(info_of(resnet_layers()), input_sizes=(("batch", 1), ("tokens", 16)))
    check_sizes(input_sizes(["tokens=32"]), info)
    with pytest.raises(StudioError, match="dynamic dimension 'token'") as refused:
        check_sizes(input_sizes(["token=32"]), info)
    assert refused.value.hint == "It has: batch, tokens."
    with pytest.raises(StudioError, match="'batch'"):
        check_sizes((("batch", 2),), replace(info, input_sizes=()))
