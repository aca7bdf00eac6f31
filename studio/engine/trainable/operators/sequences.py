"""Sequences (Python lists) and optional values (None where there is none)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from studio.engine.trainable.operators.registry import Call, axis_of, ints, operator


@operator("SequenceConstruct")
def sequence_construct(_call: Call, *items: Any) -> list[Any]:
    """A sequence of its inputs."""
    return list(items)


@operator("SequenceEmpty")
def sequence_empty(_call: Call) -> list[Any]:
    """A sequence of nothing."""
    return []


@operator("SequenceAt")
def sequence_at(_call: Call, items: list[Any], place: Tensor) -> Any:
    """One element."""
    return items[int(place)]


@operator("SequenceInsert")
def sequence_insert(_call: Call, items: list[Any], item: Any, place: Tensor | None = None) -> list[Any]:
    """With one more element."""
    result = list(items)
    result.insert(len(result) if place is None else int(place), item)
    return result


@operator("SequenceErase")
def sequence_erase(_call: Call, items: list[Any], place: Tensor | None = None) -> list[Any]:
    """With one element less."""
    result = list(items)
    del result[-1 if place is None else int(place)]
    return result


@operator("SequenceLength")
def sequence_length(_call: Call, items: list[Any]) -> Tensor:
    """How many."""
    return torch.tensor(len(items))


@operator("SplitToSequence")
def split_to_sequence(call: Call, x: Tensor, split: Tensor | None = None) -> list[Tensor]:
    """Parts along an axis."""
    axis = axis_of(call.get("axis", 0), x.ndim)
    if split is None:
        parts = list(torch.split(x, 1, axis))
        return parts if call.get("keepdims", 1) else [p.squeeze(axis) for p in parts]
    sizes = int(split) if split.ndim == 0 else (ints(split) or [])
    return list(torch.split(x, sizes, axis))


@operator("ConcatFromSequence")
def concat_from_sequence(call: Call, items: list[Tensor]) -> Tensor:
    """Joined along an axis, old or new."""
    axis = call.attributes["axis"]
    return torch.stack(items, axis) if call.get("new_axis", 0) else torch.cat(items, axis)


@operator("Optional", "OptionalGetElement")
def optional(_call: Call, x: Any = None) -> Any:
    """The value itself."""
    return x


@operator("OptionalHasElement")
def optional_has_element(_call: Call, x: Any = None) -> Tensor:
    """Whether there is a value."""
    return torch.tensor(x is not None)
