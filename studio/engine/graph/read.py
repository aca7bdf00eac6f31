"""From a file to a model: lazily, and with a sentence for everything that is wrong with it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from studio.base.errors import StudioError
from studio.engine.graph.model import Model

_CHUNK = 1 << 20


def load(path: Path) -> Model:
    """Read a model; weights stay in the file until they are asked for.

    Raises:
        StudioError: missing, not a model, damaged, or its external data are missing or out of its folder.
    """
    try:
        return Model(ir.load(path), path)
    except (DecodeError, OSError) as error:
        raise StudioError(f"Cannot read {path.name}", str(error)) from error


def external_files(path: Path) -> list[Path]:
    """The files of external data that a model names, sorted."""
    proto = onnx.load(path, load_external_data=False)
    names = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path.parent / name for name in sorted(names)]


def digest(path: Path) -> str:
    """SHA-256 of the file's bytes and of those of its external data, as hex."""
    total = hashlib.sha256()
    for part in (path, *external_files(path)):
        with part.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                total.update(chunk)
    return total.hexdigest()


def file_bytes(path: Path) -> int:
    """Bytes on disk, external data included."""
    return sum(part.stat().st_size for part in (path, *external_files(path)))
