"""Writing a version's model where the user wants it: whole or not at all, and checked.

The model is written into a hidden folder beside the target, checked there, and moved into place.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import psutil

from studio.base.errors import StudioError
from studio.base.units import file_size
from studio.records.base import Record
from studio.records.measure import DataSpec
from studio.records.steps import Recipe
from studio.records.task import (
    AnswerBase,
    Applied,
    Apply,
    CheckExport,
    ExportChecked,
    InputSizes,
    Task,
)

A = TypeVar("A", bound=AnswerBase)

_PARTIAL = ".partial"


class Runs(Protocol):
    """What is needed of a running deed (`jobs.Run`), or of the command line's stand-in."""

    def say(self, share: float, words: str = "") -> None:
        """Report progress; may raise `Cancelled`."""

    def task(self, task: Task, kind: type[A], low: float = 0.0, high: float = 1.0) -> A:
        """Run a task in a worker."""


class Exported(Record, frozen=True, kw_only=True):
    """A model that was written, and what the check of it found."""

    path: str
    file_bytes: int
    check: ExportChecked | None = None
    words: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether the checker passed, the runtime loads it and it answers as the version does."""
        return self.check is not None and self.check.valid and self.check.loads


def check_target(target: Path, inputs: Iterable[Path], suffixes: Sequence[str] = (".onnx",)) -> None:
    """Refuse a target that cannot be written, that is one of the inputs, or that holds something else.

    Raises:
        StudioError: in words.
    """
    try:
        _check_target(target, inputs, suffixes)
    except OSError as error:  # a name that is too long, a folder that cannot be entered
        raise disk_error(target, error) from error


def _check_target(target: Path, inputs: Iterable[Path], suffixes: Sequence[str]) -> None:
    what = f"Cannot write {target}"
    if not target.parent.is_dir():
        raise StudioError(what, f"the folder {target.parent} does not exist")
    if target.is_dir():
        raise StudioError(what, "it is a folder", "Give the name of a file.")
    if not os.access(target.parent, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise StudioError(what, "there is no permission to write there", "Choose another folder.")
    for source in inputs:
        if source.exists() and target.exists() and target.samefile(source):
            raise StudioError(what, "it is a file that is read from", "The original is never altered.")
    if target.exists() and target.suffix not in suffixes:
        # It may be the weights of a model, or somebody's data.
        raise StudioError(
            what, f"it exists and does not end in {' or '.join(suffixes)}", "Choose another name."
        )


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a model to; moved into place when the block succeeds.

    Weights that lie beside the model move along. Whatever fails, what was there before is untouched.

    Raises:
        StudioError: the disk is full, or refuses.
    """
    folder: Path | None = None
    try:
        _sweep(target)
        prefix = f".{target.name}.{os.getpid()}."
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=_PARTIAL, dir=target.parent))
        yield folder / target.name
        beside = [path for path in folder.iterdir() if path.name != target.name]
        for path in (*beside, folder / target.name):
            path.replace(target.parent / path.name)
    except OSError as error:
        raise disk_error(target, error) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove what a killed process left of an earlier attempt at the same target."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*{_PARTIAL}"):
        pid = left.name.removeprefix(f".{target.name}.").split(".")[0]
        if left.is_dir() and pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def disk_error(target: Path, error: OSError) -> StudioError:
    """A failure to write, in words."""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    why = "the disk is full" if full else (error.strerror or str(error))
    return StudioError(f"Cannot write {target}", why, "Nothing was changed; choose another place.")


def copy_model(run: Runs, source: Path, whole_bytes: int, target: Path, high: float = 1.0) -> None:
    """Copy a model byte for byte; one with weights beside it is written anew by a worker.

    Args:
        run: for progress and the worker.
        source: the model.
        whole_bytes: of the model with everything beside it; 0 = not known.
        target: in a folder that holds nothing else.
        high: share of the deed that this is.

    Raises:
        OSError: a plain copy failed.
        StudioError: the worker failed.
    """
    if whole_bytes == source.stat().st_size:
        _copy(source, target, lambda share: run.say(share * high, "Writing the model"))
    else:
        task = Apply(model=str(source), recipe=Recipe(steps=()), output=str(target), checkpoints=False)
        run.task(task, Applied, 0.0, high)


def _copy(source: Path, target: Path, report: Callable[[float], None]) -> None:
    total, done = max(source.stat().st_size, 1), 0
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(1 << 22):
            writer.write(chunk)
            done += len(chunk)
            report(done / total)
        writer.flush()
        os.fsync(writer.fileno())


def write_model(
    run: Runs,
    source: Path,
    whole_bytes: int,
    target: Path,
    inputs: Iterable[Path],
    *,
    evaluation: DataSpec | None = None,
    input_sizes: InputSizes = (),
) -> Exported:
    """Write the model `source` to `target` and check what was written.

    Args:
        run: for progress and workers.
        source: the version's own file.
        whole_bytes: of it with everything beside it; 0 = not known.
        target: where to.
        inputs: files that must not be overwritten.
        evaluation: samples to compare outputs on.
        input_sizes: of dynamic dimensions.

    Raises:
        StudioError: nothing was written.
        Cancelled: nothing was written.
    """
    check_target(target, inputs)
    with written_whole(target) as partial:
        copy_model(run, source, whole_bytes, partial, high=0.3)
        task = CheckExport(
            model=str(partial), version=str(source), evaluation=evaluation, input_sizes=input_sizes
        )
        check = run.task(task, ExportChecked, 0.3, 1.0)
        size = sum(path.stat().st_size for path in partial.parent.iterdir())
    words = (f"{file_size(size)} written to {target.name}", *check.words)
    return Exported(path=str(target), file_bytes=size, check=check, words=words)
