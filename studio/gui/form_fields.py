"""What a form needs to know about the fields of a record.

The type hints are read rather than `msgspec.inspect`, which sorts the values of a Literal and so
loses the order that the record gives them.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from studio.records.base import Record

_STEP = 0.01  # of a share


@dataclass(frozen=True)
class Field:
    """One field of a record, as a form needs it.

    Attributes:
        kind: 'bool', 'choice', 'int', 'float', 'share', 'text', 'texts' or 'numbers'.
        choices: (value, words) in the record's order.
        low / high: smallest and largest value, None where there is none; of a share in whole percent.
        above: `low` itself is excluded.
        optional: None is allowed: not set.
        zero: what 0 means, in words.
    """

    name: str
    kind: str
    title: str
    tip: str = ""
    unit: str = ""
    choices: tuple[tuple[Any, str], ...] = ()
    low: float | None = None
    high: float | None = None
    above: bool = False
    optional: bool = False
    advanced: bool = False
    zero: str = ""
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()


@dataclass
class _Hint:
    base: Any
    optional: bool = False
    metas: list[msgspec.Meta] = field(default_factory=list)


def _unfold(hint: Any) -> _Hint:
    """A type hint without Annotated and None, with what they said."""
    found = _Hint(hint)
    while True:
        origin = get_origin(found.base)
        if origin is Annotated:
            found.base, *metas = get_args(found.base)
            found.metas += [m for m in metas if isinstance(m, msgspec.Meta)]
        elif origin in {Union, types.UnionType} and type(None) in get_args(found.base):
            found.optional = True
            (found.base,) = [a for a in get_args(found.base) if a is not type(None)]
        else:
            return found


@cache
def fields_of(kind: type[Record]) -> tuple[Field, ...]:
    """The fields of a record that a form can show."""
    hints = get_type_hints(kind, include_extras=True)
    made = []
    for name in kind.__struct_fields__:
        hint = _unfold(hints[name])
        extra: dict[str, Any] = {}
        title, tip, low, high = name.replace("_", " ").capitalize(), "", None, None
        for meta in hint.metas:
            extra |= meta.extra_json_schema or {}
            title, tip = meta.title or title, meta.description or tip
            low = next((v for v in (meta.ge, meta.gt, low) if v is not None), None)
            high = next((v for v in (meta.le, meta.lt, high) if v is not None), None)
        control = _kind(hint.base, extra.get("unit", ""), low, high)
        above = any(meta.gt is not None for meta in hint.metas)
        if control == "share":  # a bound that is itself excluded lies one percent further in
            low = (low or 0.0) + (_STEP if above else 0.0)
            high = (high or 1.0) - (_STEP if any(meta.lt is not None for meta in hint.metas) else 0.0)
        if control is None:
            continue
        words = extra.get("choices", {})
        values = get_args(hint.base) if control == "choice" else ()
        made.append(
            Field(
                name=name,
                kind=control,
                title=title,
                tip=tip,
                unit="" if control == "share" else extra.get("unit", ""),
                choices=tuple((v, str(words.get(v, words.get(str(v), v)))) for v in values),
                low=low,
                high=high,
                above=above,
                optional=hint.optional,
                advanced=bool(extra.get("advanced")),
                zero=extra.get("zero", ""),
                when=tuple((k, tuple(v)) for k, v in extra.get("when", {}).items()),
            )
        )
    return tuple(made)


def _kind(base: Any, unit: str, low: float | None, high: float | None) -> str | None:
    if base is bool:
        return "bool"
    if get_origin(base) is Literal:
        return "choice"
    if base is float:
        return "share" if unit == "share" and low is not None and high is not None else "float"
    if get_origin(base) is tuple:
        item = get_args(base)[0]
        return {str: "texts", float: "numbers", int: "numbers"}.get(item)
    return {int: "int", str: "text"}.get(base)
