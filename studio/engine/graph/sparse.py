"""Sparse tensors as dense ones: `onnx_ir` knows no sparse tensors, and onnxruntime computes with dense ones too."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from studio.base.errors import StudioError

# What a sparse tensor may grow to; a file of a few bytes can claim any size.
_MAX_BYTES = 1 << 30


def densify(proto: onnx.ModelProto) -> None:
    """Replace sparse initializers and sparse constants of all graphs by dense ones, in place.

    Raises:
        StudioError: one is damaged or far too large.
    """
    for graph in _graphs(proto.graph):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse))
        del graph.sparse_initializer[:]
        for node in graph.node:
            for attr in node.attribute:
                if attr.type == onnx.AttributeProto.SPARSE_TENSOR:
                    dense = _dense(attr.sparse_tensor)
                    attr.Clear()
                    attr.name, attr.type = "value", onnx.AttributeProto.TENSOR
                    attr.t.CopyFrom(dense)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attr in node.attribute:
            for inner in (*((attr.g,) if attr.type == onnx.AttributeProto.GRAPH else ()), *attr.graphs):
                yield from _graphs(inner)


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    name, dims = sparse.values.name, tuple(sparse.dims)
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in (sparse.values, sparse.indices)):
        raise StudioError(f"the sparse weight '{name}' lies in external data, which is not supported")
    values: npt.NDArray[Any] = numpy_helper.to_array(sparse.values)
    if math.prod(dims) * values.itemsize > _MAX_BYTES or any(d < 0 for d in dims):
        raise StudioError(f"the sparse weight '{name}' is too large when written out")
    indices = numpy_helper.to_array(sparse.indices)
    if indices.ndim == 2:  # coordinates, one row a value
        indices = np.ravel_multi_index(tuple(indices.T), dims)
    full = np.zeros(math.prod(dims), values.dtype)
    full[indices] = values
    return numpy_helper.from_array(full.reshape(dims), name)
