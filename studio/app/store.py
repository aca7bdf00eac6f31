"""Model files by digest: `FOLDER/DIGEST/model.onnx`, large weights beside it.

What the studio makes is moved in; what the user opened is referenced where it lies and copied
only when a project is saved. Files here are never changed once they are in.
"""

from __future__ import annotations

import shutil
from pathlib import Path

MODEL = "model.onnx"


class Store:
    """The model files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where a model with this digest lies, or would lie."""
        return self.folder / digest / MODEL

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def adopt(self, written: Path, digest: str) -> Path:
        """Move in a model that a worker wrote as `MODEL` into a folder of its own; returns its new path."""
        target = self.path(digest).parent
        if not self.path(digest).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            written.parent.rename(target)
        return self.path(digest)
