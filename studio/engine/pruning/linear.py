"""A layer as the linear map it is: a matrix on one side, rows of inputs and outputs on the other.

Y (n, rows) = X (n, cols) · Wᵀ + b holds for every position n of a convolution, a transposed
convolution or a matrix product, so one least-squares solver and one Hessian serve them all.
Convolution groups (depthwise ones too) are a leading axis: X (groups, n, cols), W (groups, rows, cols).
Columns of a convolution are ordered (kernel position, input channel): N:M runs lie along the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Linear:
    """How one node's weight, input and output become matrices.

    Attributes:
        kind: which of the maps it is.
        shape: of the weight as stored.
        groups: convolution groups; 1 elsewhere.
        transposed: the stored matrix is (in, out), as MatMul's right operand is.
        strides, pads, dilations: of a convolution; pads are (begins…, ends…).
        extra: output padding of a transposed convolution.
        auto_pad: of a convolution whose padding depends on the input's size.
        scale: a factor of the product (Gemm's alpha).
    """

    kind: Literal["conv", "deconv", "matrix"]
    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    extra: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    scale: float = 1.0

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return prod(self.shape[2:]) if self.kind != "matrix" else 1

    def matrix(self, weight: Array) -> Array:
        """The stored weight as (groups, rows, cols)."""
        if self.kind == "matrix":
            return (weight.T if self.transposed else weight)[None] * self.scale
        if self.kind == "conv":  # (out, in/g, k…)
            grouped = weight.reshape(self.groups, self.shape[0] // self.groups, self.shape[1], self.taps)
            return np.ascontiguousarray(grouped.transpose(0, 1, 3, 2)).reshape(*grouped.shape[:2], -1)
        grouped = weight.reshape(
            self.groups, self.shape[0] // self.groups, self.shape[1], self.taps
        )  # (in, out/g, k…)
        return np.ascontiguousarray(grouped.transpose(0, 2, 3, 1)).reshape(self.groups, self.shape[1], -1)

    def weight(self, matrix: Array) -> Array:
        """The matrix (groups, rows, cols) in the stored form, float32."""
        if self.kind == "matrix":
            found = matrix[0] / self.scale
            found = found.T if self.transposed else found
        elif self.kind == "conv":
            grouped = matrix.reshape(self.groups, -1, self.taps, self.shape[1])
            found = grouped.transpose(0, 1, 3, 2).reshape(self.shape)
        else:
            grouped = matrix.reshape(self.groups, self.shape[1], self.taps, -1)
            found = grouped.transpose(0, 3, 1, 2).reshape(self.shape)
        return np.ascontiguousarray(found, np.float32)

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the output for an input of this shape."""
        rows = self.groups * (self.shape[1] if self.kind == "deconv" else self.shape[0] // self.groups)
        if self.kind == "matrix":
            return (*input_shape[:-1], self.shape[1 if self.transposed else 0])
        sizes = []
        for i, size in enumerate(input_shape[2:]):
            reach = (self.shape[2 + i] - 1) * self.dilations[i] + 1
            before, after = self.pads[i], self.pads[i + len(self.strides)]
            if self.kind == "deconv":
                sizes.append((size - 1) * self.strides[i] + self.extra[i] + reach - before - after)
            elif self.auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
                sizes.append(-(-size // self.strides[i]))
            else:
                sizes.append((size + before + after - reach) // self.strides[i] + 1)
        return (input_shape[0], rows, *sizes)

    def positions(self, output_shape: tuple[int, ...]) -> int:
        """How many rows an output of this shape gives."""
        if self.kind == "matrix":
            return prod(output_shape[:-1])
        return output_shape[0] * prod(output_shape[2:])

    def targets(self, y: Array, at: Array) -> Array:
        """Outputs at the positions `at` (n,) as (groups, n, rows), float32."""
        if self.kind == "matrix":
            return y.reshape(-1, y.shape[-1])[at][None].astype(np.float32, copy=False)
        flat = y.reshape(*y.shape[:2], -1)
        sample, place = np.divmod(at, flat.shape[2])
        rows = flat[sample, :, place].astype(np.float32, copy=False)
        return np.ascontiguousarray(rows.reshape(len(at), self.groups, -1).transpose(1, 0, 2))

    def rows(self, x: Array, output_shape: tuple[int, ...], at: Array) -> Array:
        """Inputs that make the outputs at the positions `at` (n,) as (groups, n, cols), float32."""
        if self.kind == "matrix":
            return x.reshape(-1, x.shape[-1])[at][None].astype(np.float32, copy=False)
        sample, *places = np.unravel_index(at, (output_shape[0], *output_shape[2:]))
        flat, inside = self._sources(x.shape[2:], output_shape[2:], places)
        found = x.reshape(*x.shape[:2], -1)[sample[:, None], :, flat]  # (n, taps, channels)
        if not inside.all():
            found = np.where(inside[:, :, None], found, 0)
        found = found.astype(np.float32, copy=False)
        grouped = found.reshape(len(at), self.taps, self.groups, -1).transpose(2, 0, 1, 3)
        return np.ascontiguousarray(grouped).reshape(self.groups, len(at), -1)

    def _sources(
        self, size: tuple[int, ...], out: tuple[int, ...], places: Sequence[Array]
    ) -> tuple[Array, Array]:
        """Which flat input position lies under every kernel position (n, taps), and whether one does."""
        taps = np.unravel_index(np.arange(self.taps), self.shape[2:])
        inside = np.ones((len(places[0]), self.taps), bool)
        flat = np.zeros((len(places[0]), self.taps), np.int64)
        for i, (place, tap, begin) in enumerate(zip(places, taps, self._begins(size, out), strict=True)):
            if self.kind == "conv":
                source = place[:, None] * self.strides[i] + tap * self.dilations[i] - begin
            else:
                source, rest = np.divmod(place[:, None] + begin - tap * self.dilations[i], self.strides[i])
                inside &= rest == 0
            inside &= (source >= 0) & (source < size[i])
            flat = flat * size[i] + np.clip(source, 0, size[i] - 1)
        return flat, inside

    def _begins(self, size: tuple[int, ...], out: tuple[int, ...]) -> list[int]:
        """Padding in front of every spatial axis."""
        n = len(size)
        if self.auto_pad not in {"SAME_UPPER", "SAME_LOWER"}:
            return list(self.pads[:n])
        found = []
        for i in range(n):
            reach = (self.shape[2 + i] - 1) * self.dilations[i] + 1
            total = max(0, (out[i] - 1) * self.strides[i] + reach - size[i])
            found.append(total // 2 if self.auto_pad == "SAME_UPPER" else total - total // 2)
        return found


def linear(node: ir.Node, shape: tuple[int, ...], position: int = 1) -> Linear | None:
    """The linear map of a node with a weight of this stored shape at input `position`; None where it is none.

    Supported: Conv and ConvTranspose with the padding given in numbers (Conv also SAME), Gemm without
    transA, MatMul with a two-dimensional right operand.
    """
    if node.op_type in {"Conv", "ConvTranspose"} and position == 1 and len(shape) > 2:
        n = len(shape) - 2
        auto = _text(node, "auto_pad", "NOTSET")
        if node.op_type == "ConvTranspose" and (auto != "NOTSET" or "output_shape" in node.attributes):
            return None
        return Linear(
            kind="conv" if node.op_type == "Conv" else "deconv",
            shape=shape,
            groups=_integers(node, "group", (1,))[0],
            strides=_integers(node, "strides", (1,) * n),
            pads=_integers(node, "pads", (0,) * (2 * n)),
            dilations=_integers(node, "dilations", (1,) * n),
            extra=_integers(node, "output_padding", (0,) * n),
            auto_pad=auto,
        )
    if len(shape) != 2 or position != 1:
        return None
    if node.op_type == "Gemm" and not _integers(node, "transA", (0,))[0]:
        alpha = node.attributes.get("alpha")
        return Linear(
            kind="matrix",
            shape=shape,
            transposed=not _integers(node, "transB", (0,))[0],
            scale=1.0 if alpha is None else alpha.as_float(),
        )
    return Linear(kind="matrix", shape=shape, transposed=True) if node.op_type == "MatMul" else None


def _integers(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attr = node.attributes.get(name)
    if attr is None:
        return default
    return (attr.as_int(),) if attr.type == ir.AttributeType.INT else tuple(attr.as_ints())


def _text(node: ir.Node, name: str, default: str) -> str:
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_string()
