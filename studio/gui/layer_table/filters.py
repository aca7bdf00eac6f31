"""The filter language: `conv`, `op:Conv`, `size>1MB`, `-precision:int8`, combined with spaces.

- `word` is found in the name, operator, shape, type or treatment; `"two words"` and `layer*.conv?` work.
- `field:word` is found in one column; `field>number` compares (`>`, `>=`, `<`, `<=`, `=`).
- `>1MB` alone means the size. A number without a unit is in the unit of the column's header.
- `-` before a rule turns it round. A layer is shown when all rules hold.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TypeAlias

from studio.base.errors import StudioError
from studio.base.units import parse_count, shape
from studio.gui.figures import BY_ID, COLUMNS, Column, Figures, shown_as, treatment_text, unit_of
from studio.records.model import Layer

Rule: TypeAlias = Callable[[Layer, Figures], bool]

_TOKEN = re.compile(r'(-?)(?:([A-Za-z_]*)(>=|<=|>|<|=|:))?("[^"]*"?|\S+)')
_SEARCHED = tuple(BY_ID[name] for name in ("layer", "op", "weight", "dtype", "precision", "treatment"))
_FIELDS: dict[str, Column] = {word: column for column in COLUMNS for word in (column.id, *column.aliases)}
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": lambda value, limit: abs(value - limit) <= 1e-9 * max(abs(value), abs(limit)),
}
# Shown beside the field; the whole language in one breath.
HELP = (
    "Words are found in name, op, shape and treatment.\n"
    "Rules: op:Conv   size>1MB   params>10k   macs>50M   latency>5%   precision:int8   sensitivity>0.01\n"
    'Combine with spaces, turn round with -, use * and ? in names, quote "two words".\n'
    f"Fields: {', '.join(column.id for column in COLUMNS)}"
)


def parse(text: str) -> Rule:
    """A filter's text as one rule.

    Raises:
        StudioError: a field is unknown or a number is none.
    """
    rules = [_rule(*match.groups()) for match in _TOKEN.finditer(_join_units(text))]
    return lambda layer, known: all(rule(layer, known) for rule in rules)


def _join_units(text: str) -> str:
    """'> 1 MB' -> '>1MB': a number may stand apart from its sign and its unit."""
    text = re.sub(r"([<>=])\s+", r"\1", text)
    return re.sub(r"([<>=]\d*\.?\d+)\s+([kKmMgGtT]?i?[bB]|[kKMGT%])(?=\s|$)", r"\1\2", text)


def _rule(minus: str, field: str | None, sign: str | None, word: str) -> Rule:
    word = word.strip('"')
    if sign is None:
        rule = _any_of(word)
    elif sign == ":" or (sign == "=" and not _field(field).numeric):
        rule = _in_column(_field(field), word)
    else:
        rule = _compare(_field(field or "size"), sign, word)
    return (lambda layer, known: not rule(layer, known)) if minus else rule


def _field(name: str | None) -> Column:
    found = _FIELDS.get((name or "").lower())
    if found is None:
        raise StudioError(f"There is no column '{name}'", "", f"Try one of: {', '.join(BY_ID)}")
    return found


def _any_of(word: str) -> Rule:
    found = _finder(word)
    if _is_glob(word):
        return lambda layer, known: any(found(str(c.value(layer, known) or "")) for c in _SEARCHED)
    wanted = _plain(word)
    return lambda layer, known: (
        wanted in _words_of(layer) or (layer.name in known.treatments and found(treatment_text(layer, known)))
    )


@lru_cache(maxsize=100_000)
def _searched(name: str, op: str, dims: tuple[int, ...], dtype: str, precision: str) -> str:
    return _plain("\n".join((name, op, shape(dims), dtype, f"keep {precision}")))


def _words_of(layer: Layer) -> str:
    return _searched(layer.name, layer.op, layer.weight_shape, layer.dtype, layer.precision)


def _in_column(column: Column, word: str) -> Rule:
    found = _finder(word)
    return lambda layer, known: found(shown_as(column, column.value(layer, known), known))


def _finder(word: str) -> Callable[[str], bool]:
    """Whether a text contains `word`, case and kind of cross aside; a glob must match the whole text."""
    wanted = _plain(word)
    if _is_glob(wanted):
        return lambda text: fnmatchcase(_plain(text), wanted)
    return lambda text: wanted in _plain(text)


def _is_glob(word: str) -> bool:
    return "*" in word or "?" in word


def _plain(text: str) -> str:
    return re.sub(r"(?<=\d)x(?=\d)", "×", text.lower())


def _compare(column: Column, sign: str, word: str) -> Rule:
    if not column.numeric:
        raise StudioError(f"'{column.id}' is no number", "", f"Write {column.id}:{word} to look for words")
    limit = parse_count(word)
    in_header_unit = bool(re.fullmatch(r"[+-]?\d*\.?\d+(e[+-]?\d+)?", word.lower()))
    holds = _SIGNS[sign]

    def rule(layer: Layer, known: Figures) -> bool:
        value = column.value(layer, known)
        scale = unit_of(column, known) if in_header_unit else 1.0
        return isinstance(value, int | float) and holds(value, limit * scale)

    return rule
