"""Fused operators of onnxruntime. Source: onnxruntime contrib operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from studio.engine.trainable.operators.convolution import conv, gemm
from studio.engine.trainable.operators.quantization import spread, unpack
from studio.engine.trainable.operators.registry import Call, Operator, axis_of, operator

_MS = "com.microsoft"


@operator("Gelu", domain=_MS)
def gelu(_call: Call, x: Tensor) -> Tensor:
    """Exact GELU."""
    return F.gelu(x)


@operator("BiasGelu", domain=_MS)
def bias_gelu(_call: Call, x: Tensor, bias: Tensor) -> Tensor:
    """GELU after a bias."""
    return F.gelu(x + bias)


@operator("FastGelu", domain=_MS)
def fast_gelu(_call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """GELU by tanh, after an optional bias."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", domain=_MS)
def quick_gelu(call: Call, x: Tensor) -> Tensor:
    """x·sigmoid(alpha·x)."""
    return x * torch.sigmoid(call.get("alpha", 1.702) * x)


@operator("FusedMatMul", domain=_MS)
def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """alpha·A'·B'."""
    a = a.transpose(-1, -2) if call.get("transA", 0) else a
    b = b.transpose(-1, -2) if call.get("transB", 0) else b
    return call.get("alpha", 1.0) * torch.matmul(a, b)


_ACTIVATIONS: dict[str, Operator] = {
    "Relu": torch.relu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "": lambda y: y,
}


def _activate(call: Call, y: Tensor) -> Tensor:
    name = call.get("activation", "")
    parameters = call.get("activation_params") or []
    if name == "Clip":
        return F.hardtanh(y, *parameters)
    if name == "LeakyRelu":
        return F.leaky_relu(y, *(parameters or [0.01]))
    if name == "HardSigmoid":
        return torch.clamp(parameters[0] * y + parameters[1], 0, 1)
    result = _ACTIVATIONS[name](y)
    assert isinstance(result, Tensor)
    return result


@operator("FusedConv", domain=_MS)
def fused_conv(
    call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None, add: Tensor | None = None
) -> Tensor:
    """Conv, an optional addend, an activation."""
    y = conv(call, x, weight, bias)
    return _activate(call, y if add is None else y + add)


@operator("FusedGemm", domain=_MS)
def fused_gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm and an activation."""
    return _activate(call, gemm(call, a, b, c))


@operator("SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain=_MS)
def simplified_layer_norm(call: Call, x: Tensor, scale: Tensor) -> Any:
    """Root-mean-square normalisation."""
    axes = list(range(axis_of(call.get("axis", -1), x.ndim), x.ndim))
    inverse = torch.rsqrt(x.square().mean(axes, keepdim=True) + call.get("epsilon", 1e-5))
    return (x * inverse * scale, inverse)[: call.outputs] if call.outputs > 1 else x * inverse * scale


@operator("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=_MS)
def skip_layer_norm(call: Call, x: Tensor, skip: Tensor, gamma: Tensor, *rest: Tensor | None) -> Any:
    """Normalises a residual sum; the fourth output is the sum itself."""
    plain = call.op == "SkipLayerNormalization"
    beta = rest[0] if plain and rest else None
    bias = (rest[1] if len(rest) > 1 else None) if plain else (rest[0] if rest else None)
    total = x + skip if bias is None else x + skip + bias
    epsilon = call.get("epsilon", 1e-5)
    if plain:
        y = F.layer_norm(total, [total.shape[-1]], gamma, beta, epsilon)
    else:
        y = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + epsilon) * gamma
    return (y, None, None, total)[: call.outputs] if call.outputs > 1 else y


@operator("DynamicQuantizeMatMul", domain=_MS)
def dynamic_quantize_matmul(
    call: Call, a: Tensor, b: Tensor, scale: Tensor, zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """A is quantized on the fly to uint8, B holds codes."""
    from studio.engine.trainable.operators.quantization import dynamic_quantize

    level, a_scale, a_zero = dynamic_quantize(call, a)
    left = (level.to(a.dtype) - a_zero.to(a.dtype)) * a_scale
    y = left @ _weight(b, scale, zero, a)
    return y if bias is None else y + bias


@operator("MatMulIntegerToFloat", domain=_MS)
def matmul_integer_to_float(
    _call: Call, a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor,
    a_zero: Tensor | None = None, b_zero: Tensor | None = None, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """A product of codes, scaled."""
    left = (
        a.to(a_scale.dtype) if a_zero is None else a.to(a_scale.dtype) - a_zero.to(a_scale.dtype)
    ) * a_scale
    y = left @ _weight(b, b_scale, b_zero, a_scale)
    return y if bias is None else y + bias


def _weight(b: Tensor, scale: Tensor, zero: Tensor | None, like: Tensor) -> Tensor:
    level = b.to(like.dtype)
    if zero is not None:
        level = level - spread(zero, level, -1).to(like.dtype)
    return level * spread(scale, level, -1)


@operator("GatherBlockQuantized", domain=_MS)
def gather_block_quantized(
    call: Call, data: Tensor, indices: Tensor, scales: Tensor, zeros: Tensor | None = None
) -> Tensor:
    """Rows of a table that is quantized in blocks along one axis."""
    axis = call.get("gather_axis", 0)
    block = call.get("block_size", 128)
    along = axis_of(call.get("quantize_axis", 1), data.ndim)
    bits = call.get("bits", 4)
    packed = (
        data.dtype == torch.uint8
        and bits < 8
        and data.shape[along] * (8 // bits) <= scales.shape[along] * block
    )
    level = unpack(data, bits) if packed else data
    wide = level.to(scales.dtype)
    if zeros is not None:
        offset = unpack(zeros, bits) if packed else zeros
        wide = wide - spread(offset.narrow(along, 0, scales.shape[along]), wide, along, block).to(
            scales.dtype
        )
    elif data.dtype == torch.uint8:
        wide = wide - 2 ** (bits - 1)
    table = wide * spread(scales, wide, along, block)
    rows = table.index_select(axis, indices.reshape(-1).to(torch.int64))
    return rows.reshape(*table.shape[:axis], *indices.shape, *table.shape[axis + 1 :])
