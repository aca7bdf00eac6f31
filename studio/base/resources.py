"""Files that ship with the studio: icons, fonts, style sheets, the sample, recipe presets."""

from __future__ import annotations

import sys
from pathlib import Path


def resource(name: str) -> Path:
    """The path of a bundled file or folder below `resources/`.

    Works from a checkout, an installed package (`studio/_resources`) and a frozen bundle.
    """
    frozen = getattr(sys, "_MEIPASS", None)
    here = Path(__file__).resolve().parents[1]
    roots = [Path(frozen) / "resources"] if frozen else [here.parent / "resources", here / "_resources"]
    for root in roots:
        if (root / name).exists():
            return root / name
    return roots[0] / name
