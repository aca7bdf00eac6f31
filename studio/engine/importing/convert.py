"""From a PyTorch file to a checked ONNX model, with consent where code would run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.base.units import counted
from studio.engine import execute, graph
from studio.engine.graph import Model
from studio.engine.importing.child import Answer, Request
from studio.engine.importing.kinds import Kind, kind_of
from studio.engine.quantization.simplify import tidy
from studio.records import task

_TOLERANCE = 1e-3  # of the spread of torch's own outputs
_SAFE = "A safe way: in your own Python, run torch.onnx.export(model, inputs, 'model.onnx', dynamo=True) and open that file."


def import_model(asked: task.Import, progress: Progress) -> task.Imported:
    """Answer an `Import`.

    Raises:
        StudioError: consent is missing, or the file cannot be converted; nothing is written then.
        Cancelled: at any tick; the confined process is ended.
    """
    source = Path(asked.source).absolute()
    kind = kind_of(source)
    _check(asked, source, kind)
    with tempfile.TemporaryDirectory(prefix="featherweight-import-") as place:
        folder = Path(place)
        answer = _confined(asked, source, kind, folder, progress)
        progress.tick(0.9, "checking")
        read = _read(folder, source)
        model = tidy(read, answer.names)
        _compare(model, folder, source)
        written = graph.save(model, Path(asked.output))
    output = Path(asked.output)
    given = {v.name for v in read.graph.initializers.values()}
    lost = sum(1 for name in answer.names if name not in given)
    notes = [f"Converted in a process of its own: {', '.join(answer.held) or 'without any confinement'}."]
    if folded := sum(n.op_type == "BatchNormalization" for n in read.graph) - sum(
        n.op_type == "BatchNormalization" for n in model.graph
    ):
        notes.append(f"{counted(folded, 'batch normalisation')} moved into the convolutions before.")
    if lost:
        notes.append(f"{lost} of {len(answer.names)} parameters have another name in the ONNX model.")
    return task.Imported(
        output=str(output), digest=graph.digest(output), file_bytes=written, notes=tuple(notes)
    )


def _check(asked: task.Import, source: Path, kind: Kind) -> None:
    """Refuse what needs no process to be refused."""
    if kind == "onnx":
        raise StudioError(f"{source.name} is an ONNX model already", hint="Open it.")
    if kind in ("safetensors", "weights"):
        if not asked.factory:
            raise StudioError(
                f"{source.name} holds weights only",
                "the network that they belong to is not in the file",
                "Name a function that builds it: --factory module:function. Its code will be run.",
            )
        if ":" not in asked.factory:
            raise StudioError(
                f"'{asked.factory}' names no function", hint="Write module:function, e.g. nets.resnet:small."
            )
    if kind != "program" and not asked.inputs:
        raise StudioError(
            "The shapes of the inputs are needed",
            f"{source.name} does not tell them",
            "Give one an input: --input 1x3x224x224.",
        )
    if not asked.consent:
        raise StudioError(
            _what_runs(source, kind, asked.factory),
            "nothing was run",
            f"Agree with --run-code only if you trust it. {_SAFE}",
        )


def _what_runs(source: Path, kind: Kind, factory: str) -> str:
    if kind == "program":
        return f"Loading {source.name} can run code that is hidden in it"
    if kind == "torchscript":
        return f"{source.name} is a TorchScript program, and converting it runs it"
    return f"Building the network runs the code of {factory}"


def _confined(asked: task.Import, source: Path, kind: Kind, folder: Path, progress: Progress) -> Answer:
    request = Request(
        source=str(source),
        kind=kind,
        factory=asked.factory,
        folder=str(Path(asked.folder or source.parent).absolute()),
        inputs=tuple((i.name, i.dtype, tuple(int(d) for d in i.shape or ())) for i in asked.inputs),
        opset=asked.opset,
    )
    (folder / "request.json").write_bytes(msgspec.json.encode(request))
    home = Path(__file__).resolve().parents[3]
    env = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}
    command = (
        [sys.executable, "import-child", str(folder)]
        if getattr(sys, "frozen", False)
        else [sys.executable, "-m", "studio.engine.importing.child", str(folder)]
    )
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                progress.tick(0.3, "converting, in a process of its own")
                time.sleep(0.1)
        finally:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
    reply = folder / "answer.json"
    tail = (folder / "log.txt").read_text("utf-8", "replace")[-4000:]
    if not reply.is_file() or reply.is_symlink():
        raise StudioError(f"Cannot convert {source.name}", "the process that did it died", details=tail)
    try:
        answer = msgspec.json.decode(reply.read_bytes(), type=Answer)
    except msgspec.DecodeError as error:
        raise StudioError(
            f"Cannot convert {source.name}", "its process answered nonsense", details=tail
        ) from error
    if answer.error:
        hint = _SAFE if "weights_only" in answer.details or "Unsupported global" in answer.details else ""
        why = "it holds pickled Python objects, which run code when they are read" if hint else answer.error
        raise StudioError(f"Cannot convert {source.name}", why, hint, answer.details)
    return answer


def _read(folder: Path, source: Path) -> Model:
    path = folder / "model.onnx"
    if not path.is_file() or path.is_symlink():
        raise StudioError(f"Cannot convert {source.name}", "its process wrote no model")
    return graph.load(path)


def _compare(model: Model, folder: Path, source: Path) -> None:
    """The runtime must give torch's own outputs."""
    with np.load(folder / "check.npz", allow_pickle=False) as stored:
        feeds = [stored[f"in{i}"] for i in range(sum(n.startswith("in") for n in stored.files))]
        wanted = [stored[f"out{i}"] for i in range(sum(n.startswith("out") for n in stored.files))]
    names = [v.name or "" for v in model.graph.inputs if not v.is_initializer()]
    got = execute.run(execute.session(model, threads=1), dict(zip(names, feeds, strict=True)))
    for ours, theirs in zip(got, wanted, strict=False):
        spread = float(np.std(theirs)) + 1e-6 * float(np.abs(theirs).max(initial=0)) + 1e-12
        if (
            ours.shape != theirs.shape
            or not np.abs(ours - theirs).max(initial=0) <= _TOLERANCE * spread + 1e-5
        ):
            raise StudioError(
                f"{source.name} was converted, but gives other answers",
                "ONNX and PyTorch disagree on a random input",
            )
