"""Samples that are rows of a CSV: numeric columns become the input, one column may be the label.

A model with one input gets all numeric columns in their order, reshaped to the input's shape; a model with many
inputs gets each from the column of its name.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from studio.base.errors import StudioError
from studio.engine.dataset.core import UNLABELLED, Array, Batch, Order
from studio.engine.dataset.fitting import check_names, converted, expected_text, numpy_dtype
from studio.records.measure import DataSpec
from studio.records.model import TensorInfo

_LABEL_NAMES = ("label", "labels", "class", "target")


@dataclass(frozen=True)
class Table:
    """A source over the rows of one file.

    Attributes:
        columns: of every input: positions in a row, and the shape of a sample.
        label: position of the label; −1 without.
        classes: texts that labels stand for, sorted; empty where labels are numbers.
    """

    path: Path
    count: int
    batch: int
    delimiter: str
    header: bool
    columns: tuple[tuple[TensorInfo, tuple[int, ...], tuple[int, ...]], ...]
    label: int
    classes: tuple[str, ...]
    cautions: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """See `Source`."""
        return self.path.name

    @property
    def labelled(self) -> bool:
        """See `Source`."""
        return self.label >= 0

    def read(self, order: Order, size: int) -> Iterator[Batch]:
        """See `Source`."""
        rows = self._rows(order)
        while taken := list(itertools.islice(rows, size)):
            yield self._batch(taken)

    def labels(self, order: Order) -> Iterator[Array]:
        """See `Source`."""
        yield np.array([self._label(row, number) for number, row in self._rows(order)])

    def _rows(self, order: Order) -> Iterator[tuple[int, list[str]]]:
        """The rows of `order` with their numbers."""
        wanted = iter(order.tolist())
        awaited = next(wanted, None)
        for number, row in enumerate(_rows(self.path, self.delimiter, self.header)):
            if number == awaited:
                yield number, row
                awaited = next(wanted, None)
            if awaited is None:
                return

    def _batch(self, rows: list[tuple[int, list[str]]]) -> Batch:
        feed = {}
        for info, positions, shape in self.columns:
            values = np.array([[self._number(row, p, number) for p in positions] for number, row in rows])
            feed[info.name] = _as_input(values.reshape(len(rows), *shape), info, self.what)
        labels = np.array([self._label(row, number) for number, row in rows]) if self.labelled else None
        return Batch(feed, labels, len(rows))

    def _number(self, row: list[str], position: int, number: int) -> float:
        try:
            return float(row[position])
        except (ValueError, IndexError) as error:
            got = f"'{row[position]}'" if position < len(row) else "nothing"
            raise StudioError(
                f"Cannot read {self.what}",
                f"sample {number + 1}, column {position + 1}: expected a number, got {got}",
            ) from error

    def _label(self, row: list[str], number: int) -> float | int:
        if self.classes:
            text = row[self.label].strip() if self.label < len(row) else ""
            return self.classes.index(text) if text in self.classes else UNLABELLED
        value = self._number(row, self.label, number)
        return int(value) if value.is_integer() else value


def open_table(path: Path, inputs: tuple[TensorInfo, ...], spec: DataSpec) -> Table:
    """The source over a CSV or TSV file.

    Raises:
        StudioError: empty, no such label column, or the columns do not fit the inputs.
    """
    delimiter = _delimiter(path)
    top = [cell.strip() for cell in next(_rows(path, delimiter, header=False), [])]
    second = next(_rows(path, delimiter, header=True), [])
    header = _is_header(top, second)
    count = sum(1 for _ in _rows(path, delimiter, header))
    if not top or count == 0:
        raise StudioError(
            f"{path.name} holds no samples", hint="Choose a file with at least one row of numbers."
        )
    label = _label_position(top if header else [], spec.label_column, path.name, len(top))
    first = next(_rows(path, delimiter, header))
    numeric = [i for i, cell in enumerate(first) if i != label and _is_number(cell)]
    classes = _classes(path, delimiter, header, label)
    columns = _columns(inputs, top if header else [], numeric, path.name)
    skipped = [top[i] if header else str(i + 1) for i in range(len(top)) if i != label and i not in numeric]
    cautions = (f"columns without numbers left out: {', '.join(skipped)}",) if skipped else ()
    sizes = {info.shape[0] for info in inputs if info.shape and isinstance(info.shape[0], int)}
    return Table(path, count, max(sizes, default=0), delimiter, header, columns, label, classes, cautions)


def _delimiter(path: Path) -> str:
    """Whichever of tab, semicolon and comma the first line has most of."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return max(",;\t", key=stream.readline().count)
    except (OSError, UnicodeDecodeError) as error:
        raise StudioError(f"Cannot read {path.name}", "it is no text in UTF-8") from error


def _is_header(top: list[str], second: list[str]) -> bool:
    """Whether the first row names columns: a text above a number, or not a number in it."""
    above = any(_is_number(low) and not _is_number(high) for high, low in zip(top, second, strict=False))
    return above or not any(_is_number(cell) for cell in top)


def _rows(path: Path, delimiter: str, header: bool) -> Iterator[list[str]]:
    """Rows that are not empty, without the header."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        filled = (row for row in csv.reader(stream, delimiter=delimiter) if any(cell.strip() for cell in row))
        try:
            if header:
                next(filled, None)
            yield from filled
        except (UnicodeDecodeError, csv.Error) as error:
            raise StudioError(f"Cannot read {path.name}", f"it is damaged or no table ({error})") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _label_position(names: list[str], wanted: str, what: str, width: int) -> int:
    """Where the label column is: by name, by number from 1, or by a usual name; −1 without."""
    if not wanted:
        return next((i for i, name in enumerate(names) if name.lower() in _LABEL_NAMES), -1)
    if wanted in names:
        return names.index(wanted)
    if wanted.isdigit() and 1 <= int(wanted) <= width:
        return int(wanted) - 1
    raise StudioError(f"{what} has no column '{wanted}'", f"its columns are {names or f'1 to {width}'}")


def _classes(path: Path, delimiter: str, header: bool, label: int) -> tuple[str, ...]:
    """The texts in the label column, sorted; empty where all are numbers or there is no label."""
    if label < 0:
        return ()
    texts = {row[label].strip() for row in _rows(path, delimiter, header) if label < len(row)}
    if all(_is_number(text) for text in texts if text):
        return ()
    return tuple(sorted(text for text in texts if text))


def _columns(
    inputs: tuple[TensorInfo, ...], names: list[str], numeric: list[int], what: str
) -> tuple[tuple[TensorInfo, tuple[int, ...], tuple[int, ...]], ...]:
    if len(inputs) > 1:
        check_names(names, inputs, what)
        return tuple((i, (names.index(i.name),), (1,) * (len(i.shape or (1,)) - 1)) for i in inputs)
    if not inputs:
        raise StudioError("The model has no inputs", hint="It can be run on random data only.")
    info = inputs[0]
    shape = _sample_shape(info, len(numeric))
    if shape is None:
        raise StudioError(
            f"{what} does not fit input '{info.name}'",
            f"expected {expected_text(info)}, got {len(numeric)} numeric columns",
        )
    return ((info, tuple(numeric), shape),)


def _sample_shape(info: TensorInfo, width: int) -> tuple[int, ...] | None:
    """The shape of a sample that `width` numbers fill; None when they do not. One free axis takes what is left."""
    if info.shape is None:
        return (width,)
    rest = info.shape[1:]
    known = int(np.prod([d for d in rest if isinstance(d, int)], dtype=np.int64))
    free = [axis for axis, d in enumerate(rest) if not isinstance(d, int)]
    if len(free) > 1 or known == 0 or width % known or (not free and known != width):
        return None
    return tuple(d if isinstance(d, int) else width // known for d in rest)


def _as_input(values: Array, info: TensorInfo, what: str) -> Array:
    """Numbers in the input's type; whole numbers may become integers."""
    if numpy_dtype(info).kind in "iu" and np.array_equal(values, np.rint(values)):
        return converted(values.astype(np.int64), info, what)
    return converted(values, info, what)
