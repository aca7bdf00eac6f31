"""The real numbers behind a layer's stored weights, whatever form they are stored in."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine.graph import constant
from studio.engine.layers.find import LayerNode

Array = npt.NDArray[Any]

# Where quantized operators take the scale of their weights, and the axis of scales per channel.
_SCALES = {
    "QLinearConv": (4, 0),
    "QLinearMatMul": (4, -1),
    "QGemm": (4, None),
    "DynamicQuantizeMatMul": (2, -1),
    "MatMulIntegerToFloat": (3, -1),
    "DynamicQuantizeLSTM": (8, -1),
}


def float_weights(layer: LayerNode) -> Array | None:
    """The main weight as float32; packed ones as (K, N). None where its scale is computed or unknown."""
    stored = constant(layer.weight)
    if stored is None:
        return None
    if layer.node.op_type == "MatMulNBits":
        return _unpacked(layer, stored)
    if layer.record.op == "Gather" and layer.node.op_type != "Gather":
        return None
    if not layer.quantized:
        return stored.numpy().astype(np.float32, copy=False)
    return _dequantized(layer, stored.numpy())


def _numbers(value: ir.Value | None) -> Array | None:
    tensor = constant(value)
    return None if tensor is None else tensor.numpy()


def _dequantized(layer: LayerNode, stored: Array) -> Array | None:
    """(q − zero) · scale. Source: ONNX DequantizeLinear-21."""
    node = next((n for n in (*layer.between, *_readers(layer)) if n.op_type == "DequantizeLinear"), None)
    if layer.node.op_type in {"MatMulInteger", "ConvInteger"}:
        scale, block = _scale_behind(layer), 0
        axis = -1 if layer.node.op_type == "MatMulInteger" else 0
    elif node is not None:
        scale, axis = _numbers(node.inputs[1]), node.attributes.get_int("axis", 1)
        block = node.attributes.get_int("block_size", 0)
    elif layer.node.op_type in _SCALES:
        position, fixed = _SCALES[layer.node.op_type]
        scale, block = _numbers(layer.node.inputs[position]), 0
        axis = (layer.out_axis or 0) if fixed is None else fixed
    else:
        return None
    zero = _numbers(layer.zero_point)
    if scale is None or (zero is None and layer.zero_point is not None):
        return None
    spread = _spread(scale, stored.shape, axis, block)
    middle = _spread(zero.astype(np.float32), stored.shape, axis, block) if zero is not None else 0.0
    return np.asarray((stored.astype(np.float32) - middle) * spread.astype(np.float32), np.float32)


def _readers(layer: LayerNode) -> tuple[ir.Node, ...]:
    """What reads an embedding's integers."""
    return tuple(layer.node.outputs[0].consumers()) if layer.record.op == "Gather" else ()


def _scale_behind(layer: LayerNode) -> Array | None:
    """The weights' scale of an integer product: the one float constant that belongs to it."""
    numbers = [n for v in layer.constants if (n := _numbers(v)) is not None]
    scales = [n for n in numbers if n.dtype.kind == "f"]
    return scales[0] if len(scales) == 1 else None


def _spread(values: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """Scales so that they broadcast against the stored weight."""
    axis %= len(shape)
    if block and values.ndim == len(shape):
        return np.repeat(values, block, axis=axis).take(range(shape[axis]), axis=axis)
    if values.size == 1:
        return values.reshape(())
    if values.ndim == 1:
        return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return values


def _unpacked(layer: LayerNode, stored: ir.TensorProtocol) -> Array | None:
    """(K, N) from the packed rows of MatMulNBits. Source: onnxruntime, ContribOperators.md."""
    node = layer.node
    k, n = node.attributes["K"].as_int(), node.attributes["N"].as_int()
    bits, block = node.attributes.get_int("bits", 4), node.attributes["block_size"].as_int()
    scale = _numbers(node.inputs[2])
    zeros = node.inputs[3] if len(node.inputs) > 3 else None
    points = _numbers(zeros)
    if scale is None or bits not in {2, 4, 8} or (zeros is not None and points is None):
        return None
    codes = _codes(stored.numpy().reshape(n, -1), bits)  # (N, blocks · block)
    count = codes.shape[1] // block
    if points is None:
        middle: Array = np.full((n, count), 2 ** (bits - 1), np.float32)
    elif points.dtype == np.uint8:
        middle = _codes(points.reshape(n, -1), bits)[:, :count].astype(np.float32)
    else:
        middle = points.reshape(n, count).astype(np.float32)
    real = (codes.reshape(n, count, block) - middle[..., None]) * scale.reshape(n, count, 1).astype(
        np.float32
    )
    return np.ascontiguousarray(real.reshape(n, -1)[:, :k].T.astype(np.float32))


def _codes(packed: Array, bits: int) -> Array:
    """Integers from bytes; of several in a byte, the first lies in the lowest bits."""
    places = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return np.stack(places, axis=-1).reshape(packed.shape[0], -1)
