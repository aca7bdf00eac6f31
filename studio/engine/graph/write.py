"""From a model to a file, wholly or not at all.

The one thing to know: files are written beside their target and moved over it when they are
complete, so a full disk or a killed process leaves what was there before. Weights are fetched one
after the other and never lie in memory together.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import onnx
import onnx_ir as ir

from studio.base.errors import StudioError
from studio.engine.graph import wire
from studio.engine.graph.model import Model
from studio.engine.graph.read import external_files
from studio.engine.graph.strip import bare_proto, proto_with

# Protobuf ends at 2 GiB; what is larger than this gets its weights in a file of their own.
MAX_INLINE_BYTES = 1_500_000_000
# Tensors from this size on are written by themselves (or go into external data).
_LARGE = 1024
_RELEASE_AFTER = 64_000_000
# External data start at multiples of this, so that runtimes can map them. Source: onnx.proto, ExternalData.
_ALIGNMENT = 4096
# Marks the tensor whose bytes come in when the model is written.
_MARK = "\0tensor-"


def to_bytes(model: Model, weights: bool = True) -> bytes:
    """The model as ONNX protobuf bytes; without weights, names, types and dimensions only."""
    if not weights:
        return bytes(bare_proto(model).SerializeToString())
    return b"".join(_contents(chunk) for chunk in _chunks(model))


def save(model: Model, path: Path, *, inline_bytes: int = MAX_INLINE_BYTES) -> int:
    """Write a model atomically; a plain load and save changes no output by a bit.

    Args:
        model: what to write.
        path: of the .onnx file; what lies there is replaced only once everything is written.
        inline_bytes: beyond so many bytes the weights go into a file `NAME.onnx.data` beside it.

    Returns:
        Bytes on disk, external data included.

    Raises:
        StudioError: the place cannot be written, or the disk is full.
    """
    if path.is_dir():
        raise StudioError(f"Cannot write {path.name}", "there is a folder of that name")
    before = _external_before(path)
    bare, tensors = _marked(model)
    try:
        if sum(t.nbytes for t in tensors) <= inline_bytes:
            chunks = _splice(bytes(bare.SerializeToString()), tensors)
            with _replacing(path) as stream:
                for chunk in _fetched(model, chunks):
                    stream.write(chunk)
            written = wire.size(chunks)
        else:
            written = _save_external(model, bare, tensors, path, before)
    except OSError as error:
        raise StudioError(*_why_not(path, error)) from error
    for old in before:  # what only the replaced model used
        if old not in external_files(path) and old.name.startswith(f"{path.name}."):
            old.unlink(missing_ok=True)
    return written


def _external_before(path: Path) -> tuple[Path, ...]:
    """The external data of the model that is about to be replaced."""
    if not path.exists():
        return ()
    with contextlib.suppress(StudioError):
        return external_files(path)
    return ()


def _why_not(path: Path, error: OSError) -> tuple[str, str, str]:
    what = f"Cannot write {path.name}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return (
                what,
                "the disk is full",
                "Free some space or choose another disk; what was there is untouched.",
            )
        case errno.ENOENT | errno.ENOTDIR:
            return what, f"there is no folder {path.parent}", "Create it or choose another one."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return what, f"the folder {path.parent} cannot be written", "Choose another one."
        case _:
            return what, (error.strerror or str(error)).lower(), "What was there before is untouched."


# ------------------------------------------------------------------ bytes


def _marked(model: Model) -> tuple[onnx.ModelProto, list[ir.TensorProtocol]]:
    """The model with marks for its large tensors, and these tensors by the number in their mark."""
    taken: list[ir.TensorProtocol] = []

    def mark(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
        if tensor.dtype == ir.DataType.STRING or tensor.nbytes < _LARGE:
            return tensor
        stand_in = onnx.TensorProto(
            name=name,
            data_type=tensor.dtype.value,
            dims=[int(d) for d in tensor.shape.numpy()],
            raw_data=f"{_MARK}{len(taken)}".encode(),
            doc_string=tensor.doc_string or "",
        )
        taken.append(tensor)
        return ir.TensorProtoTensor(stand_in)

    proto = proto_with(model, mark)
    _drop_repeated(proto.graph)
    return proto, taken


def _drop_repeated(graph: onnx.GraphProto) -> None:
    """Leave out types and shapes that stored tensors say themselves; onnx_ir writes them beside every one."""
    stored = {tensor.name for tensor in graph.initializer}
    told = [value for value in graph.value_info if value.name not in stored]
    if len(told) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(told)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                _drop_repeated(inner)


def _chunks(model: Model) -> list[wire.Chunk]:
    bare, tensors = _marked(model)
    return _splice(bytes(bare.SerializeToString()), tensors)


def _splice(data: bytes, tensors: list[ir.TensorProtocol]) -> list[wire.Chunk]:
    """The model's bytes with every mark replaced by the bytes of its tensor."""
    view, mark = memoryview(data), _MARK.encode()

    def fill(begin: int, end: int) -> list[wire.Chunk] | None:
        parts = list(wire.fields(view, begin, end))
        raw = next((f for f in parts if f.number == wire.TENSOR_RAW_DATA), None)
        if raw is None or view[raw.begin : raw.begin + len(mark)] != mark:
            return None
        tensor = tensors[int(bytes(view[raw.begin + len(mark) : raw.end]))]
        out: list[wire.Chunk] = [view[f.at : f.end] for f in parts if f is not raw]
        out.append(wire.varint(wire.TENSOR_RAW_DATA << 3 | 2) + wire.varint(tensor.nbytes))
        out.append(wire.Payload(tensor, tensor.nbytes))
        return out

    return wire.rewrite(view, lambda begin, end: data.find(mark, begin, end) >= 0, fill)


def _contents(chunk: wire.Chunk) -> bytes:
    if not isinstance(chunk, wire.Payload):
        return bytes(chunk)
    data = chunk.tensor.tobytes()
    if len(data) != chunk.length:
        raise ValueError(f"{chunk.tensor.name} has {len(data)} bytes, {chunk.length} were promised")
    return data


def _fetched(model: Model, chunks: Iterable[wire.Chunk]) -> Iterator[bytes]:
    """The bytes of chunk after chunk; memory of weights that were read is given back on the way."""
    read = 0
    for chunk in chunks:
        data = _contents(chunk)
        yield data
        read += len(data)
        if read > _RELEASE_AFTER:
            model.release()
            read = 0


# ------------------------------------------------------------------ external data


def _save_external(
    model: Model,
    bare: onnx.ModelProto,
    tensors: list[ir.TensorProtocol],
    path: Path,
    before: tuple[Path, ...],
) -> int:
    """Weights first, under a name that nothing uses yet; then the model that names them."""
    name = f"{path.name}.data"
    if (path.parent / name).exists() or path.parent / name in before:
        name = f"{path.name}.{secrets.token_hex(4)}.data"
    places, total = _layout(tensors)
    _point_outside(bare, tensors, places, name)
    data_path = path.parent / name
    with _replacing(data_path) as stream:
        payloads = [wire.Payload(tensor, tensor.nbytes) for tensor in tensors]
        for data, place in zip(_fetched(model, payloads), places, strict=True):
            stream.seek(place)
            stream.write(data)
    try:
        with _replacing(path) as stream:
            structure = bare.SerializeToString()
            stream.write(structure)
    except BaseException:
        data_path.unlink(missing_ok=True)
        raise
    return len(structure) + total


def _layout(tensors: list[ir.TensorProtocol]) -> tuple[list[int], int]:
    """Where each tensor starts in the data file, and how long that file gets."""
    places, end = [], 0
    for tensor in tensors:
        start = math.ceil(end / _ALIGNMENT) * _ALIGNMENT
        places.append(start)
        end = start + tensor.nbytes
    return places, end


def _point_outside(
    proto: onnx.ModelProto, tensors: list[ir.TensorProtocol], places: list[int], name: str
) -> None:
    """Turn every mark into a reference to the data file."""
    mark = _MARK.encode()
    for tensor in _proto_tensors(proto):
        if tensor.raw_data.startswith(mark):
            number = int(tensor.raw_data[len(mark) :])
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (
                ("location", name),
                ("offset", places[number]),
                ("length", tensors[number].nbytes),
            ):
                tensor.external_data.add(key=key, value=str(value))


def _proto_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    def of_nodes(body: list[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
        for node in body:
            for attr in node.attribute:
                if attr.type == onnx.AttributeProto.TENSOR:
                    yield attr.t
                for inner in (*((attr.g,) if attr.type == onnx.AttributeProto.GRAPH else ()), *attr.graphs):
                    yield from of_graph(inner)

    def of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
        yield from graph.initializer
        yield from of_nodes(list(graph.node))

    yield from of_graph(proto.graph)
    for function in proto.functions:
        yield from of_nodes(list(function.node))


# ------------------------------------------------------------------ atomic files


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A stream whose content takes the place of `path` at the end; on any error nothing has changed."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # the folder's own entry; not every file system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
