"""The confined process: loads what may run code, writes ONNX into its own folder, and says what happened.

It is asked by `request.json` in that folder and answers by `model.onnx`, `check.npz` (inputs and the outputs
that torch gave for them) and `answer.json`. Whoever reads those treats them as a stranger's.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from studio.engine.importing.sandbox import confine

if TYPE_CHECKING:
    import torch


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be converted; `shapes` of example inputs, by position or name, with a type: ('x', 'float32', (1, 3))."""

    source: str
    kind: str
    factory: str = ""
    folder: str = ""
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    opset: int = 18


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How it went; `error` is '' when a model was written."""

    error: str = ""
    details: str = ""
    held: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def main(folder: Path) -> int:
    """Convert; the exit code says whether an answer was written."""
    request = msgspec.json.decode((folder / "request.json").read_bytes(), type=Request)
    os.environ.update(HOME=str(folder), TMPDIR=str(folder), TORCHINDUCTOR_CACHE_DIR=str(folder))
    import torch
    import torch.onnx

    torch.set_num_threads(1)
    readable = [Path(request.source), *([Path(request.folder)] if request.folder else [])]
    held = confine(readable, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = _convert(request, folder)
        answer = Answer(held=held, names=names)
    except Exception as error:  # noqa: BLE001 - the door of this process: foreign code may raise anything
        import traceback

        answer = Answer(
            error=f"{type(error).__name__}: {error}"[:2000], details=traceback.format_exc()[-8000:], held=held
        )
    (folder / "answer.json").write_bytes(msgspec.json.encode(answer))
    return 0


def _convert(request: Request, folder: Path) -> tuple[str, ...]:
    import torch

    target = folder / "model.onnx"
    examples = tuple(_example(kind, shape) for _name, kind, shape in request.inputs)
    names = [name for name, _kind, _shape in request.inputs if name]
    if request.kind == "program":
        program: Any = torch.export.load(request.source)
        given = program.example_inputs
        if given is not None and not examples:
            examples = tuple(given[0])
        torch.onnx.export(
            program, (), str(target), dynamo=True, optimize=False, external_data=False, verbose=False
        )
        module: Any = program.module()
    elif request.kind == "torchscript":
        module = torch.jit.load(request.source, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        _legacy(module, examples, names, target, request.opset)
    else:
        module = _built(request)
        free = tuple({0: torch.export.Dim.AUTO} if e.ndim else None for e in examples)
        torch.onnx.export(
            module, examples, str(target), dynamo=True, optimize=False, external_data=False, verbose=False,
            input_names=names or None, dynamic_shapes=free, opset_version=request.opset,
        )  # fmt: skip
    with torch.no_grad():
        outputs = module(*examples)
    found = outputs if isinstance(outputs, list | tuple) else [outputs]
    arrays = {f"in{i}": e.numpy() for i, e in enumerate(examples)}
    arrays |= {f"out{i}": o.detach().numpy() for i, o in enumerate(found) if isinstance(o, torch.Tensor)}
    np.savez(folder / "check.npz", allow_pickle=False, **arrays)
    return tuple(name for name, _ in module.named_parameters())


def _legacy(module: Any, examples: tuple[Any, ...], names: list[str], target: Path, opset: int) -> None:
    import torch

    axes = {n: {0: "N"} for n, e in zip(names, examples, strict=False) if e.ndim}
    torch.onnx.export(
        module, examples, str(target), dynamo=False, input_names=names or None, dynamic_axes=axes or None,
        do_constant_folding=False, opset_version=min(opset, 17),
    )  # fmt: skip


def _built(request: Request) -> torch.nn.Module:
    """The factory's module with the file's weights."""
    import torch

    state: Mapping[str, torch.Tensor]
    if request.kind == "safetensors":
        from safetensors.torch import load_file

        state = load_file(request.source)
    else:
        loaded = torch.load(request.source, map_location="cpu", weights_only=True)
        state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    sys.path.insert(0, request.folder)
    module_name, _, function = request.factory.partition(":")
    module = getattr(importlib.import_module(module_name), function)()
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"{request.factory} gave a {type(module).__name__}, not a torch.nn.Module")
    module.load_state_dict(state)
    return module.eval()


def _example(kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(0)
    if kind.startswith("int"):
        return torch.randint(0, 2, shape, generator=generator).to(getattr(torch, kind))
    if kind == "bool":
        return torch.ones(shape, dtype=torch.bool)
    return torch.randn(shape, generator=generator).to(getattr(torch, kind))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
