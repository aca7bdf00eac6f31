"""Other ways to write a convolution as two smaller ones.

- *spatial*: kh×1 with r filters, then 1×kw. W as a matrix ((c, i), (j, o)) has rank r.
- *depthwise*: m filters of its own for every input channel, then 1×1. For every channel c the matrix
  ((i, j), o) has rank m.

Both are solved by singular value decomposition in the metric M = L·Lᵀ of the outputs: W·L is decomposed, and L⁻¹
goes into the second factor.

Source: Jaderberg, Vedaldi, Zisserman 2014, *Speeding up Convolutional Neural Networks with Low Rank
Expansions*, scheme 2; Guo et al. 2018, *Network Decoupling: From Regular to Depthwise Separable Convolutions*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array: TypeAlias = npt.NDArray[Any]
Form: TypeAlias = Literal["channels", "spatial", "depthwise"]


def form_for(node: ir.Node, shape: Sequence[int], wanted: Form) -> Form:
    """The form that a layer gets: the wanted one where its kernel has it, else the plain one."""
    kernel = shape[2:]
    if node.op_type != "Conv" or wanted == "channels":
        return "channels"
    if wanted == "spatial":
        return "spatial" if len(kernel) == 2 and min(kernel) > 1 else "channels"
    return "depthwise" if int(np.prod(kernel)) > 1 else "channels"


def per_rank(form: Form, shape: Sequence[int]) -> int:
    """Weights that one more rank costs; `shape` is that of the weights."""
    out, channels, *kernel = shape
    if form == "spatial":
        return channels * kernel[0] + kernel[1] * out
    return channels * int(np.prod(kernel)) + channels * out


def factor_shapes(form: Form, shape: Sequence[int], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of both weights at a rank."""
    out, channels, *kernel = shape
    if form == "spatial":
        return (rank, channels, kernel[0], 1), (out, rank, 1, kernel[1])
    return (channels * rank, 1, *kernel), (out, channels * rank, *[1] * len(kernel))


def decompose(form: Form, weight: Array, metric: Array) -> tuple[Array, Array, Array]:
    """Energies by rank, and both factors at full rank (rank first).

    Args:
        form: 'spatial' or 'depthwise'.
        weight: (out, in, *kernel).
        metric: L (out, out).
    """
    out, channels, *kernel = weight.shape
    inverse = np.linalg.inv(metric)
    if form == "spatial":
        moved = weight.transpose(1, 2, 3, 0) @ metric  # (in, kh, kw, out)
        u, s, vt = np.linalg.svd(moved.reshape(channels * kernel[0], -1), full_matrices=False)
        first = (u * np.sqrt(s)).T.reshape(-1, channels, kernel[0], 1)
        second = (np.sqrt(s)[:, None] * vt).reshape(-1, kernel[1], out) @ inverse
        return s**2, first, second.transpose(0, 2, 1)[:, :, None, :]  # (r, out, 1, kw)
    taps = int(np.prod(kernel))
    moved = weight.reshape(out, channels, taps).transpose(1, 2, 0) @ metric  # (in, taps, out)
    u, s, vt = np.linalg.svd(moved, full_matrices=False)  # (in, taps, m), (in, m), (in, m, out)
    root = np.sqrt(s)
    first = (u * root[:, None, :]).transpose(2, 0, 1).reshape(-1, channels, *kernel)  # (m, in, *kernel)
    second = ((root[:, :, None] * vt) @ inverse).transpose(1, 0, 2)  # (m, in, out)
    return (s**2).sum(0), first, second


def cut(form: Form, first: Array, second: Array, rank: int) -> tuple[Array, Array]:
    """Both weights as the two nodes take them."""
    if form == "spatial":
        return first[:rank], np.ascontiguousarray(second[:rank].swapaxes(0, 1))
    filters, mix = first[:rank].swapaxes(0, 1), second[:rank].swapaxes(0, 1)  # (in, m, *kernel), (in, m, out)
    channels, count, *kernel = filters.shape
    pointwise = mix.reshape(channels * count, -1).T
    return filters.reshape(channels * count, 1, *kernel), pointwise.reshape(
        *pointwise.shape, *[1] * len(kernel)
    )


def attributes(form: Form, node: ir.Node, shape: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes of both convolutions."""
    own = {name: a.value for name, a in node.attributes.items()}
    rank = len(shape) - 2
    ones = [1] * rank
    if form != "spatial":
        first = own | ({"group": shape[1]} if form == "depthwise" else {})
        return first, {"kernel_shape": ones}
    strides, dilations = (list(own.get(n) or ones) for n in ("strides", "dilations"))
    pads = list(own.get("pads") or [0, 0, 0, 0])
    auto = {"auto_pad": own["auto_pad"]} if own.get("auto_pad", "NOTSET") != "NOTSET" else {}
    down = {"kernel_shape": [shape[2], 1], "strides": [strides[0], 1], "dilations": [dilations[0], 1]}
    across = {"kernel_shape": [1, shape[3]], "strides": [1, strides[1]], "dilations": [1, dilations[1]]}
    if auto:
        return down | auto, across | auto
    return down | {"pads": [pads[0], 0, pads[2], 0]}, across | {"pads": [0, pads[1], 0, pads[3]]}
