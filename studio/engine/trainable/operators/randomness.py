"""Operators that draw random numbers; an inference graph seldom holds any."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from studio.engine.trainable.operators.registry import Call, operator
from studio.engine.trainable.values import CARRIED


@operator("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike")
def draw(call: Call, like: Tensor | None = None) -> Tensor:
    """Normal or uniform values."""
    shape = list(call.attributes["shape"]) if like is None else list(like.shape)
    default = torch.float32 if like is None else like.dtype
    dtype = CARRIED[ir.DataType(call.attributes["dtype"])] if "dtype" in call.attributes else default
    if call.op.startswith("RandomNormal"):
        return torch.randn(shape, dtype=dtype) * call.get("scale", 1.0) + call.get("mean", 0.0)
    low, high = call.get("low", 0.0), call.get("high", 1.0)
    return torch.rand(shape, dtype=dtype) * (high - low) + low


@operator("Bernoulli")
def bernoulli(call: Call, x: Tensor) -> Tensor:
    """Ones with probability x."""
    dtype = CARRIED[ir.DataType(call.attributes["dtype"])] if "dtype" in call.attributes else x.dtype
    return torch.bernoulli(x).to(dtype)


@operator("Multinomial")
def multinomial(call: Call, x: Tensor) -> Tensor:
    """Draws from unnormalised log probabilities."""
    dtype = CARRIED[ir.DataType(call.get("dtype", ir.DataType.INT32))]
    return torch.multinomial(x.softmax(-1), call.get("sample_size", 1), replacement=True).to(dtype)
