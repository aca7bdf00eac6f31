"""Operators that move values without computing: shapes, joins, splits, padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from studio.engine.trainable.operators.registry import Call, axis_of, ints, operator
from studio.engine.trainable.values import CARRIED


@operator("Constant")
def constant(call: Call) -> Any:
    """The one attribute, as a tensor."""
    attributes = call.attributes
    for name, dtype in (
        ("value_float", torch.float32),
        ("value_floats", torch.float32),
        ("value_int", torch.int64),
        ("value_ints", torch.int64),
    ):
        if name in attributes:
            return torch.tensor(attributes[name], dtype=dtype)
    for name in ("value_string", "value_strings"):
        if name in attributes:
            return np.array(attributes[name], dtype=object)
    return attributes["value"]


@operator("Shape")
def shape(call: Call, x: Any) -> Tensor:
    """The sizes, or a range of them."""
    sizes = list(x.shape)
    return torch.tensor(sizes[call.get("start", 0) : call.get("end")], dtype=torch.int64)


@operator("Size")
def size(_call: Call, x: Any) -> Tensor:
    """The number of values."""
    return torch.tensor(math.prod(x.shape), dtype=torch.int64)


@operator("Reshape")
def reshape(call: Call, x: Any, target: Tensor | None = None) -> Any:
    """0 copies a size (unless it may not), −1 is what is left."""
    sizes = list(call.attributes["shape"]) if target is None else (ints(target) or [])
    if not call.get("allowzero", 0):
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """To two axes."""
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return (
        x.reshape(math.prod(x.shape[:axis]), -1)
        if x.numel()
        else x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    )


@operator("Squeeze")
def squeeze(call: Call, x: Any, axes: Tensor | None = None) -> Any:
    """Drops axes of size 1."""
    chosen = call.get("axes") if axes is None else ints(axes)
    if chosen is None:
        chosen = [i for i, n in enumerate(x.shape) if n == 1]
    gone = {axis_of(a, x.ndim) for a in chosen}
    return x.reshape([n for i, n in enumerate(x.shape) if i not in gone])


@operator("Unsqueeze")
def unsqueeze(call: Call, x: Any, axes: Tensor | None = None) -> Any:
    """Inserts axes of size 1."""
    chosen = (call.get("axes") if axes is None else ints(axes)) or []
    rank = x.ndim + len(chosen)
    new = {axis_of(a, rank) for a in chosen}
    sizes = iter(x.shape)
    return x.reshape([1 if i in new else next(sizes) for i in range(rank)])


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    """Reorders axes; by default reverses them."""
    order = call.get("perm")
    return x.permute(list(order) if order is not None else list(range(x.ndim))[::-1])


@operator("Expand")
def expand(_call: Call, x: Tensor, target: Tensor) -> Tensor:
    """Broadcasts, both ways."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(target) or ())))


@operator("Tile")
def tile(_call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeats along every axis."""
    return x.repeat(ints(repeats) or [])


@operator("Concat")
def concat(call: Call, *inputs: Any) -> Any:
    """Joins along an axis."""
    if not isinstance(inputs[0], Tensor):
        return np.concatenate(inputs, axis=call.attributes["axis"])
    return torch.cat(inputs, call.get("axis", 1))


@operator("Split")
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Parts of given sizes, or equal ones with a smaller last."""
    axis = axis_of(call.get("axis", 0), x.ndim)
    parts = call.get("split") if sizes is None else ints(sizes)
    if parts is None:
        each = -(-x.shape[axis] // call.outputs)
        parts = [max(0, min(each, x.shape[axis] - each * i)) for i in range(call.outputs)]
    return torch.split(x, list(parts), axis)


@operator("ConstantOfShape")
def constant_of_shape(call: Call, sizes: Tensor) -> Tensor:
    """A tensor full of one value."""
    value = call.get("value")
    value = torch.zeros(1) if value is None else value
    return value.reshape(()).expand(ints(sizes) or []).clone()


@operator("Range")
def range_(_call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Values from start to limit, exclusive."""
    first, step = start.item(), delta.item()
    count = max(0, math.ceil((limit.item() - first) / step))
    return (torch.arange(count) * delta.cpu() + start.cpu()).to(start.dtype)


@operator("EyeLike")
def eye_like(call: Call, x: Tensor) -> Tensor:
    """Ones on a diagonal."""
    dtype = CARRIED[ir.DataType(call.attributes["dtype"])] if "dtype" in call.attributes else x.dtype
    rows, columns = x.shape
    offset = torch.arange(columns).reshape(1, -1) - torch.arange(rows).reshape(-1, 1)
    return (offset == call.get("k", 0)).to(dtype)


@operator("Trilu")
def trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    """The upper or lower triangle."""
    diagonal = 0 if k is None else int(k.item())
    if x.dtype == torch.bool or x.numel() == 0:
        offset = torch.arange(x.shape[-1]).reshape(1, -1) - torch.arange(x.shape[-2]).reshape(-1, 1)
        keep = offset >= diagonal if call.get("upper", 1) else offset <= diagonal
        return torch.where(keep, x, torch.zeros_like(x))
    return torch.triu(x, diagonal) if call.get("upper", 1) else torch.tril(x, diagonal)


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Channels become pixels."""
    n, c, h, w = x.shape
    block = call.attributes["blocksize"]
    if call.get("mode", "DCR") == "DCR":
        return (
            x.reshape(n, block, block, c // block**2, h, w)
            .permute(0, 3, 4, 1, 5, 2)
            .reshape(n, c // block**2, h * block, w * block)
        )
    return F.pixel_shuffle(x, block)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Pixels become channels."""
    n, c, h, w = x.shape
    block = call.attributes["blocksize"]
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, block)
    return (
        x.reshape(n, c, h // block, block, w // block, block)
        .permute(0, 3, 5, 1, 2, 4)
        .reshape(n, c * block**2, h // block, w // block)
    )


@operator("Pad")
def pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Adds values at both ends of axes: a constant, the edge, a mirror or the other end."""
    amounts = (
        list(call.attributes.get("pads", call.get("paddings", ()))) if pads is None else (ints(pads) or [])
    )
    chosen = ints(axes) if axes is not None else list(range(x.ndim))
    chosen = [axis_of(a, x.ndim) for a in chosen or []]
    fill = call.get("value", 0.0) if value is None else value.item()
    mode = call.get("mode", "constant")
    half = len(chosen)
    before, after = (
        dict(zip(chosen, amounts[:half], strict=True)),
        dict(zip(chosen, amounts[half:], strict=True)),
    )
    if mode == "constant":
        flat = [n for axis in reversed(range(x.ndim)) for n in (before.get(axis, 0), after.get(axis, 0))]
        whole = x.to(torch.uint8) if x.dtype == torch.bool else x
        return F.pad(whole, flat, value=fill).to(x.dtype) if any(flat) else x
    for axis in chosen:
        if before[axis] or after[axis]:
            x = x.index_select(axis, _padded_index(x.shape[axis], before[axis], after[axis], mode))
    return x


def _padded_index(size: int, before: int, after: int, mode: str) -> Tensor:
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(1, 2 * (size - 1))  # reflect
    places = places % period
    return torch.where(places >= size, period - places, places)


@operator("CenterCropPad")
def center_crop_pad(call: Call, x: Tensor, target: Tensor) -> Tensor:
    """Crops or pads around the centre."""
    axes = [axis_of(a, x.ndim) for a in call.get("axes", range(x.ndim))]
    for axis, wanted in zip(axes, ints(target) or [], strict=True):
        have = x.shape[axis]
        if wanted < have:
            x = x.narrow(axis, (have - wanted) // 2, wanted)
        elif wanted > have:
            lead = (wanted - have) // 2
            flat = [0, 0] * (x.ndim - 1 - axis) + [lead, wanted - have - lead]
            x = F.pad(x, flat)
    return x
