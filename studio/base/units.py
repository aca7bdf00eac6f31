"""Numbers as people read them. Parse at the border, format at the border."""

from __future__ import annotations

import re

from studio.base.errors import StudioError

_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def short(value: float, digits: int = 3) -> str:
    """A count with a prefix: 36900 -> '36.9 k', 0 -> '0'."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{_significant(value / limit, digits)} {prefix}"
    return _significant(value, digits)


def _significant(value: float, digits: int) -> str:
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:.{max(0, digits - max(whole, 1))}f}"


def file_size(n: float) -> str:
    """Bytes as decimal units, as file managers show them: 44700000 -> '44.7 MB'."""
    if abs(n) < 1000:
        return f"{int(n)} B"
    number, prefix = short(n).split(" ")
    return f"{number} {prefix}B"


def milliseconds(value: float) -> str:
    """A time given in milliseconds: '0.84 ms', '21.4 ms', '1.30 s'."""
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{_significant(value, 3)} ms"


def counted(number: int, thing: str) -> str:
    """A number of things: '1 layer', '1,500 layers'."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def percent(share: float, digits: int = 1) -> str:
    """A share 0..1 as percent."""
    return f"{share * 100:.{digits}f} %"


def change(before: float, after: float) -> str:
    """How much smaller or larger, in percent: (44.7, 12.9) -> '−71 %'."""
    if not before:
        return ""
    value = (after / before - 1) * 100
    whole = f"{abs(value):.0f} %"
    return whole if whole == "0 %" else f"{'−' if value < 0 else '+'}{whole}"


def parse_count(text: str) -> float:
    """'1.5 MB', '36.9k', '2e6', '70 %' -> a number (bytes, counts; percent becomes a share).

    Raises:
        StudioError: the text is no number.
    """
    match = re.fullmatch(r"\s*([+-]?\d*\.?\d+(?:e[+-]?\d+)?)\s*([kmgt]?)(i?)b?\s*(%?)\s*", text.lower())
    if match is None:
        raise StudioError(f"'{text}' is not a number", "expected something like 0.5, 70 %, 36.9k or 1.5 MB")
    number, prefix, binary, share = match.groups()
    scale = 1024 ** ("", "k", "m", "g", "t").index(prefix) if binary else _PREFIXES[prefix]
    return float(number) * scale / (100 if share else 1)


def shape(dims: tuple[int | str, ...]) -> str:
    """'64×3×7×7'; symbolic dimensions by their names."""
    return "×".join(str(d) for d in dims) if dims else "scalar"
