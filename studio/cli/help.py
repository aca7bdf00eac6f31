"""The part of the help that follows from the settings records: every step with its settings and defaults."""

from __future__ import annotations

import textwrap

from studio.app.recipe import default_text, techniques
from studio.records.steps import Settings

_WIDTH = 78


def steps_help(of: type[Settings] = Settings) -> str:
    """One paragraph a technique of a kind: its summary, and its settings as `--step` takes them."""
    parts = ["Steps, with all their settings at their defaults:"]
    for name, kind in techniques().items():
        if not issubclass(kind, of):
            continue
        text = f"{name}:{default_text(kind)}".rstrip(":")
        lines = textwrap.wrap(text, _WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        summary = textwrap.wrap(kind.summary, _WIDTH, initial_indent="    ", subsequent_indent="    ")
        parts.append("\b\n" + "\n".join([*lines, *summary]))
    parts.append("Lists are parted by '|'; layers=a|b* narrows one step; a share may be written as 50%.")
    return "\n\n".join(parts)
