"""From the texts of a command line to records."""

from __future__ import annotations

from collections.abc import Sequence

from studio.base.errors import StudioError
from studio.records.measure import DataSpec, parse_data_spec
from studio.records.model import ModelInfo
from studio.records.task import InputSizes


def input_sizes(texts: Sequence[str]) -> InputSizes:
    """'batch=4' … as sizes of dynamic dimensions.

    Raises:
        StudioError: not of that form.
    """
    sizes = []
    for text in texts:
        name, _, number = text.rpartition("=")
        if not name or not number.isdigit() or int(number) < 1:
            raise StudioError(f"Cannot use --input-size {text}", "expected NAME=N with N at least 1")
        sizes.append((name, int(number)))
    return tuple(sizes)


def check_sizes(sizes: InputSizes, info: ModelInfo) -> None:
    """Refuse a size of what is no dynamic dimension, so that nothing is passed over in silence.

    Raises:
        StudioError: there is such a one.
    """
    known = dict(info.input_sizes)
    for name, size in sizes:
        if name not in known:
            raise StudioError(
                f"Cannot use --input-size {name}={size}",
                f"no input of {info.name} has a dynamic dimension '{name}'",
                f"It has: {', '.join(known)}." if known else "All its sizes are fixed.",
            )


def data(text: str) -> DataSpec | None:
    """A data set, or None where none was given.

    Raises:
        StudioError: the text names none.
    """
    return parse_data_spec(text) if text else None
