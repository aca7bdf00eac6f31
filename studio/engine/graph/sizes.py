"""The dynamic dimensions of a model's inputs, by name, and a size to count with where the user gave none."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir

from studio.engine.graph.model import Model

_SEQUENCE, _IMAGE, _CHANNELS, _SOUND, _OTHER = 128, 224, 3, 16_000, 16
_BATCH = re.compile(r"batch|^n$|^b$|^bs$|_batch_|^unk__0$", re.IGNORECASE)
_SPATIAL = re.compile(r"height|width|^h$|^w$", re.IGNORECASE)
_LENGTH = re.compile(r"seq|len|time|token|text|^t$|^s$|^l$", re.IGNORECASE)
_WAVE = re.compile(r"samples|audio|wave|wav$|pcm", re.IGNORECASE)
_STATE = re.compile(r"state|hidden|cache|^[hc]\d*$", re.IGNORECASE)
_PAST = re.compile(r"past", re.IGNORECASE)


def dimension_name(value: ir.Value, axis: int) -> str:
    """The name of a dynamic dimension: the model's own, or 'input:axis' where the model gives none."""
    dim = value.shape[axis] if value.shape is not None else None
    name = "" if dim is None or isinstance(dim, int) or dim.value == "?" else str(dim.value or "")
    return name or f"{value.name}:{axis}"


def named_shape(value: ir.Value) -> tuple[int | str, ...] | None:
    """The declared shape, every dynamic dimension by its name; None when the rank is not known."""
    if value.shape is None:
        return None
    return tuple(
        d if isinstance(d, int) and d >= 0 else dimension_name(value, axis)
        for axis, d in enumerate(value.shape)
    )


def real_inputs(model: Model) -> list[ir.Value]:
    """The inputs that a caller must feed: old models name their weights among the inputs, too."""
    return [v for v in model.graph.inputs if not v.is_initializer()]


def dynamic_dimensions(model: Model) -> dict[str, int]:
    """Every dynamic dimension of the inputs with a size to count with, in the inputs' order."""
    sizes: dict[str, int] = {}
    for value in real_inputs(model):
        shape = named_shape(value) or ()
        for axis, name in enumerate(shape):
            if isinstance(name, str) and name not in sizes:
                sizes[name] = _likely(value, name, axis, shape)
    return {name: _sum_of_names(name, sizes) for name in sizes}


def _likely(value: ir.Value, name: str, axis: int, shape: tuple[int | str, ...]) -> int:
    """One sample of a usual size: 224 × 224 pixels, 128 tokens, a second of sound."""
    if _BATCH.search(name):
        return 1
    if 0 < axis == len(shape) - 1 and _WAVE.search(name):
        return _SOUND
    if _PAST.search(name):
        return _OTHER
    if _LENGTH.search(name):
        return _SEQUENCE
    if _SPATIAL.search(name):
        return _IMAGE
    if axis == 0 or (len(shape) == 3 and axis == 1 and _STATE.search(value.name or "")):
        return 1  # samples; a recurrent state is (layers, samples, hidden)
    if len(shape) == 4:
        channels_last = isinstance(shape[3], int) and shape[3] in {1, 3, 4}
        spatial = {1, 2} if channels_last else {2, 3}
        return _IMAGE if axis in spatial else _CHANNELS
    return _SEQUENCE if axis == 1 else _OTHER


def _sum_of_names(name: str, sizes: Mapping[str, int]) -> int:
    """'past_length + 1' is what it says where its parts are dimensions themselves."""
    parts = [p.strip() for p in name.split("+")]
    if len(parts) > 1 and all(p.isdigit() or p in sizes for p in parts):
        return sum(int(p) if p.isdigit() else sizes[p] for p in parts)
    return sizes[name]
