"""Fourier transforms and mel weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from studio.engine.trainable.operators.registry import Call, axis_of, operator
from studio.engine.trainable.values import CARRIED


@operator("DFT")
def dft(call: Call, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    """Discrete Fourier transform; the last axis holds real and imaginary parts."""
    default = 1 if call.version < 20 else -2
    over = axis_of(call.get("axis", default) if axis is None else int(axis.item()), x.ndim)
    inverse, onesided = bool(call.get("inverse", 0)), bool(call.get("onesided", 0))
    n = None if length is None else int(length.item())
    if inverse and onesided:
        count = n if n is not None else 2 * (x.shape[over] - 1)
        return torch.fft.irfft(torch.view_as_complex(x.contiguous()), count, over).unsqueeze(-1)
    values = (
        torch.view_as_complex(x.contiguous())
        if x.shape[-1] == 2
        else torch.complex(x[..., 0], torch.zeros_like(x[..., 0]))
    )
    result = torch.fft.ifft(values, n, over) if inverse else torch.fft.fft(values, n, over)
    if onesided:
        result = result.narrow(over, 0, result.shape[over] // 2 + 1)
    return torch.view_as_real(result)


@operator("STFT")
def stft(
    call: Call, x: Tensor, step: Tensor, window: Tensor | None = None, length: Tensor | None = None
) -> Tensor:
    """Short-time Fourier transform of (N, T, 1|2) → (N, frames, bins, 2)."""
    size = (
        int(length.item()) if length is not None else (window.shape[0] if window is not None else x.shape[1])
    )
    frames = x.unfold(1, size, int(step.item())).transpose(-1, -2)  # (N, frames, size, parts)
    if window is not None:
        frames = frames * window.reshape(1, 1, -1, 1)
    values = (
        torch.view_as_complex(frames.contiguous())
        if x.shape[-1] == 2
        else torch.complex(frames[..., 0], torch.zeros_like(frames[..., 0]))
    )
    result = torch.fft.fft(values, dim=2)
    if call.get("onesided", 1):
        result = result[:, :, : size // 2 + 1]
    return torch.view_as_real(result)


@operator("MelWeightMatrix")
def mel_weights(call: Call, bins: Tensor, length: Tensor, rate: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Triangular filters, (spectrum bins, mel bins)."""
    count, spectrum = int(bins.item()), int(length.item()) // 2 + 1
    edges = np.arange(count + 2, dtype=np.float64)
    low_mel, high_mel = (2595 * np.log10(1 + v.item() / 700) for v in (low, high))
    hertz = 700 * (10 ** ((edges * (high_mel - low_mel) / edges.shape[0] + low_mel) / 2595) - 1)
    places = (((int(length.item()) + 1) * hertz) // rate.item()).astype(int)
    weights = torch.zeros(spectrum, count)
    for i in range(count):
        left, middle, right = places[i : i + 3]
        if middle == left:
            weights[middle, i] = 1
        else:
            for j in range(left, middle + 1):
                weights[j, i] = (j - left) / (middle - left)
        for j in range(middle, right):
            weights[j, i] = (right - j) / (right - middle)
    return weights.to(CARRIED[ir.DataType(call.get("output_datatype", ir.DataType.FLOAT))])
