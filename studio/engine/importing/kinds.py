"""What a PyTorch file is, found out without loading it: a zip's directory and a few bytes tell."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Literal, TypeAlias

from studio.base.errors import StudioError

Kind: TypeAlias = Literal["onnx", "safetensors", "weights", "program", "torchscript"]

_LONGEST_HEADER = 100_000_000


def kind_of(path: Path) -> Kind:
    """What a file holds.

    'weights' are names and tensors (a state dict), or a whole pickled module, which nothing here ever opens;
    'program' is what torch.export saves.

    Raises:
        StudioError: it is none of these.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise StudioError(f"Cannot read {path.name}", error.strerror or str(error)) from error
    if path.suffix == ".onnx":
        return "onnx"
    if _is_safetensors(path, head):
        return "safetensors"
    if head[:4] == b"PK\x03\x04":
        return _kind_of_zip(path)
    raise StudioError(
        f"{path.name} is no PyTorch file that can be read here",
        "it is neither safetensors nor a file of torch.save, torch.export or TorchScript",
        "Save weights with safetensors, or torch.save(model.state_dict(), …).",
    )


def _is_safetensors(path: Path, head: bytes) -> bool:
    if len(head) < 9:
        return False
    (size,) = struct.unpack("<Q", head[:8])
    if not 2 <= size <= min(_LONGEST_HEADER, path.stat().st_size - 8):
        return False
    with path.open("rb") as file:
        file.seek(8)
        try:
            return isinstance(json.loads(file.read(size)), dict)
        except ValueError:
            return False


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise StudioError(f"Cannot read {path.name}", "the archive is damaged") from error
    inner = {name.split("/", 1)[-1] for name in names}
    if any(n.startswith("code/") for n in inner) and "constants.pkl" in inner:
        return "torchscript"
    if any(n.startswith("models/") for n in inner) or "serialized_exported_program.json" in {*names, *inner}:
        return "program"
    if "data.pkl" in inner:
        return "weights"
    raise StudioError(
        f"{path.name} is no PyTorch file that can be read here", "the archive holds something else"
    )
