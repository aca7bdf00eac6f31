"""Samples stored as arrays: one .npz or .npy file, or a folder of .npz files with one feed each.

How an array of a file becomes feeds:

- rank of the input: its first axis counts samples, a run takes some of them;
- one axis more: every row is a whole input of its own, one a run (an axis of 1 may be merged);
- the exact shape of an input whose first axis is fixed, where others count samples differently, or a scalar: the
  same for every sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from studio.base.errors import StudioError
from studio.base.units import shape as shape_text
from studio.engine.dataset.core import UNLABELLED, Array, Batch, Order
from studio.engine.dataset.fitting import check_names, check_shape, converted
from studio.engine.dataset.stored import StoredArray, arrays
from studio.records.model import TensorInfo

LABELS = "labels"
Role = Literal["rows", "merged", "whole", "constant"]


@dataclass(frozen=True)
class ArrayFile:
    """A source over the arrays of one file; see the module's text."""

    what: str
    count: int
    batch: int
    columns: tuple[tuple[TensorInfo, StoredArray, Role], ...]
    stored_labels: StoredArray | None
    cautions: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """See `Source`."""
        return self.stored_labels is not None

    def read(self, order: Order, size: int) -> Iterator[Batch]:
        """See `Source`."""
        same = {
            info.name: converted(stored.all(), info, self.what)
            for info, stored, role in self.columns
            if role == "constant"
        }
        moving = [(info, stored, role) for info, stored, role in self.columns if role != "constant"]
        streams = [stored.rows(order, size) for _, stored, _ in moving]
        labels = self._label_rows(order, size) if self.labelled else None
        for blocks in zip(*streams, strict=True):
            feed = dict(same)
            for (info, _, role), block in zip(moving, blocks, strict=True):
                ready = block.reshape(-1, *block.shape[2:]) if role == "merged" else block
                feed[info.name] = converted(ready[0] if role == "whole" else ready, info, self.what)
            yield Batch(feed, next(labels) if labels is not None else None, len(blocks[0]))

    def labels(self, order: Order) -> Iterator[Array]:
        """See `Source`."""
        yield from self._label_rows(order, len(order))

    def _label_rows(self, order: Order, size: int) -> Iterator[Array]:
        if self.stored_labels is not None:
            for block in self.stored_labels.rows(order, size):
                yield _signed(block)


def open_file(path: Path, inputs: tuple[TensorInfo, ...], only_input: str = "") -> ArrayFile:
    """The source over one .npz or .npy file.

    Raises:
        StudioError: damaged, or names, types or shapes do not fit the model.
    """
    stored = arrays(path)
    if path.suffix.lower() == ".npy":
        stored = {_single_input(inputs, only_input, path.name).name: stored[""]}
    check_names(stored, inputs, path.name)
    chosen = [(info, stored[info.name]) for info in inputs]
    roles, count = _roles(chosen, path.name)
    columns = tuple((info, array, role) for (info, array), role in zip(chosen, roles, strict=True))
    labels = stored.get(LABELS) if LABELS not in {i.name for i in inputs} else None
    if labels is not None and (not labels.shape or labels.shape[0] != count):
        have = labels.shape[0] if labels.shape else "a single value"
        raise StudioError(
            f"The labels of {path.name} do not fit", f"expected {count}, one a sample, got {have}"
        )
    if count == 0:
        raise StudioError(f"{path.name} holds no samples", hint="Choose a file with at least one.")
    _try_types(columns, path.name)
    return ArrayFile(path.name, count, _batch(columns), columns, labels, _cautions(columns, stored, inputs))


def _single_input(inputs: tuple[TensorInfo, ...], wanted: str, what: str) -> TensorInfo:
    """The one input that a file without names feeds."""
    if wanted:
        for info in inputs:
            if info.name == wanted:
                return info
        raise StudioError(f"The model has no input '{wanted}'", f"its inputs are {[i.name for i in inputs]}")
    if len(inputs) != 1:
        raise StudioError(
            f"{what} holds one array, and the model has {len(inputs)} inputs",
            hint="Use an .npz file with one array per input.",
        )
    return inputs[0]


def _roles(chosen: list[tuple[TensorInfo, StoredArray]], what: str) -> tuple[list[Role], int]:
    """How each array is read, and how many samples there are."""
    roles: list[Role] = []
    for info, array in chosen:
        rank = len(info.shape) if info.shape is not None else len(array.shape)
        if not array.shape:
            check_shape(array.shape, info, what, sample_axis=False)
            roles.append("constant")
        elif len(array.shape) == rank + 1:
            check_shape(array.shape[1:], info, what, sample_axis=False)
            first_is_free = info.shape is not None and rank > 0 and not isinstance(info.shape[0], int)
            roles.append("merged" if first_is_free and array.shape[1] == 1 else "whole")
        else:
            check_shape(array.shape, info, what, sample_axis=True)
            roles.append("rows")
    if "whole" in roles:
        roles = ["whole" if role == "merged" else role for role in roles]
    counts = {array.shape[0] for (_, array), role in zip(chosen, roles, strict=True) if role != "constant"}
    if len(counts) > 1:
        roles, counts = _with_constants(chosen, roles)
    if len(counts) > 1:
        sizes = ", ".join(f"'{info.name}' {shape_text(array.shape)}" for info, array in chosen)
        raise StudioError(f"The arrays of {what} differ in their number of samples", sizes)
    return roles, counts.pop() if counts else 1


def _with_constants(
    chosen: list[tuple[TensorInfo, StoredArray]], roles: list[Role]
) -> tuple[list[Role], set[int]]:
    """Take arrays that have exactly the shape of an input with a fixed first axis as the same for every sample."""
    changed: list[Role] = []
    for (info, array), role in zip(chosen, roles, strict=True):
        fixed = (
            role == "rows" and bool(info.shape) and info.shape is not None and info.shape[0] == array.shape[0]
        )
        changed.append("constant" if fixed else role)
    moving = {array.shape[0] for (_, array), role in zip(chosen, changed, strict=True) if role != "constant"}
    return changed, moving


def _batch(columns: tuple[tuple[TensorInfo, StoredArray, Role], ...]) -> int:
    """Samples that one run must take; 0 = any number."""
    if any(role == "whole" for _, _, role in columns):
        return 1
    for info, _, role in columns:
        if role == "rows" and info.shape and isinstance(info.shape[0], int):
            return info.shape[0]
    return 0


def _try_types(columns: tuple[tuple[TensorInfo, StoredArray, Role], ...], what: str) -> None:
    """Fail on opening, not in the middle of a job, when types do not fit."""
    first = np.zeros(1, np.int64)
    for info, array, role in columns:
        block = array.all() if role == "constant" else next(array.rows(first, 1))
        converted(block, info, what)


def _cautions(
    columns: tuple[tuple[TensorInfo, StoredArray, Role], ...],
    stored: Mapping[str, StoredArray],
    inputs: tuple[TensorInfo, ...],
) -> tuple[str, ...]:
    notes = []
    for info, array, _ in columns:
        if array.dtype.kind in "iu" and info.dtype.startswith("float"):
            notes.append(f"'{info.name}' is stored as {array.dtype.name} and used as it is, not scaled")
    unused = [name for name in stored if name != LABELS and name not in {i.name for i in inputs}]
    if unused:
        notes.append(f"not used: {', '.join(unused)}")
    return tuple(notes)


@dataclass(frozen=True)
class FeedFolder:
    """A folder of .npz files, each a whole feed: for inputs that do not stack (states, scalars, varying widths).

    A sample is a file. A file's `labels` may have any shape.
    """

    what: str
    files: tuple[Path, ...]
    inputs: tuple[TensorInfo, ...]
    labelled: bool
    label_sizes: tuple[int, ...] = ()
    batch: int = 1
    cautions: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """See `Source`."""
        return len(self.files)

    def read(self, order: Order, size: int) -> Iterator[Batch]:  # noqa: ARG002 - a feed is a run
        """See `Source`."""
        for index in order:
            path = self.files[index]
            stored = arrays(path)
            check_names(stored, self.inputs, path.name)
            feed = {}
            for info in self.inputs:
                check_shape(stored[info.name].shape, info, path.name, sample_axis=False)
                feed[info.name] = converted(stored[info.name].all(), info, path.name)
            yield Batch(feed, self._labels(stored) if self.labelled else None, 1)

    def labels(self, order: Order) -> Iterator[Array]:
        """See `Source`."""
        for index in order:
            yield self._labels(arrays(self.files[index]))

    def _labels(self, stored: Mapping[str, StoredArray]) -> Array:
        """The labels of one file with an axis for the sample in front; −1 where there are none."""
        if LABELS not in stored:
            return np.full((1, *self.label_sizes), UNLABELLED)
        return _signed(stored[LABELS].all()[None])


def open_folder(folder: Path, inputs: tuple[TensorInfo, ...]) -> FeedFolder:
    """The source over a folder of .npz files, in the order of their names ('2' before '10').

    Raises:
        StudioError: no such files, or the first does not fit.
    """
    files = sorted(folder.glob("*.npz"), key=lambda p: _natural(p.name))
    if not files:
        raise StudioError(f"{folder.name} holds no samples", "there is no .npz file in it")
    stored = arrays(files[0])
    check_names(stored, inputs, files[0].name)
    for info in inputs:
        check_shape(stored[info.name].shape, info, files[0].name, sample_axis=False)
    labelled = LABELS in stored
    sizes = stored[LABELS].shape if labelled else ()
    return FeedFolder(folder.name, tuple(files), inputs, labelled, sizes)


def _signed(labels: Array) -> Array:
    """Labels in a type that has a place for −1."""
    return labels.astype(np.int64) if labels.dtype.kind in "bu" else labels


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A sort key under which numbers in a name count as numbers."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]
