"""Quantized values with straight-through gradients.

Rounding passes the gradient unchanged inside the representable range and stops it outside
(Source: Bengio, Léonard, Courville 2013, *Estimating or Propagating Gradients Through Stochastic
Neurons*; Jacob et al. 2018). Codes that carry a gradient stay floats, so that a `DequantizeLinear`
further on can pass it back; without gradients they are the integers that ONNX says they are.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from studio.engine.trainable.operators.elementwise import to_type
from studio.engine.trainable.operators.registry import Call, axis_of, operator
from studio.engine.trainable.values import CARRIED, RANGES, onnx_type

D = ir.DataType


def round_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes as if nothing had happened."""
    return x + (x.round() - x).detach()


def codes(x: Tensor, scale: Tensor, zero: Tensor | None, low: int, high: int) -> Tensor:
    """round(x / scale) + zero in low..high, as floats, with straight-through gradients."""
    level = round_through(x / scale)
    return (level if zero is None else level + zero).clamp(low, high)


def spread(per_part: Tensor, like: Tensor, axis: int, block: int = 0) -> Tensor:
    """Scales or zero points so that they broadcast against `like`.

    Args:
        per_part: one value; one per slice of `axis`; or with `block` one per block along `axis`.
        like: the tensor that is scaled.
        axis: of `like`.
        block: values of `axis` that share one scale; 0 = per tensor or per axis.
    """
    if per_part.numel() == 1 and per_part.ndim <= 1:
        return per_part.reshape(())
    axis = axis_of(axis, like.ndim)
    if block:
        return per_part.repeat_interleave(block, axis).narrow(axis, 0, like.shape[axis])
    shape = [1] * like.ndim
    shape[axis] = like.shape[axis]
    return per_part.reshape(shape)


def code_type(call: Call, zero: Tensor | None) -> ir.DataType:
    """The integer (or float8) type of a quantizer's codes."""
    if zero is not None and call.input_types[2] is not None:
        return call.input_types[2]
    if zero is not None:
        return onnx_type(zero.dtype)
    stated = call.get("output_dtype", 0)
    return D(stated) if stated else D.UINT8


@operator("QuantizeLinear")
@operator("QuantizeLinear", domain="com.microsoft")
def quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Codes of a tensor, per tensor, per axis or per block."""
    target = code_type(call, zero)
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    precision = call.get("precision", 0)
    wide = CARRIED[D(precision)] if precision else torch.promote_types(x.dtype, scale.dtype)
    scale_ = spread(scale, x, axis, block).to(wide)
    if target not in RANGES:  # float8 and float4
        return to_type((x.to(wide) / scale_).to(torch.float32), target, bool(call.get("saturate", 1)))
    zero_ = None if zero is None else spread(zero, x, axis, block).to(torch.float32)
    if wide == torch.float16:  # the level may exceed half precision
        wide = torch.float32
    result = codes(x.to(wide), scale_.to(wide), zero_, *RANGES[target])
    return result if result.requires_grad else result.to(CARRIED[target])


@operator("DequantizeLinear")
@operator("DequantizeLinear", domain="com.microsoft")
def dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(codes − zero) · scale."""
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    scale_ = spread(scale, x, axis, block)
    wide = x if x.dtype.is_floating_point and x.dtype.itemsize > 1 else x.to(torch.float32)
    if zero is not None and not zero.is_floating_point():
        wide = wide - spread(zero, x, axis, block).to(torch.float32)
    stated = call.get("output_dtype", 0)
    result = wide * scale_.to(wide.dtype)
    target = CARRIED[call.float_type(D(stated))] if stated else scale.dtype
    return result.to(target)


@operator("DynamicQuantizeLinear")
def dynamic_quantize(_call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 codes with a range taken from the tensor itself."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / scale), 0, 255).detach()
    result = codes(x, scale, zero, 0, 255)
    if result.requires_grad:
        return result, scale, zero.to(torch.uint8)
    return result.to(torch.uint8), scale, zero.to(torch.uint8)


def _centred(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """Codes less their zero point, as exact floats (float64 holds every int32 sum)."""
    wide = x.to(torch.float64)
    return wide if zero is None else wide - spread(zero, x, axis).to(torch.float64)


@operator("MatMulInteger")
def matmul_integer(
    _call: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """int32 product of codes; a zero point may be per row of A or per column of B."""
    left = a.to(torch.float64)
    if a_zero is not None:
        left = left - (a_zero.reshape(-1, 1) if a_zero.ndim == 1 and a_zero.numel() > 1 else a_zero).to(
            torch.float64
        )
    product = left @ _centred(b, b_zero, -1)
    return product.to(torch.float32) if product.requires_grad else product.to(torch.int32)


@operator("ConvInteger")
def conv_integer(
    call: Call, x: Tensor, weight: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    """int32 convolution of codes."""
    from studio.engine.trainable.operators.convolution import conv

    product = conv(call, _centred(x, x_zero, 1), _centred(weight, w_zero, 0))
    return product.to(torch.float32) if product.requires_grad else product.to(torch.int32)


def _requantize(y: Tensor, scale: Tensor, zero: Tensor, target: ir.DataType) -> Tensor:
    result = codes(
        y.to(torch.float32), scale.reshape(()), zero.reshape(()).to(torch.float32), *RANGES[target]
    )
    return result if result.requires_grad else result.to(CARRIED[target])


@operator("QLinearMatMul")
def qlinear_matmul(
    call: Call, a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor,
) -> Tensor:  # fmt: skip
    """Codes in, codes out."""
    row = a_scale.ndim == 1 and a_scale.numel() > 1
    left = a.to(torch.float64) - (a_zero.reshape(-1, 1) if row else a_zero).to(torch.float64)
    left = left * (a_scale.reshape(-1, 1) if row else a_scale).to(torch.float64)
    right = _centred(b, b_zero, -1) * spread(b_scale, b, -1).to(torch.float64)
    target = call.input_types[7] or onnx_type(y_zero.dtype)
    return _requantize(left @ right, y_scale, y_zero, target)


@operator("QLinearConv")
def qlinear_conv(
    call: Call, x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Codes in, codes out; the int32 bias has scale x·w."""
    from studio.engine.trainable.operators.convolution import conv

    weight = _centred(w, w_zero, 0) * spread(w_scale, w, 0).to(torch.float64)
    data = _centred(x, x_zero, 1) * x_scale.to(torch.float64)
    offset = (
        None
        if bias is None
        else bias.to(torch.float64) * x_scale.to(torch.float64) * w_scale.to(torch.float64)
    )
    target = call.input_types[7] or onnx_type(y_zero.dtype)
    return _requantize(conv(call, data, weight, offset), y_scale, y_zero, target)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Codes of 2, 4 or 8 bits from the bytes of the last axis, the lowest first."""
    places = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(places, -1).reshape(*packed.shape[:-1], -1)


@operator("MatMulNBits", domain="com.microsoft")
def matmul_n_bits(
    call: Call,
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    _g: Any = None,
    bias: Tensor | None = None,
) -> Tensor:
    """A (…, K) times weights (N, K) stored in blocks of 2-, 4- or 8-bit codes.

    Source: onnxruntime contrib operators, MatMulNBits. Codes that carry a gradient arrive as floats (N, K).
    """
    k, n, bits, block = (call.get(name, 4) for name in ("K", "N", "bits", "block_size"))
    blocks = -(-k // block)
    if b.is_floating_point():
        level = F.pad(b, (0, blocks * block - k)).reshape(n, blocks, block)
    else:
        level = unpack(b, bits).reshape(n, blocks, block).to(a.dtype)
    if zeros is None:
        middle: Any = float(2 ** (bits - 1))
    elif zeros.is_floating_point():
        middle = zeros.reshape(n, blocks, 1)
    else:
        rows = zeros.reshape(n, -1)
        middle = unpack(rows, bits)[:, :blocks].unsqueeze(-1).to(a.dtype)
    weight = ((level - middle) * scales.reshape(n, blocks, 1).to(a.dtype)).reshape(n, -1)[:, :k]
    return F.linear(a, weight, bias)
