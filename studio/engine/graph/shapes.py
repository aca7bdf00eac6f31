"""The shape and type of every value at chosen input sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from studio.engine.graph.model import Model, graphs, type_name

Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class Shapes:
    """Shapes and types by value (or by name, for values of the main graph)."""

    dims: Mapping[str, Dims] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)

    def of(self, value: ir.Value | str | None) -> Dims | None:
        """The shape of a value: sizes, or texts where a dimension stays unknown; None when nothing is known."""
        name = value if isinstance(value, str) else value.name if value is not None else None
        return None if not name else self.dims.get(name)

    def dtype(self, value: ir.Value | str | None) -> str | None:
        """The element type of a value in lower case ('float32'); None when not known."""
        name = value if isinstance(value, str) else value.name if value is not None else None
        return None if not name else self.types.get(name)


def dynamic_dimensions(model: Model) -> dict[str, int]:
    """The dynamic dimensions of the inputs by name, each with a chosen size."""
    return {str(d): 1 for v in model.graph.inputs for d in (v.shape or ()) if not isinstance(d, int)}


def infer_shapes(model: Model, input_sizes: Mapping[str, int]) -> Shapes:
    """Shapes at the given sizes of the dynamic dimensions."""
    proto = ir.to_proto(model.ir)
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in input_sizes:
                dim.dim_value = input_sizes[dim.dim_param]
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    dims: dict[str, Dims] = {}
    types: dict[str, str] = {}
    for _path, graph in graphs(Model(inferred)):
        values = [*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)]
        for value in values:
            if value.name and value.shape is not None:
                dims[value.name] = tuple(d if isinstance(d, int) else str(d) for d in value.shape)
            if value.name and value.dtype is not None:
                types[value.name] = type_name(value.dtype)
    return Shapes(dims, types)
