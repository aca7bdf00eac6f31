"""A training run's state on disk, so that a killed run loses one interval and no more.

Tensors lie in a safetensors file that is written beside the old one and then put in its place; numbers lie
in its header. A checkpoint of another model, step, seed or data set has another name and is never picked up.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
from torch import Tensor

from studio.engine import graph
from studio.engine.dataset import Dataset
from studio.engine.graph import Model
from studio.records.steps import Step

_FIRST = 2.0  # seconds of work; the pauses between the next checkpoints double
_SELDOM = 20.0  # up to this
_SHARE = 0.05  # of the time may go into writing them


class Pace:
    """When the next checkpoint is due: soon at first, then more seldom, and the slower the longer writing takes."""

    def __init__(self) -> None:
        self._last, self._pause = time.monotonic(), _FIRST

    @property
    def due(self) -> bool:
        """Whether it is time for one."""
        return time.monotonic() - self._last > self._pause

    def wrote(self, seconds: float) -> None:
        """One was written just now, in so many seconds."""
        self._pause = max(min(2 * self._pause, _SELDOM), seconds / _SHARE)
        self._last = time.monotonic()


def worth_keeping(seconds: float) -> bool:
    """Whether work of so many seconds is worth a checkpoint at its end."""
    return seconds > _FIRST


def checkpoint_path(
    folder: Path, model: Model, step: Step, seed: int, teacher: Model | None, data: Dataset
) -> Path:
    """Where the checkpoint of exactly this run lies."""
    digest = hashlib.sha256()
    for part in (model, teacher):
        if part is not None:
            _add(digest, part)
    digest.update(msgspec.json.encode(step))
    digest.update(msgspec.json.encode(data.spec))
    digest.update(data.order.tobytes())
    digest.update(str(seed).encode())
    return folder / f"training-{digest.hexdigest()[:16]}.safetensors"


def _add(digest: hashlib._Hash, model: Model) -> None:
    """Structure and weights, tensor by tensor."""
    digest.update(graph.to_bytes(model, weights=False))
    for _path, inner in graph.graphs(model):
        held = (*inner.initializers.values(), *(n.outputs[0] for n in inner if graph.is_constant_node(n)))
        for value in held:
            tensor = graph.constant(value)
            if tensor is not None and tensor.dtype != ir.DataType.STRING:
                digest.update(tensor.tobytes())


def save(path: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Write a checkpoint in one move."""
    from safetensors.torch import save as encode

    data = encode(
        {n: t.detach().cpu().contiguous() for n, t in tensors.items()},
        {"numbers": msgspec.json.encode(dict(numbers)).decode()},
    )
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A checkpoint; None where there is none that can be read."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            numbers = msgspec.json.decode((file.metadata() or {}).get("numbers", "{}"))
            return {n: file.get_tensor(n) for n in file.keys()}, numbers  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, msgspec.DecodeError):
        return None
