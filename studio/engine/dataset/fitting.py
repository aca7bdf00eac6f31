"""Whether samples fit a model's inputs: names, types, shapes; and a sentence when they do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from studio.base.errors import StudioError
from studio.base.units import shape as shape_text
from studio.engine.dataset.core import Array
from studio.records.model import TensorInfo


def numpy_dtype(info: TensorInfo) -> np.dtype[Any]:
    """The numpy type of an input.

    Raises:
        StudioError: numpy has no such type, or the input is a text.
    """
    try:
        kind = np.dtype(info.dtype or "object")
    except TypeError as error:
        raise StudioError(f"Input '{info.name}' cannot be fed", _type_text(info)) from error
    if kind.kind not in "biuf":
        raise StudioError(f"Input '{info.name}' cannot be fed", _type_text(info))
    return kind


def _type_text(info: TensorInfo) -> str:
    return f"its type is {info.dtype}" if info.dtype else "it is no tensor"


def converted(array: Array, info: TensorInfo, what: str) -> Array:
    """The array in the input's type.

    Raises:
        StudioError: values would be lost on the way (fractions into an integer input, for example).
    """
    wanted = numpy_dtype(info)
    if array.dtype == wanted:
        return array
    floats = wanted.kind == "f" and array.dtype.kind == "f"
    if floats or np.can_cast(array.dtype, wanted, "safe"):
        return array.astype(wanted)
    if wanted.kind in "iuf" and array.dtype.kind in "iuf":
        cast = array.astype(wanted)
        if array.dtype.kind in "iu" and np.array_equal(cast.astype(array.dtype), array):
            return cast
    raise StudioError(
        f"{what} does not fit input '{info.name}'", f"expected {wanted.name}, got {array.dtype.name}"
    )


def input_shape(info: TensorInfo, input_sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The input's shape at chosen sizes; an axis without one is 1."""
    return tuple(d if isinstance(d, int) else input_sizes.get(d, 1) for d in info.shape or ())


def check_shape(shape: tuple[int, ...], info: TensorInfo, what: str, *, sample_axis: bool) -> None:
    """Compare a shape with the input's; `sample_axis`: the first axis counts samples and may be anything.

    Raises:
        StudioError: with what was expected and what was found.
    """
    if info.shape is None:
        return
    start = 1 if sample_axis else 0
    fits = len(shape) == len(info.shape) and all(
        not isinstance(want, int) or want == have
        for want, have in zip(info.shape[start:], shape[start:], strict=True)
    )
    if not fits:
        raise StudioError(
            f"{what} does not fit input '{info.name}'",
            f"expected {expected_text(info)}, got {shape_text(shape)}",
        )


def expected_text(info: TensorInfo) -> str:
    """'N×3×224×224'; a dimension that the model gives no name ('x:2') is '?'."""
    if info.shape is None:
        return "any shape"
    return shape_text(tuple("?" if isinstance(d, str) and ":" in d else d for d in info.shape))


def check_names(found: Iterable[str], inputs: tuple[TensorInfo, ...], what: str) -> None:
    """Every input must be among the names found.

    Raises:
        StudioError: naming what is missing and what is there.
    """
    names = list(found)
    missing = [info.name for info in inputs if info.name not in names]
    if missing:
        raise StudioError(
            f"{what} has nothing for input {_quoted(missing)}",
            f"it holds {_quoted(names)}" if names else "it holds nothing",
            f"Name the arrays as the model's inputs: {_quoted(i.name for i in inputs)}.",
        )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
