"""Raising the version of the default operator set without changing what the model computes."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from studio.engine.graph.model import Model, copy


def raise_opset(model: Model, version: int) -> Model:
    """A copy of the model on at least `version` of the default operator set.

    Raises:
        StudioError: an operator has no equal in the newer set.
    """
    if model.opset >= version:
        return copy(model)
    return Model(
        ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model.ir), version)), model.path
    )
