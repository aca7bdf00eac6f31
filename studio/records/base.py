"""The root of all records, and how they become bytes and come back.

Records are `msgspec.Struct`s, frozen: they compare and hash by value, encode to JSON in
microseconds, and validate what arrives. Unions are tagged, so that `match` and decoding agree.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from studio.base.errors import StudioError


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A frozen value object. Sequences are tuples; optional figures are None when not known."""


R = TypeVar("R")


def replace(record: R, **changes: object) -> R:
    """The record with some fields replaced."""
    return msgspec.structs.replace(record, **changes)  # type: ignore[type-var]


def encode(record: object) -> bytes:
    """A record as JSON bytes."""
    return msgspec.json.encode(record)


def decode(data: bytes, kind: type[R]) -> R:
    """The record of type `kind` in JSON bytes.

    Raises:
        StudioError: the bytes do not hold such a record.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise StudioError("Cannot read this record", str(error)) from error


def convert(value: Any, kind: type[R], what: str) -> R:
    """Plain values (from YAML, from a command line) as a record of type `kind`.

    Args:
        value: dicts, lists, numbers and texts; texts become numbers where the field is one.
        kind: the record type, or a union of them.
        what: the subject of the error sentence ("the recipe r.yaml").

    Raises:
        StudioError: a value is of the wrong type, out of bounds or unknown.
    """
    try:
        return msgspec.convert(value, type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise StudioError(f"Cannot use {what}", _in_words(str(error))) from error


def expected(complaint: str) -> str:
    """What msgspec would have taken, in words: 'at least 0', 'a whole number'; '' where it does not say."""
    bound = re.search(r"([<>]=?) ([-+.\de]+)", complaint)
    if bound:
        return {"<": "below", ">": "above", "<=": "at most", ">=": "at least"}[bound[1]] + f" {bound[2]}"
    kinds = {"bool": "yes or no", "int": "a whole number", "float": "a number", "array": "a list"}
    return next((words for name, words in kinds.items() if f"Expected `{name}" in complaint), "")


def _in_words(complaint: str) -> str:
    """Msgspec's complaint about one field of a record as a person would put it."""
    parts = re.fullmatch(r"(.*) - at `\$(?:.*\.)?(\w+)`", complaint)
    if parts is None:
        return complaint
    if unknown := re.fullmatch(r"Invalid enum value (.*)", parts[1]):
        return f"{parts[2]} cannot be {unknown[1]}"
    must = expected(parts[1])
    return f"{parts[2]} must be {must}" if must else complaint
