"""Repair without labels: what quantization has shifted on average is put back into the biases.

Equation: b' = b + (W − Ŵ)·E[x], with E[x] the mean input by channel over the calibration data and Ŵ the weights that
the integers stand for. At the borders of an image a kernel's outer taps meet padding; each tap's mean is scaled by
the share of positions at which it meets the image.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", §4.2 (empirical).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine.quantization.qdq import out_axis
from studio.engine.quantization.simplify import ints

Array: TypeAlias = npt.NDArray[Any]


def mean_output(node: ir.Node, weight: Array, mean: Array, size: tuple[int, ...] | None) -> Array:
    """E[W·x] by output channel, without bias.

    Args:
        node: Conv, Gemm or MatMul.
        weight: (out, in / groups, *kernel), or 2-D with the layer's own orientation.
        mean: E[x] by input channel.
        size: spatial size of the input; None where it is not known (then padding is ignored).
    """
    if node.op_type != "Conv":
        return np.asarray(weight @ mean if out_axis(node) == 0 else mean @ weight)
    group = node.attributes.get("group")
    groups = 1 if group is None else group.as_int()
    share = _inside(node, weight.shape[2:], size)
    taps = (weight * share).reshape(weight.shape[0], weight.shape[1], -1).sum(-1)  # (out, in / groups)
    inputs = mean.reshape(groups, 1, -1)
    return np.asarray((taps.reshape(groups, -1, taps.shape[1]) * inputs).sum(-1).ravel())


def _inside(node: ir.Node, kernel: tuple[int, ...], size: tuple[int, ...] | None) -> Array:
    """For each tap of the kernel, the share of output positions at which it meets the image."""
    rank = len(kernel)
    result = np.ones(kernel)
    if size is None or len(size) != rank:
        return result
    pads, strides = ints(node, "pads", [0] * 2 * rank), ints(node, "strides", [1] * rank)
    dilations = ints(node, "dilations", [1] * rank)
    for axis in range(rank):
        extent = dilations[axis] * (kernel[axis] - 1) + 1
        count = (size[axis] + pads[axis] + pads[rank + axis] - extent) // strides[axis] + 1
        start = np.arange(max(count, 1)) * strides[axis] - pads[axis]
        at = start[None, :] + dilations[axis] * np.arange(kernel[axis])[:, None]
        share = ((at >= 0) & (at < size[axis])).mean(axis=1)
        result = result * share.reshape([-1 if i == axis else 1 for i in range(rank)])
    return result
