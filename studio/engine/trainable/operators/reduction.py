"""Operators that fold axes: sums, extremes, softmax and their kin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from studio.engine.trainable.operators.registry import Call, axis_of, ints, operator


def _reduced_axes(call: Call, x: Tensor, axes: Tensor | None) -> list[int]:
    """The axes to fold; an empty list folds none."""
    chosen = ints(axes) if axes is not None else call.get("axes")
    if not chosen:
        return [] if call.get("noop_with_empty_axes", 0) else list(range(x.ndim))
    return [axis_of(a, x.ndim) for a in chosen]


def _extreme(x: Tensor, axes: list[int], keep: bool, largest: bool) -> Tensor:
    if any(x.shape[a] == 0 for a in axes):  # the neutral element
        shape = [1 if i in axes else n for i, n in enumerate(x.shape)]
        if x.dtype == torch.bool:
            result = torch.full(shape, not largest)
        elif x.is_floating_point():
            result = torch.full(shape, float("-inf") if largest else float("inf"), dtype=x.dtype)
        else:
            info = torch.iinfo(x.dtype)
            result = torch.full(shape, info.min if largest else info.max, dtype=x.dtype)
        return result if keep else result.reshape([n for i, n in enumerate(x.shape) if i not in axes])
    if x.dtype == torch.bool:
        whole = x.to(torch.uint8)
        return (whole.amax(axes, keep) if largest else whole.amin(axes, keep)).to(torch.bool)
    return x.amax(axes, keep) if largest else x.amin(axes, keep)


@operator(
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
)
def reduce(call: Call, x: Tensor, axes_input: Tensor | None = None) -> Tensor:
    """Folds the chosen axes (all by default)."""
    axes = _reduced_axes(call, x, axes_input)
    keep = bool(call.get("keepdims", 1))
    kind = call.op.removeprefix("Reduce")
    if kind in ("L1", "L2", "SumSquare"):
        x = x.abs() if kind == "L1" else x * x
    elif kind == "LogSumExp" and axes and x.is_floating_point():
        return torch.logsumexp(x, axes, keep)
    elif kind == "LogSumExp":
        x = x.exp()
    if axes:
        if kind == "Mean":
            x = x.mean(axes, keep) if x.is_floating_point() else x.sum(axes, keep) // _count(x, axes)
        elif kind in ("Max", "Min"):
            x = _extreme(x, axes, keep, kind == "Max")
        elif kind == "Prod":
            for axis in sorted(axes, reverse=True):
                x = x.prod(axis, keep, dtype=x.dtype)
        else:
            x = x.sum(axes, keep, dtype=x.dtype)
    if kind == "L2":
        return x.sqrt()
    return x.log() if kind in ("LogSum", "LogSumExp") else x


def _count(x: Tensor, axes: list[int]) -> int:
    total = 1
    for axis in axes:
        total *= x.shape[axis]
    return total


@operator("ArgMax", "ArgMin")
def arg_extreme(call: Call, x: Tensor) -> Tensor:
    """The first index of the extreme, or the last where the node says so."""
    axis, keep = axis_of(call.get("axis", 0), x.ndim), bool(call.get("keepdims", 1))
    choose = torch.argmax if call.op == "ArgMax" else torch.argmin
    if call.get("select_last_index", 0):
        return x.shape[axis] - 1 - choose(x.flip(axis), axis, keep)
    return choose(x, axis, keep)


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    """Over one axis; before operator set 13 over all axes from `axis` on."""
    shape = x.shape
    if call.version < 13:
        axis = axis_of(call.get("axis", 1), x.ndim)
        x, over = (x.flatten(axis), axis) if axis < x.ndim else (x.unsqueeze(-1), -1)
    else:
        over = call.get("axis", -1)
    if call.op == "Hardmax":
        result = torch.zeros_like(x).scatter(over, x.argmax(over, keepdim=True), 1.0)
    elif call.op == "Softmax":
        result = torch.softmax(x, over)
    else:
        result = torch.log_softmax(x, over)
    return result.reshape(shape)


@operator("CumSum", "CumProd")
def cumulate(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """Running sum or product, exclusive or backwards where asked."""
    over = axis_of(int(axis.item()), x.ndim)
    if call.get("reverse", 0):
        x = x.flip(over)
    if call.get("exclusive", 0):
        first = torch.full_like(x.narrow(over, 0, 1), 0 if call.op == "CumSum" else 1)
        x = torch.cat((first, x.narrow(over, 0, x.shape[over] - 1)), over)
    result = x.cumsum(over, dtype=x.dtype) if call.op == "CumSum" else x.cumprod(over, dtype=x.dtype)
    return result.flip(over) if call.get("reverse", 0) else result


@operator("LpNormalization")
def lp_normalize(call: Call, x: Tensor) -> Tensor:
    """To unit norm along an axis; a zero vector stays zero."""
    norm = torch.linalg.vector_norm(x, call.get("p", 2), call.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("TopK")
def top_k(call: Call, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest), the lower index first on ties."""
    axis = axis_of(call.get("axis", -1), x.ndim)
    count = int(call.attributes["k"] if k is None else k.item())
    values, indices = torch.sort(x, dim=axis, descending=bool(call.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


@operator("Unique")
def unique(call: Call, x: Tensor) -> Any:
    """Distinct values (or slices along an axis), sorted or in order of appearance."""
    axis = call.get("axis")
    dim = None if axis is None else axis_of(axis, x.ndim)
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=dim)
    inverse = inverse.reshape(-1)
    places = torch.arange(inverse.numel())
    first = torch.full((counts.numel(),), inverse.numel()).scatter_reduce(0, inverse, places, "amin")
    if not call.get("sorted", 1):
        order = torch.argsort(first)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.numel())
        values = values.index_select(0 if dim is None else dim, order)
        first, counts, inverse = first[order], counts[order], rank[inverse]
    return (values, first, inverse, counts)[: max(call.outputs, 1)]
