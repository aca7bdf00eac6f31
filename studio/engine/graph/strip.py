"""A model without its weights, for the graph view and for shape inference: names, types and dimensions only."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir

from studio.base.errors import StudioError
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

    Args:
        model: as it was when this returns.
        keep: which tensors keep their values (shape inference reads small ones).
    """
    return proto_with(model, lambda t, name: t if keep(t) else _without_values(t, name))


def proto_with(
    model: Model, change: Callable[[ir.TensorProtocol, str], ir.TensorProtocol]
) -> onnx.ModelProto:
    """The model as protobuf with change(tensor, name) in the place of every tensor.

    The model's tensors are exchanged while it is written and put back; that is far cheaper than a copy.
    """
    own: list[ir.TensorProtocol] = []

    def exchange(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
        changed = change(tensor, name)
        own.append(tensor)
        return changed

    try:
        change_tensors(model, exchange)
        return ir.to_proto(model.ir)
    except ir.serde.SerdeError as error:
        raise StudioError(
            "This model cannot be written", "a part of it is damaged", "Export it again.", str(error)
        ) from error
    finally:
        back = iter(own)
        change_tensors(model, lambda tensor, _name: next(back, tensor))


def _without_values(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    dims = [int(d) for d in tensor.shape.numpy()]
    return ir.TensorProtoTensor(onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=dims))
