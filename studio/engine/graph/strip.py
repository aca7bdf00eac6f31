"""A model without its weights, for the graph view and for shape inference: names, types and dimensions only."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir

from studio.engine.graph.model import Model, change_tensors, copy


def strip(model: Model) -> Model:
    """A copy of the model whose weights have names, types and dimensions, but no values."""
    bare = copy(model)
    change_tensors(bare, _without_values)
    return bare


def bare_proto(
    model: Model, keep: Callable[[ir.TensorProtocol], bool] = lambda _tensor: False
) -> onnx.ModelProto:
    """The model as protobuf, its weights without values.

    For the time of writing, the model's tensors are exchanged; that is far cheaper than a copy.

    Args:
        model: as it was when this returns.
        keep: which tensors keep their values (shape inference reads small ones).
    """
    whole: list[ir.TensorProtocol] = []

    def empty(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
        whole.append(tensor)
        return tensor if keep(tensor) else _without_values(tensor, name)

    change_tensors(model, empty)
    try:
        return ir.to_proto(model.ir)
    finally:
        back = iter(whole)
        change_tensors(model, lambda _tensor, _name: next(back))


def _without_values(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    dims = [int(d) for d in tensor.shape.numpy()]
    return ir.TensorProtoTensor(onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=dims))
