"""A copy without weights, for the graph view and for shape inference: names, types and dimensions only."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from studio.engine.graph.model import Model, change_tensors, copy


def strip(model: Model, keep_below: int = 0) -> Model:
    """A copy of the model whose weights have names, types and dimensions, but no values.

    Args:
        model: left as it is.
        keep_below: tensors of fewer bytes keep their values (shape inference reads small ones).
    """
    bare = copy(model)
    change_tensors(bare, lambda t, name: _without_values(t, name) if t.nbytes >= keep_below else t)
    return bare


def _without_values(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    dims = [int(d) for d in tensor.shape.numpy()]
    return ir.TensorProtoTensor(onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=dims))
