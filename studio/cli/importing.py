"""`featherweight import`: a PyTorch file becomes an ONNX model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from studio.app.export import check_target
from studio.base import units
from studio.base.errors import StudioError
from studio.cli.terminal import Terminal
from studio.records.model import TensorInfo
from studio.records.task import Import, Imported

_INPUT = re.compile(r"(?:(?P<name>[^=]+)=)?(?:(?P<kind>[a-z]+\d*):)?(?P<sizes>\d+(?:x\d+)*|scalar)")


@dataclass(frozen=True)
class Order:
    """What the command line asked for."""

    source: Path
    output: Path
    factory: str = ""
    folder: Path | None = None
    inputs: tuple[str, ...] = ()
    consent: bool = False


def import_(order: Order) -> None:
    """Convert a file and say what came of it.

    Raises:
        StudioError: it cannot be converted, or would run code that nobody agreed to.
    """
    check_target(order.output.absolute(), [order.source])
    asked = Import(
        source=str(order.source.absolute()),
        output=str(order.output.absolute()),
        factory=order.factory,
        folder=str(order.folder.absolute()) if order.folder else "",
        inputs=tuple(parse_inputs(order.inputs)),
        consent=order.consent,
    )
    with Terminal() as terminal:
        done = terminal.ask(asked, Imported)
        terminal.line(f"{order.output.name}: {units.file_size(done.file_bytes)}")
        for note in done.notes:
            terminal.line(note)


def parse_inputs(texts: Sequence[str]) -> list[TensorInfo]:
    """'1x3x224x224', 'ids=int64:1x64' as inputs.

    Raises:
        StudioError: a text is neither.
    """
    found = []
    for number, text in enumerate(texts):
        match = _INPUT.fullmatch(text.strip())
        if match is None:
            raise StudioError(f"'{text}' is no input", "expected sizes like 1x3x224x224 or ids=int64:1x64")
        sizes = match["sizes"]
        shape = () if sizes == "scalar" else tuple(int(n) for n in sizes.split("x"))
        name = match["name"] or ("input" if len(texts) == 1 else f"input_{number}")
        found.append(TensorInfo(name=name, dtype=match["kind"] or "float32", shape=shape))
    return found
