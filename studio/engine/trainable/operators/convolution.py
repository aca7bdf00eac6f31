"""Convolutions, pooling and matrix products."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from studio.engine.trainable.operators.registry import Call, ints, operator

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def spatial_pads(
    call: Call, size: list[int], kernel: list[int], strides: list[int], dilations: list[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after every spatial axis, `auto_pad` worked out."""
    mode = call.get("auto_pad", "NOTSET")
    rank = len(size)
    if mode in ("NOTSET", ""):
        pads = call.get("pads") or [0] * 2 * rank
        return list(pads[:rank]), list(pads[rank:])
    if mode == "VALID":
        return [0] * rank, [0] * rank
    before, after = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        less, more = total // 2, total - total // 2
        before.append(less if mode == "SAME_UPPER" else more)
        after.append(more if mode == "SAME_UPPER" else less)
    return before, after


def pad_unevenly(
    x: Tensor, before: list[int], after: list[int], value: float = 0.0
) -> tuple[Tensor, list[int]]:
    """Pads where both ends differ; returns the padding left for the kernel itself to do."""
    if before == after:
        return x, before
    flat = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return F.pad(x, flat, value=value), [0] * len(before)


def _window(call: Call, x: Tensor, kernel: list[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    rank = len(kernel)
    strides = list(call.get("strides") or [1] * rank)
    dilations = list(call.get("dilations") or [1] * rank)
    before, after = spatial_pads(call, list(x.shape[2:]), kernel, strides, dilations)
    return strides, dilations, before, after


@operator("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X (N, C, …), weight (M, C/group, …)."""
    ready = call.memory.get(x.shape[2:])
    if ready is None:
        ready = call.memory[x.shape[2:]] = _window(call, x, list(weight.shape[2:]))
    strides, dilations, before, after = ready
    x, padding = pad_unevenly(x, before, after)
    return _CONV[weight.ndim - 2](x, weight, bias, strides, padding, dilations, call.get("group", 1))


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X (N, C, …), weight (C, M/group, …)."""
    rank = weight.ndim - 2
    kernel, strides = list(weight.shape[2:]), list(call.get("strides") or [1] * rank)
    dilations = list(call.get("dilations") or [1] * rank)
    extra = list(call.get("output_padding") or [0] * rank)
    full = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(x.shape[2:], strides, kernel, dilations, strict=True)
    ]
    shape = call.get("output_shape")
    mode = call.get("auto_pad", "NOTSET")
    if shape or mode.startswith("SAME"):
        wanted = list(shape)[-rank:] if shape else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        totals = [f + e - w for f, e, w in zip(full, extra, wanted, strict=True)]
        halves = [(t // 2, t - t // 2) for t in totals]
        before = [b if mode == "SAME_UPPER" else a for b, a in halves]
        after = [a if mode == "SAME_UPPER" else b for b, a in halves]
    else:
        pads = [0] * 2 * rank if mode == "VALID" else call.get("pads") or [0] * 2 * rank
        before, after = list(pads[:rank]), list(pads[rank:])
    group = call.get("group", 1)
    function = _CONV_TRANSPOSE[rank]
    if (
        before == after
        and all(b >= 0 for b in before)
        and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
    ):
        return function(x, weight, bias, strides, before, extra, group, dilations)
    y = function(x, weight, bias, strides, 0, 0, group, dilations)
    flat: list[int] = []
    for b, a, e in zip(reversed(before), reversed(after), reversed(extra), strict=True):
        flat += [-b, e - a]
    grown = F.pad(y, flat)
    if bias is not None and any(
        n > 0 for n in flat
    ):  # what was added beyond the kernel's reach is bias alone
        grown = grown + (1 - F.pad(torch.ones_like(y), flat)) * bias.reshape(1, -1, *[1] * rank)
    return grown


@operator("DeformConv")
def deform_conv(
    call: Call,
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Two-dimensional convolution at offset places. Source: ONNX operators, DeformConv 19."""
    n, channels, height, width = x.shape
    kh, kw = weight.shape[2:]
    strides, dilations = list(call.get("strides") or [1, 1]), list(call.get("dilations") or [1, 1])
    before, _after = spatial_pads(call, [height, width], [kh, kw], strides, dilations)
    groups, sets = call.get("group", 1), call.get("offset_group", 1)
    oh, ow = offset.shape[2:]
    offset = offset.reshape(n, sets, kh * kw, 2, oh, ow)
    taps = list(product(range(kh), range(kw)))
    rows = torch.arange(oh) * strides[0] - before[0]
    columns = torch.arange(ow) * strides[1] - before[1]
    base_y = torch.stack([rows.reshape(-1, 1).expand(oh, ow) + i * dilations[0] for i, _ in taps])
    base_x = torch.stack([columns.reshape(1, -1).expand(oh, ow) + j * dilations[1] for _, j in taps])
    y, z = base_y + offset[:, :, :, 0], base_x + offset[:, :, :, 1]  # (N, sets, taps, oh, ow)
    grid = torch.stack(((z + 0.5) * 2 / width - 1, (y + 0.5) * 2 / height - 1), -1)
    images = x.reshape(n * sets, channels // sets, height, width)
    sampled = F.grid_sample(
        images, grid.reshape(n * sets, -1, ow, 2), "bilinear", "zeros", align_corners=False
    )
    sampled = sampled.reshape(n, sets, channels // sets, kh * kw, oh, ow)
    if mask is not None:
        sampled = sampled * mask.reshape(n, sets, 1, kh * kw, oh, ow)
    patches = sampled.reshape(n, groups, channels // groups * kh * kw, oh * ow)
    filters = weight.reshape(groups, -1, weight.shape[1] * kh * kw)
    out = torch.einsum("gok,ngkp->ngop", filters, patches).reshape(n, -1, oh, ow)
    return out if bias is None else out + bias.reshape(1, -1, 1, 1)


def pool_geometry(call: Call, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations and padding; what `ceil_mode` reaches further is padding after."""
    kernel = list(call.attributes["kernel_shape"])
    strides, dilations, before, after = _window(call, x, kernel)
    if call.get("ceil_mode", 0):
        after = list(after)
        for i, n in enumerate(x.shape[2:]):
            reach = (kernel[i] - 1) * dilations[i] + 1
            steps = -(-(n + before[i] + after[i] - reach) // strides[i])
            if steps * strides[i] >= n + before[i]:  # a window may not begin in the padding after
                steps -= 1
            after[i] = max(after[i], steps * strides[i] + reach - n - before[i])
    return kernel, strides, dilations, before, after


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> Any:
    """The largest value of each window, with its flat place where asked."""
    kernel, strides, dilations, before, after = pool_geometry(call, x)
    rank = len(kernel)
    whole = x if x.is_floating_point() else x.to(torch.float64)
    simple = before == after and all(2 * b <= k for b, k in zip(before, kernel, strict=True))
    padded, padding = (
        (whole, before) if simple else (F.pad(whole, _flat(before, after), value=-math.inf), [0] * rank)
    )
    if call.outputs == 1:
        return _MAX_POOL[rank](padded, kernel, strides, padding, dilations).to(x.dtype)
    values, flat = _MAX_POOL[rank](padded, kernel, strides, padding, dilations, return_indices=True)
    if not simple:
        flat = _unpadded_places(flat, list(padded.shape[2:]), before, list(x.shape[2:]))
    if call.get("storage_order", 0) and rank == 2:
        flat = flat % x.shape[3] * x.shape[2] + flat // x.shape[3]
    planes = torch.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * rank)
    return values.to(x.dtype), flat + planes * math.prod(x.shape[2:])


def _flat(before: list[int], after: list[int]) -> list[int]:
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]


def _unpadded_places(flat: Tensor, padded: list[int], before: list[int], size: list[int]) -> Tensor:
    result, scale = torch.zeros_like(flat), 1
    for n, b, inner in zip(reversed(padded), reversed(before), reversed(size), strict=True):
        result = result + (flat % n - b) * scale
        flat, scale = flat // n, scale * inner
    return result


def _pool_sum(x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    """Sums over windows of a padded tensor."""
    channels, rank = x.shape[1], len(kernel)
    ones = torch.ones(channels, 1, *kernel, dtype=x.dtype)
    return _CONV[rank](x, ones, None, strides, [0] * rank, dilations, channels)


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """Means of windows; padding counts only where asked, and never beyond the stated pads."""
    kernel, strides, dilations, before, after = pool_geometry(call, x)
    total = _pool_sum(F.pad(x, _flat(before, after)), kernel, strides, dilations)
    ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype)
    if call.get("count_include_pad", 0):
        stated = _window(call, x, kernel)
        inside = F.pad(ones, _flat(stated[2], stated[3]), value=1.0)
        beyond = [a - s for a, s in zip(after, stated[3], strict=True)]
        counted = F.pad(inside, _flat([0] * len(beyond), beyond))
    else:
        counted = F.pad(ones, _flat(before, after))
    return total / _pool_sum(counted, kernel, strides, dilations)


@operator("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    """The p-norm of windows."""
    kernel, strides, dilations, before, after = pool_geometry(call, x)
    p = call.get("p", 2)
    powers = F.pad(x.abs() ** p, _flat(before, after))
    return _pool_sum(powers, kernel, strides, dilations) ** (1 / p)


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(call: Call, x: Tensor) -> Tensor:
    """Over all spatial axes."""
    axes = list(range(2, x.ndim))
    if call.op == "GlobalAveragePool":
        return x.mean(axes, keepdim=True)
    if call.op == "GlobalMaxPool":
        return x.amax(axes, keepdim=True)
    return torch.linalg.vector_norm(x, call.get("p", 2), axes, keepdim=True)


@operator("MaxUnpool")
def max_unpool(call: Call, x: Tensor, places: Tensor, shape: Tensor | None = None) -> Tensor:
    """Puts values back at the flat places that MaxPool gave."""
    kernel = list(call.attributes["kernel_shape"])
    strides = list(call.get("strides") or [1] * len(kernel))
    pads = list(call.get("pads") or [0] * 2 * len(kernel))
    rank = len(kernel)
    inferred = [
        (n - 1) * s + k - pads[i] - pads[i + rank]
        for i, (n, s, k) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))
    ]
    full = torch.zeros(math.prod([*x.shape[:2], *inferred]), dtype=x.dtype)
    full = full.scatter(0, places.reshape(-1), x.reshape(-1)).reshape(*x.shape[:2], *inferred)
    wanted = ints(shape)
    if wanted is None or wanted == list(full.shape):
        return full
    return (
        torch.zeros(math.prod(wanted), dtype=x.dtype)
        .scatter(0, places.reshape(-1), x.reshape(-1))
        .reshape(wanted)
    )


@operator("MatMul")
def matmul(_call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Numpy's matmul."""
    return torch.matmul(a, b)


@operator("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha·A'·B' + beta·C."""
    if call.get("transA", 0):
        a = a.T
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if call.get("transB", 0) and alpha == 1 and beta == 1 and (c is None or c.ndim == 1):
        return F.linear(a, b, c)
    if call.get("transB", 0):
        b = b.T
    y = a @ b
    y = y if alpha == 1 else alpha * y
    return y if c is None else y + (c if beta == 1 else beta * c)


@operator("Einsum")
def einsum(call: Call, *inputs: Tensor) -> Tensor:
    """Einstein's sum."""
    equation = call.attributes["equation"].replace(" ", "")
    if equation.startswith("..."):
        equation = equation if "->" in equation else equation + "->..."
    return torch.einsum(equation, *inputs)


@operator("Det")
def det(_call: Call, x: Tensor) -> Tensor:
    """Determinants."""
    return torch.linalg.det(x)


@operator("Col2Im")
def col2im(call: Call, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    """Sums columns back into images of any rank: each tap of the block is added at its places."""
    size, kernel = ints(image) or [], ints(block) or []
    rank = len(size)
    strides = call.get("strides") or [1] * rank
    dilations = call.get("dilations") or [1] * rank
    pads = call.get("pads") or [0] * 2 * rank
    padded = [n + pads[i] + pads[i + rank] for i, n in enumerate(size)]
    steps = [(padded[i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(rank)]
    n = x.shape[0]
    columns = x.reshape(n, -1, *kernel, *steps)
    out = torch.zeros(n, columns.shape[1], *padded, dtype=x.dtype)
    every: tuple[Any, ...] = (slice(None), slice(None))
    for tap in product(*(range(k) for k in kernel)):
        where = tuple(
            slice(t * d, t * d + (c - 1) * s + 1, s)
            for t, d, c, s in zip(tap, dilations, steps, strides, strict=True)
        )
        out[(*every, *where)] += columns[(*every, *tap)]
    return out[(*every, *(slice(pads[i], pads[i] + size[i]) for i in range(rank)))]
