"""Normalisations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from studio.engine.trainable.operators.registry import Call, axis_of, operator


def _per_channel(v: Tensor, rank: int) -> Tensor:
    return v.reshape(1, -1, *[1] * (rank - 2))


@operator("BatchNormalization")
def batch_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Any:
    """With the stored statistics; with those of the batch where the model itself says so."""
    epsilon = call.get("epsilon", 1e-5)
    if not call.get("training_mode", 0):
        return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
    axes = [0, *range(2, x.ndim)]
    now_mean, now_variance = x.mean(axes), x.var(axes, unbiased=False)
    centred = (x - _per_channel(now_mean, x.ndim)) / torch.sqrt(_per_channel(now_variance, x.ndim) + epsilon)
    y = centred * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)
    keep = call.get("momentum", 0.9)
    return y, mean * keep + now_mean * (1 - keep), variance * keep + now_variance * (1 - keep)


@operator("InstanceNormalization")
def instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Per sample and channel."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    """Over the axes from `axis` on."""
    axis, epsilon = axis_of(call.get("axis", -1), x.ndim), call.get("epsilon", 1e-5)
    if call.outputs == 1 and scale.shape == x.shape[axis:] and (bias is None or bias.shape == scale.shape):
        return F.layer_norm(x, list(x.shape[axis:]), scale, bias, epsilon)
    axes = list(range(axis, x.ndim))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


@operator("RMSNormalization")
def rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """Root mean square over the axes from `axis` on."""
    axes = list(range(axis_of(call.get("axis", -1), x.ndim), x.ndim))
    inverse = torch.rsqrt(x.square().mean(axes, keepdim=True) + call.get("epsilon", 1e-5))
    return x * inverse * scale


@operator("GroupNormalization")
def group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Per group of channels; before operator set 21 scale and bias are per group."""
    groups, epsilon = call.attributes["num_groups"], call.get("epsilon", 1e-5)
    if scale.numel() == groups and groups != x.shape[1]:
        scale = scale.repeat_interleave(x.shape[1] // groups)
        bias = bias.repeat_interleave(x.shape[1] // groups)
    return F.group_norm(x, groups, scale, bias, epsilon)


@operator("LRN")
def local_response(call: Call, x: Tensor) -> Tensor:
    """Across neighbouring channels."""
    size = call.attributes["size"]
    squares = F.pad(x.square().flatten(2), (0, 0, (size - 1) // 2, size // 2))
    window = squares.unfold(1, size, 1).sum(-1).reshape(x.shape)
    return x / (call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * window) ** call.get("beta", 0.75)


@operator("MeanVarianceNormalization")
def mean_variance(call: Call, x: Tensor) -> Tensor:
    """To mean 0 and deviation 1 over axes."""
    axes = list(call.get("axes", [0, 2, 3]))
    mean = x.mean(axes, keepdim=True)
    deviation = ((x * x).mean(axes, keepdim=True) - mean * mean).sqrt()
    return (x - mean) / (deviation + 1e-9)
