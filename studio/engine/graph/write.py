"""From a model to a file, wholly or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx_ir as ir

from studio.engine.graph.model import Model
from studio.engine.graph.strip import strip


def to_bytes(model: Model, weights: bool = True) -> bytes:
    """The model as ONNX protobuf bytes; without weights, names, types and dimensions only."""
    source = model if weights else strip(model)
    return bytes(ir.to_proto(source.ir).SerializeToString())


def save(model: Model, path: Path) -> int:
    """Write a model atomically and return its bytes on disk, external data included."""
    data = to_bytes(model)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    Path(name).replace(path)
    return len(data)
