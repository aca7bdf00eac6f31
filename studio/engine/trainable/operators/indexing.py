"""Operators that pick or put values by index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from studio.engine.trainable.operators.registry import Call, axis_of, ints, operator


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices as int64, negative ones counted from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather")
def gather(call: Call, x: Any, indices: Tensor) -> Any:
    """Slices of one axis."""
    if not isinstance(x, Tensor):
        return x.take(indices.numpy(), axis=call.get("axis", 0))
    axis = axis_of(call.get("axis", 0), x.ndim)
    if indices.ndim == 0:
        return x.select(axis, int(indices))
    wrapped = _wrapped(indices, x.shape[axis])
    if axis == 0 and x.ndim == 2 and x.is_floating_point():
        return torch.nn.functional.embedding(wrapped, x)
    picked = x.index_select(axis, wrapped.reshape(-1))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """One value per index."""
    axis = axis_of(call.get("axis", 0), x.ndim)
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Slices by index tuples, after `batch_dims` common axes."""
    batch, depth = call.get("batch_dims", 0), indices.shape[-1]
    lead = x.shape[:batch]
    flat = x.reshape(-1, *x.shape[batch:])
    where = indices.reshape(flat.shape[0], -1, depth)
    rows = torch.arange(flat.shape[0]).reshape(-1, 1).expand(where.shape[:2])
    parts = [_wrapped(where[..., i], x.shape[batch + i]) for i in range(depth)]
    return flat[(rows, *parts)].reshape(*lead, *indices.shape[batch:-1], *x.shape[batch + depth :])


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements", "Scatter")
def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Puts one value per index, replacing or combining."""
    axis = axis_of(call.get("axis", 0), x.ndim)
    where = _wrapped(indices, x.shape[axis])
    how = call.get("reduction", "none")
    if how == "none":
        return x.scatter(axis, where, updates)
    return x.scatter_reduce(axis, where, updates, _REDUCE[how], include_self=True)


@operator("ScatterND")
def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Puts slices by index tuples."""
    depth, how = indices.shape[-1], call.get("reduction", "none")
    parts = tuple(_wrapped(indices[..., i], x.shape[i]) for i in range(depth))
    if how in ("none", "add"):
        return x.index_put(parts, updates, accumulate=how == "add")
    flat = torch.zeros(parts[0].shape, dtype=torch.int64)
    for part, size in zip(parts, x.shape[:depth], strict=True):
        flat = flat * size + part
    tail = x.shape[depth:]
    rows = x.reshape(-1, *tail)
    spread = flat.reshape(-1, *([1] * len(tail))).expand(-1, *tail)
    done = rows.scatter_reduce(0, spread, updates.reshape(-1, *tail), _REDUCE[how], include_self=True)
    return done.reshape(x.shape)


@operator("TensorScatter")
def tensor_scatter(call: Call, past: Tensor, update: Tensor, write: Tensor | None = None) -> Tensor:
    """Writes a key-value update into a cache, at a start per batch row, wrapping where circular."""
    axis = axis_of(call.get("axis", -2), past.ndim)
    length, size = update.shape[axis], past.shape[axis]
    starts = torch.zeros(past.shape[0], dtype=torch.int64) if write is None else write.to(torch.int64)
    where = starts.reshape(-1, 1) + torch.arange(length)
    if call.get("mode", "linear") == "circular":
        where = where % size
    shape = [1] * past.ndim
    shape[0], shape[axis] = past.shape[0], length
    return past.scatter(axis, where.reshape(shape).expand(update.shape), update)


@operator("OneHot")
def one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """A new axis with one value on and the rest off."""
    count = int(depth.reshape(-1)[0].item())
    axis = axis_of(call.get("axis", -1), indices.ndim + 1)
    wrapped = _wrapped(indices, count).unsqueeze(axis)
    shape = [1] * (indices.ndim + 1)
    shape[axis] = count
    hot = wrapped == torch.arange(count).reshape(shape)
    return torch.where(hot, values[1], values[0])


@operator("NonZero")
def non_zero(_call: Call, x: Tensor) -> Tensor:
    """Coordinates of what is not zero, (rank, n)."""
    return torch.nonzero(x).T.contiguous() if x.ndim else torch.nonzero(x.reshape(1)).T[:0]


@operator("Compress")
def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    """The slices whose condition holds."""
    axis = call.get("axis")
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


@operator("Slice")
def slice_(call: Call, x: Any, *bounds: Tensor) -> Any:
    """Ranges of axes; from operator set 10 the bounds are inputs."""
    if call.version < 10:
        starts, ends = call.attributes["starts"], call.attributes["ends"]
        axes, steps = call.get("axes"), None
    else:
        starts, ends = ints(bounds[0]) or [], ints(bounds[1]) or []
        axes = ints(bounds[2]) if len(bounds) > 2 else None
        steps = ints(bounds[3]) if len(bounds) > 3 else None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _slice_axis(x, start, end, axis_of(axis, x.ndim), step)
    return x


def _slice_axis(x: Tensor, start: int, end: int, axis: int, step: int) -> Tensor:
    size = x.shape[axis]
    chosen = range(size)[slice(start, end if step > 0 or end >= -size else None, step)]
    if step > 0:
        if len(chosen) == size:
            return x
        window = x.narrow(axis, chosen.start if len(chosen) else 0, max(0, chosen.stop - chosen.start))
        return window if step == 1 else window[(slice(None),) * axis + (slice(None, None, step),)]
    return x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))


@operator("ReverseSequence")
def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """Reverses the first values of each row."""
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    steps = torch.arange(x.shape[time]).reshape(-1, 1)
    last = lengths.reshape(1, -1)
    where = torch.where(steps < last, last - 1 - steps, steps)  # (T, B)
    where = where if time < batch else where.T
    shape = [1] * x.ndim
    shape[time], shape[batch] = x.shape[time], x.shape[batch]
    return torch.gather(x, time, where.reshape(shape).expand(x.shape))


@operator("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(_call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Columns of the last axis."""
    return x[..., indices.reshape(-1)]


@operator("Binarizer", domain="ai.onnx.ml")
def binarizer(call: Call, x: Tensor) -> Tensor:
    """1 above the threshold, else 0."""
    return (x > call.get("threshold", 0.0)).to(x.dtype)
