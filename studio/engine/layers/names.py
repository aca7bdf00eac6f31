"""Names and globs of layers as names of layers."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from studio.base.errors import StudioError
from studio.engine.layers.find import Listing


def resolve_layers(patterns: Sequence[str], listing: Listing) -> tuple[str, ...]:
    """Names and globs as names of the model's layers, in model order.

    Raises:
        StudioError: a pattern matches no layer.
    """
    names = [layer.name for layer in listing.layers]
    known = set(names)
    chosen: set[str] = set()
    for pattern in patterns:
        found = {pattern} if pattern in known else {name for name in names if fnmatchcase(name, pattern)}
        if not found and not (pattern == "*" and not names):
            raise StudioError(
                f"No layer is called '{pattern}'",
                "a name or pattern that matches nothing is an error, so that nothing is skipped in silence",
                "List the names with: featherweight inspect MODEL",
            )
        chosen |= found
    return tuple(name for name in names if name in chosen)
