"""Protobuf's wire format, as far as it takes to lift tensors' bytes out of a model and to put them back.

The one thing to know: a model's weights never pass through protobuf here. Reading replaces the bytes
of every large tensor by the place where they lie; writing replaces a mark by the bytes.
Source: protobuf.dev/programming-guides/encoding, and the field numbers of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

_LENGTH_DELIMITED = 2
_FIXED = {1: 8, 5: 4}

# Which fields of which message may hold tensors, by field number.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _FUNCTION, TENSOR = range(6)
_INSIDE: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: TENSOR},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: TENSOR, 6: _GRAPH, 10: TENSOR, 11: _GRAPH},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
}
MODEL_GRAPH = 7
TENSOR_DATA_TYPE, TENSOR_FLOAT_DATA, TENSOR_RAW_DATA, TENSOR_EXTERNAL, TENSOR_LOCATION = 2, 4, 9, 13, 14


class DamagedError(ValueError):
    """The bytes are no protobuf message, or end in the middle."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message: its number, its wire type, where it starts, and where its content lies."""

    number: int
    wire: int
    at: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Payload:
    """The bytes of a tensor, fetched when they are written."""

    tensor: ir.TensorProtocol
    length: int


Chunk: TypeAlias = "bytes | memoryview | Payload"


def read_varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            break
    raise DamagedError("it ends in the middle of a number")


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def text_field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(len(content)) + content


def fields(data: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in data[start:end].

    Raises:
        DamagedError: a field reaches beyond the end, or has a wire type that ONNX never uses.
    """
    at = start
    while at < end:
        tag, begin = read_varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _value, stop = read_varint(data, begin, end)
        elif wire == _LENGTH_DELIMITED:
            length, begin = read_varint(data, begin, end)
            stop = begin + length
        elif wire in _FIXED:
            stop = begin + _FIXED[wire]
        else:
            raise DamagedError("it holds what no ONNX file holds")
        if number == 0 or stop > end:
            raise DamagedError(f"a part of {stop - begin} bytes reaches beyond its end")
        yield Field(number, wire, at, begin, stop)
        at = stop


def size(chunks: list[Chunk]) -> int:
    """Bytes that the chunks make."""
    return sum(c.length if isinstance(c, Payload) else len(c) for c in chunks)


def rewrite(
    data: memoryview,
    wanted: Callable[[int, int], bool],
    replace: Callable[[int, int], list[Chunk] | None],
) -> list[Chunk]:
    """The model in `data` with some of its tensors replaced, as chunks in order.

    Args:
        data: a ModelProto's bytes.
        wanted: whether to look into the part between two offsets.
        replace: the new content of the tensor between two offsets; None keeps it.

    Raises:
        DamagedError: see `fields`.
    """
    return _rewrite(data, 0, len(data), _MODEL, wanted, replace) or [data]


def _rewrite(
    data: memoryview,
    start: int,
    end: int,
    kind: int,
    wanted: Callable[[int, int], bool],
    replace: Callable[[int, int], list[Chunk] | None],
) -> list[Chunk] | None:
    out: list[Chunk] = []
    kept = start
    inside = _INSIDE[kind]
    for field in fields(data, start, end):
        inner = inside.get(field.number)
        if inner is None or field.wire != _LENGTH_DELIMITED or not wanted(field.begin, field.end):
            continue
        if inner == TENSOR:
            new = replace(field.begin, field.end)
        else:
            new = _rewrite(data, field.begin, field.end, inner, wanted, replace)
        if new is None:
            continue
        out.append(data[kept : field.at])
        out.append(varint(field.number << 3 | _LENGTH_DELIMITED) + varint(size(new)))
        out.extend(new)
        kept = field.end
    if not out:
        return None
    out.append(data[kept:end])
    return out
