"""From a file to a model: lazily, and with a sentence for everything that can be wrong with it.

The one thing to know: weights stay in the file. Large tensors are mapped, wherever they lie (in
external data or in the middle of the model file), so a model of any size opens in little memory.
"""

from __future__ import annotations

import hashlib
import logging
import math
import mmap
import re
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from studio.base.errors import StudioError
from studio.base.units import file_size
from studio.engine.graph import wire
from studio.engine.graph.functions import inline_functions
from studio.engine.graph.model import Model, change_tensors, graphs, nodes
from studio.engine.graph.sparse import densify

# Terms of letters and at most one ellipsis, between commas and an arrow.
_EQUATION = re.compile(rb"[\sA-Za-z,>-]*(\.\.\.[\sA-Za-z]*([,>-][\sA-Za-z,>-]*|$))*")
_MAX_NODES = 250_000
_CHUNK = 1 << 20
# Smaller tensors are read at once: a mapping costs more than they do.
_MAPPED_FROM = 1024
# The location that marks a tensor whose bytes lie in the model file itself; no file can have this name.
_HERE = "\0"
_CONVERT = "A model is converted by: featherweight import FILE -o MODEL.onnx."
_FORMATS = (
    (b"version https://git-lfs", 0, "it is a Git LFS pointer, not the model", "Fetch it with: git lfs pull"),
    (b"PK\x03\x04", 0, "it is a zip archive, as PyTorch and others write", _CONVERT),
    (b"\x89HDF", 0, "it is an HDF5 file, as Keras writes", "Convert the model to ONNX first."),
    (b"TFL3", 4, "it is a TensorFlow Lite model", "Convert the model to ONNX first."),
    (b"ORTM", 4, "it is in onnxruntime's own format", "Open the ONNX file that it was made from."),
    (b"\x80\x02", 0, "it is a pickle, as PyTorch writes", _CONVERT),
    (b"GGUF", 0, "it is a GGUF file", "Open the ONNX form of the model."),
)

# onnx_ir logs what it skips; what matters is said in words below.
logging.getLogger("onnx_ir").setLevel(logging.ERROR)


def load(path: Path) -> Model:
    """Read a model; weights stay in the file until they are asked for.

    Raises:
        StudioError: it is missing, no model, damaged, contradicts itself, or its external data are
            missing, too short or out of its folder.
    """
    data = _map(path, f"Cannot read {path.name}")
    proto = _parse(path, data)
    try:
        _check(proto)
        densify(proto)
        source = ir.serde.deserialize_model(proto)
        if "ai.onnx" in source.opset_imports:  # the long name of the default set
            source.opset_imports.setdefault("", source.opset_imports.pop("ai.onnx"))
        maps = _bind(Model(source), path, data)
        model = Model(source, path, maps)
        _put_in_order(model)
        inline_functions(model)
    except StudioError as error:
        why = ": ".join(filter(None, (error.what, error.why)))
        raise StudioError(f"Cannot read {path.name}", why, error.hint, error.details) from error
    except Exception as error:  # the parser: whatever a damaged file provokes, it is the file's fault
        raise StudioError(
            f"Cannot read {path.name}",
            "it is no valid ONNX model: " + _root_cause(error),
            "Export or download it again.",
            details=str(error),
        ) from error
    return model


def _root_cause(error: BaseException) -> str:
    """The first line of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


# ------------------------------------------------------------------ the file


def _map(path: Path, what: str) -> memoryview:
    """A file's bytes, mapped.

    Raises:
        StudioError: missing, no regular file, empty or not readable.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise StudioError(what, "it is a folder", "Choose the .onnx file inside.")
        if not stat.S_ISREG(mode):
            raise StudioError(what, "it is no regular file")
        with path.open("rb") as stream:
            length = path.stat().st_size
            if length == 0:
                raise StudioError(what, "the file is empty", "Export or download it again.")
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError as error:
        raise StudioError(what, "there is no such file") from error
    except OSError as error:
        raise StudioError(what, (error.strerror or str(error)).lower()) from error


def _parse(path: Path, data: memoryview) -> onnx.ModelProto:
    """The model without the bytes of its large tensors, each of which says where they lie."""
    what = f"Cannot read {path.name}"
    for magic, at, why, hint in _FORMATS:
        if data[at : at + len(magic)] == magic:
            raise StudioError(what, why, hint)
    try:
        if not any(f.number == wire.MODEL_GRAPH and f.wire == 2 for f in wire.fields(data, 0, len(data))):
            raise StudioError(what, "it is no ONNX model: it holds no graph")
        chunks = wire.rewrite(
            data, lambda begin, end: end - begin >= _MAPPED_FROM, lambda begin, end: _lift(data, begin, end)
        )
        proto: onnx.ModelProto = onnx.ModelProto.FromString(
            b"".join(bytes(c) for c in chunks if not isinstance(c, wire.Payload))
        )
    except wire.DamagedError as error:
        begins_well = bytes(data[:1]) == b"\x08"  # the field ir_version, with which nearly all models begin
        why = "the file is cut off or damaged" if begins_well else "it is no ONNX model"
        raise StudioError(what, f"{why}: {error}", "Export or download it again.") from error
    except StudioError:
        raise
    except RecursionError as error:
        raise StudioError(what, "its graphs are nested too deeply") from error
    except Exception as error:  # the parser: protobuf raises classes of its own
        raise StudioError(what, "it is no ONNX model, or it is damaged", details=str(error)) from error
    return proto


def _lift(data: memoryview, begin: int, end: int) -> list[wire.Chunk] | None:
    """A tensor with a note of where its bytes lie instead of the bytes; None for what must stay as it is."""
    parts = list(wire.fields(data, begin, end))
    kind = next((data[f.begin] for f in parts if f.number == wire.TENSOR_DATA_TYPE and f.wire == 0), 0)
    payloads = [
        f
        for f in parts
        if f.wire == 2
        and (
            f.number == wire.TENSOR_RAW_DATA
            or (f.number == wire.TENSOR_FLOAT_DATA and kind == onnx.TensorProto.FLOAT)
        )
    ]
    external = any(f.number in {wire.TENSOR_EXTERNAL, wire.TENSOR_LOCATION} for f in parts)
    unusual = any(f.number == wire.TENSOR_FLOAT_DATA and f.wire != 2 for f in parts)
    if len(payloads) != 1 or external or unusual or payloads[0].end - payloads[0].begin < _MAPPED_FROM:
        return None
    payload = payloads[0]
    out: list[wire.Chunk] = [data[f.at : f.end] for f in parts if f is not payload]
    place = {"location": _HERE, "offset": str(payload.begin), "length": str(payload.end - payload.begin)}
    for key, value in place.items():
        entry = wire.text_field(1, key.encode()) + wire.text_field(2, value.encode())
        out.append(wire.text_field(wire.TENSOR_EXTERNAL, entry))
    out.append(wire.varint(wire.TENSOR_LOCATION << 3) + wire.varint(onnx.TensorProto.EXTERNAL))
    return out


# ------------------------------------------------------------------ what a parsed model may not be


def _check(proto: onnx.ModelProto) -> None:
    """Refuse what onnx_ir would read otherwise than onnxruntime, or not at all.

    Raises:
        StudioError: far too many nodes, names that are no text, two initializers of one name, or an Einsum equation on which shape inference and
            onnxruntime never end (onnx and onnxruntime hang on "....").
    """
    bodies = [*_proto_graphs(proto.graph), *proto.functions]
    count = sum(len(body.node) for body in bodies)
    if count > _MAX_NODES:
        raise StudioError(f"it has {count:,} nodes, more than can be worked with")
    for body in bodies:
        for node in body.node:
            texts = (node.op_type, node.name, node.domain, node.doc_string, *node.input, *node.output)
            if not all(isinstance(text, str) for text in texts):  # protobuf gives bytes for what is no UTF-8
                raise StudioError("the name of a node, an operator or a value is no text")
    equations = [a.s for body in bodies for n in body.node if n.op_type == "Einsum" for a in n.attribute]
    for equation in equations:
        if not _EQUATION.fullmatch(equation):
            raise StudioError(f"'{equation.decode('utf-8', 'replace')}' is no equation of an Einsum")
    for graph in _proto_graphs(proto.graph):
        seen: set[str] = set()
        for tensor in graph.initializer:
            if tensor.name in seen:
                raise StudioError(
                    f"two weights are called '{tensor.name}', and nothing says which one is meant"
                )
            seen.add(tensor.name)


def _proto_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPH:
                yield from _proto_graphs(attr.g)
            for inner in attr.graphs:
                yield from _proto_graphs(inner)


def _put_in_order(model: Model) -> None:
    """Sort graphs whose nodes do not follow their inputs, and refuse what no order can mend.

    Raises:
        StudioError: a value that nothing produces, or nodes that wait for each other.
    """
    known: set[ir.Value] = set()
    ordered = True
    for _path, graph in graphs(model):
        known.update(graph.inputs, graph.initializers.values(), (v for n in graph for v in n.outputs))
    for node in nodes(model):
        for value in node.inputs:
            if value is not None and value not in known:
                raise StudioError(f"'{value.name}' is used by node '{node.name}', but nothing produces it")
    for _path, graph in graphs(model):
        for value in graph.outputs:
            if value not in known:
                raise StudioError(f"the output '{value.name}' is produced by nothing")
        seen: set[ir.Value] = set()
        for node in graph:
            ordered &= all(
                v is None or v in seen or v.producer() is None or v.graph is not graph for v in node.inputs
            )
            seen.update(node.outputs)
    if not ordered:
        try:
            model.graph.sort()
        except ValueError as error:
            raise StudioError("its nodes wait for each other in a cycle", details=str(error)) from error


# ------------------------------------------------------------------ where weights lie


def _bind(model: Model, path: Path, data: memoryview) -> tuple[mmap.mmap, ...]:
    """Let every tensor that lies in a file fetch its numbers from the mapped file; all mapped files.

    Raises:
        StudioError: external data are missing, too short or out of the model's folder.
    """
    maps: dict[str, memoryview] = {_HERE: data}

    def bind(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
        if tensor.dtype == ir.DataType.UNDEFINED:
            raise StudioError(f"the weight '{name}' has no element type")
        if isinstance(tensor, ir.TensorProtoTensor):
            return _small(tensor, name)
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        location = str(tensor.location)
        if location not in maps:
            what = f"the weights in '{location}' cannot be read"
            maps[location] = _map(external_path(path.parent, location), what)
        return _bound(tensor, name, maps[location])

    change_tensors(model, bind)
    return tuple(view.obj for view in maps.values() if isinstance(view.obj, mmap.mmap))


def _small(tensor: ir.TensorProtoTensor, name: str) -> ir.TensorProtocol:
    """A tensor that was read with the model, as an array: whether it is sound shows here, not later."""
    try:
        array = tensor.numpy()
    except (ValueError, TypeError) as error:
        raise StudioError(f"the weight '{name}' is damaged", details=str(error)) from error
    if tensor.dtype.bitwidth < 8:
        return tensor
    return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)


def _bound(tensor: ir.ExternalTensor, name: str, data: memoryview) -> ir.TensorProtocol:
    dims = tensor.shape.numpy()
    if any(d < 0 for d in dims):
        raise StudioError(f"the weight '{name}' has a negative dimension")
    need = math.ceil(math.prod(dims) * tensor.dtype.bitwidth / 8)
    offset = tensor.offset or 0
    length = need if tensor.length is None else tensor.length
    if length < need or offset < 0 or offset + length > len(data):
        raise StudioError(
            f"the weight '{name}' needs {file_size(need)}, but only "
            f"{file_size(max(0, min(length, len(data) - offset)))} are there",
            hint="The file is cut off or belongs to another version of the model.",
        )
    fetch = partial(_fetch, data, offset, need, tensor.dtype, tuple(dims))
    return ir.LazyTensor(fetch, tensor.dtype, ir.Shape(dims), name=name, doc_string=tensor.doc_string)


def _fetch(
    data: memoryview, offset: int, length: int, dtype: ir.DataType, dims: tuple[int, ...]
) -> ir.TensorProtocol:
    """The numbers at a place in a mapped file; nothing is copied where they are aligned."""
    view = data[offset : offset + length]
    if dtype.bitwidth < 8:
        return ir.PackedTensor(np.frombuffer(view, np.uint8), dtype, shape=dims)
    array = np.frombuffer(view, dtype=np.dtype(dtype.numpy())).reshape(dims)
    if not array.flags.aligned:
        array = array.copy()
        array.flags.writeable = False
    return ir.Tensor(array, dtype=dtype)


def external_path(folder: Path, location: str) -> Path:
    """Where external data lie.

    Raises:
        StudioError: outside of the model's folder, or missing.
    """
    what = f"the weights in '{location}' cannot be used"
    if not location:
        raise StudioError("a weight does not say in which file it lies")
    inside = Path(location)
    if inside.is_absolute() or ".." in inside.parts or "\\" in location:
        raise StudioError(
            what, "they lie outside of the model's folder", "Nothing outside of it is ever read."
        )
    path = folder / inside
    if not path.exists():
        raise StudioError(what, "there is no such file", f"Put '{location}' beside the model.")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise StudioError(
            what,
            "it is a link to a file outside of the model's folder",
            "Copy the model and its data into one folder (as download caches keep them as links: cp -rL).",
        )
    return path


def external_files(path: Path) -> tuple[Path, ...]:
    """The files of external data that a model names, sorted.

    Raises:
        StudioError: see `load`.
    """
    proto = _parse(path, _map(path, f"Cannot read {path.name}"))
    found = {
        entry.value
        for tensor in _proto_tensors(proto)
        for entry in tensor.external_data
        if entry.key == "location" and entry.value != _HERE
    }
    return tuple(external_path(path.parent, name) for name in sorted(found))


def _proto_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _proto_graphs(proto.graph):
        yield from graph.initializer
        for node in graph.node:
            for attr in node.attribute:
                if attr.type == onnx.AttributeProto.TENSOR:
                    yield attr.t


def digest(path: Path) -> str:
    """SHA-256 of the file's bytes and of those of its external data, as hex.

    Raises:
        StudioError: see `load`.
    """
    total = hashlib.sha256()
    for part in (path, *external_files(path)):
        with part.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                total.update(chunk)
    return total.hexdigest()


def file_bytes(path: Path) -> int:
    """Bytes on disk, external data included.

    Raises:
        StudioError: see `load`.
    """
    return sum(part.stat().st_size for part in (path, *external_files(path)))
