"""ONNX values as torch values and back.

Types that torch lacks are *carried* in the next wider one that holds every value: 2- and 4-bit
integers in 8 bits, 4-bit and 8-bit-exponent floats in float32, unsigned 16, 32 and 64 bits in signed
integers. `numpy_of` narrows again, given the ONNX type.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

D = ir.DataType

# How each ONNX type is carried.
CARRIED: dict[ir.DataType, torch.dtype] = {
    D.FLOAT: torch.float32,
    D.DOUBLE: torch.float64,
    D.FLOAT16: torch.float16,
    D.BFLOAT16: torch.bfloat16,
    D.FLOAT8E4M3FN: torch.float8_e4m3fn,
    D.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    D.FLOAT8E5M2: torch.float8_e5m2,
    D.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    D.FLOAT8E8M0: torch.float32,
    D.FLOAT4E2M1: torch.float32,
    D.BOOL: torch.bool,
    D.INT8: torch.int8,
    D.INT16: torch.int16,
    D.INT32: torch.int32,
    D.INT64: torch.int64,
    D.INT4: torch.int8,
    D.INT2: torch.int8,
    D.UINT2: torch.uint8,
    D.UINT4: torch.uint8,
    D.UINT8: torch.uint8,
    D.UINT16: torch.int32,
    D.UINT32: torch.int64,
    D.UINT64: torch.int64,
    D.COMPLEX64: torch.complex64,
    D.COMPLEX128: torch.complex128,
}
_FLOAT8 = {
    ml_dtypes.float8_e4m3fn: torch.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz: torch.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2: torch.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz: torch.float8_e5m2fnuz,
    ml_dtypes.bfloat16: torch.bfloat16,
}
# Smallest and largest value of the integer types, for clamping and wrapping.
RANGES: dict[ir.DataType, tuple[int, int]] = {
    D.INT2: (-2, 1),
    D.UINT2: (0, 3),
    D.INT4: (-8, 7),
    D.UINT4: (0, 15),
    D.INT8: (-128, 127),
    D.UINT8: (0, 255),
    D.INT16: (-(2**15), 2**15 - 1),
    D.UINT16: (0, 2**16 - 1),
    D.INT32: (-(2**31), 2**31 - 1),
    D.UINT32: (0, 2**32 - 1),
}
FLOATS = frozenset({D.FLOAT, D.DOUBLE, D.FLOAT16, D.BFLOAT16})
HALVES = frozenset({torch.float16, torch.bfloat16})


def tensor_of(array: np.ndarray[Any, Any]) -> Any:
    """A numpy array as the torch tensor that carries it; text stays a numpy array of objects."""
    if array.dtype.kind in "OSU":
        return array
    kind = array.dtype.type
    if kind in _FLOAT8:
        raw = np.uint16 if array.dtype.itemsize == 2 else np.uint8
        flat = np.array(array, copy=True).reshape(-1).view(raw)
        return torch.from_numpy(flat).view(_FLOAT8[kind]).reshape(array.shape)
    carried = CARRIED.get(ir.DataType.from_numpy(array.dtype))
    if carried is None:
        raise TypeError(f"no torch type for {array.dtype}")
    if array.dtype.kind == "V":  # ml_dtypes' small integers and floats
        wide: type = np.float32 if carried.is_floating_point else np.int16
        return torch.from_numpy(array.astype(wide)).to(carried)
    if array.dtype == np.uint64:
        array = array.view(np.int64) if array.ndim else array.astype(np.int64)
    return torch.tensor(np.ascontiguousarray(array).reshape(array.shape)).to(carried)


def numpy_of(value: Any, dtype: ir.DataType | None = None) -> Any:
    """A torch value as numpy, narrowed to the ONNX type `dtype` where one is given."""
    if isinstance(value, list):
        return [numpy_of(v, dtype) for v in value]
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    if value.dtype in _FLOAT8.values():
        wide = value.to(torch.float32).numpy()
        back = {t: n for n, t in _FLOAT8.items()}[value.dtype]
        return wide.astype(back)
    array = value.numpy()
    return array if dtype is None else array.astype(dtype.numpy(), copy=False)


_ONNX_OF = {torch_type: onnx_type for onnx_type, torch_type in reversed(CARRIED.items())}


def onnx_type(dtype: torch.dtype) -> ir.DataType:
    """The ONNX type of a torch type (of those that it may carry, its own)."""
    return _ONNX_OF[dtype]
