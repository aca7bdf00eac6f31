"""ONNX graphs as `onnx_ir` objects: load, name, hash, copy, save, strip, infer shapes, raise the opset.

The one thing to know: a `Model` is never changed once somebody else may hold it. `copy` is cheap
(own nodes and values, shared immutable tensors), so edits happen on copies.
"""

from studio.engine.graph.model import (
    Model,
    constant,
    copy,
    graphs,
    holder,
    is_constant_node,
    leave_old_ir,
    node_key,
    nodes,
    subgraphs,
    type_name,
    type_of,
)
from studio.engine.graph.opset import raise_opset
from studio.engine.graph.read import digest, file_bytes, load
from studio.engine.graph.shapes import Dims, Shapes, infer_shapes, symbolic_shapes
from studio.engine.graph.sizes import dynamic_dimensions, named_shape, real_inputs
from studio.engine.graph.strip import strip
from studio.engine.graph.write import save, to_bytes

__all__ = [
    "Dims",
    "Model",
    "Shapes",
    "constant",
    "copy",
    "digest",
    "dynamic_dimensions",
    "file_bytes",
    "graphs",
    "holder",
    "infer_shapes",
    "is_constant_node",
    "leave_old_ir",
    "load",
    "named_shape",
    "node_key",
    "nodes",
    "raise_opset",
    "real_inputs",
    "save",
    "strip",
    "subgraphs",
    "symbolic_shapes",
    "to_bytes",
    "type_name",
    "type_of",
]
