"""What the model really receives: statistics per input, the first samples as text and as pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from studio.base.progress import Progress
from studio.base.units import shape as shape_text
from studio.engine.dataset.core import UNLABELLED, Array, Batch, Dataset
from studio.engine.dataset.images import Images, restore
from studio.engine.dataset.opening import open_for
from studio.engine.graph import load
from studio.records.task import DataPreview, DescribeData

_SHOWN = 8
_LOOKED_AT = 256
_VALUES = 12
_SMALLEST_PICTURE = 8


def describe_data(task: DescribeData, progress: Progress) -> DataPreview:
    """Read a data set as the model would, and say what arrives.

    Statistics are over the first 256 samples, pictures and rows of the first 8.

    Raises:
        StudioError: the data cannot be read or do not fit the model.
    """
    progress.tick(0.0, "reading the model")
    model = load(Path(task.model))
    data = open_for(model, task.spec)
    progress.tick(0.2, "reading samples")
    return preview(data, Path(task.folder) if task.folder else None, progress.part(0.2, 1.0))


def preview(data: Dataset, folder: Path | None, progress: Progress) -> DataPreview:
    """The preview of a data set; PNGs go into `folder` where one is given."""
    looked = data.take(_LOOKED_AT)
    ranges: dict[str, _Spread] = {}
    samples: list[Batch] = []
    for number, batch in enumerate(looked.batches()):
        progress.tick(number / max(1, looked.runs()), "reading samples")
        for name, array in batch.feed.items():
            ranges.setdefault(name, _Spread()).add(array)
        if len(samples) < _SHOWN:
            samples.extend(list(_singles(batch))[: _SHOWN - len(samples)])
    images = [] if folder is None else list(_pictures(data, samples, folder))
    return DataPreview(
        summary=data.summary(),
        inputs=tuple(spread.line(name) for name, spread in ranges.items()),
        images=tuple(str(path) for path in images),
        rows=tuple(_row_text(batch) for batch in samples),
        labels=tuple(_label_text(data, batch.labels) for batch in samples),
    )


class _Spread:
    """Type, shape, smallest, mean and largest value of what arrives at one input."""

    def __init__(self) -> None:
        self.low, self.high, self.total, self.count = np.inf, -np.inf, 0.0, 0
        self.dtype, self.shape = "", ""

    def add(self, array: Array) -> None:
        if not self.dtype:
            self.dtype = array.dtype.name
            self.shape = shape_text(array.shape)
        if array.size:
            self.low = min(self.low, float(array.min()))
            self.high = max(self.high, float(array.max()))
            self.total += float(array.sum(dtype=np.float64))
            self.count += array.size

    def line(self, name: str) -> tuple[str, str, str, float, float, float]:
        if not self.count:
            return (name, self.dtype, self.shape, 0.0, 0.0, 0.0)
        return (name, self.dtype, self.shape, self.low, self.total / self.count, self.high)


def _singles(batch: Batch) -> Iterator[Batch]:
    """The samples of a batch one by one; inputs that do not count samples stay as they are."""
    for index in range(batch.count):
        feed = {
            name: array[index : index + 1] if array.ndim and len(array) == batch.count else array
            for name, array in batch.feed.items()
        }
        yield Batch(feed, None if batch.labels is None else batch.labels[index : index + 1], 1)


def _row_text(batch: Batch) -> str:
    """'input_ids: 101, 7592, … · attention_mask: 1, 1, …'."""
    parts = []
    for name, array in batch.feed.items():
        values = array.reshape(-1)
        shown = ", ".join(f"{v:.4g}" if array.dtype.kind == "f" else str(v) for v in values[:_VALUES])
        parts.append(f"{name}: {shown}{', …' if values.size > _VALUES else ''}")
    return " · ".join(parts)


def _label_text(data: Dataset, labels: Array | None) -> str:
    """'3', '3 (cat)' where a folder gives the class its name; '' for unlabelled."""
    if labels is None or (labels == UNLABELLED).all():
        return ""
    values = labels.reshape(-1)
    if isinstance(data.source, Images):
        name = data.source.class_name(int(values[0]))
        return str(values[0]) if name == str(values[0]) else f"{values[0]} ({name})"
    return ", ".join(str(v) for v in values[:_VALUES]) + (", …" if values.size > _VALUES else "")


def _pictures(data: Dataset, samples: list[Batch], folder: Path) -> Iterator[Path]:
    """PNGs of the samples, as far as an input looks like a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, batch in enumerate(samples):
        for array in batch.feed.values():
            if isinstance(data.source, Images):
                pixels: Array | None = restore(array[0], data.source.preprocess)
            else:
                pixels = _as_picture(array)
            if pixels is not None:
                path = folder / f"sample-{number}.png"
                Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)
                yield path
                break


def _as_picture(array: Array) -> Array | None:
    """Pixels of a (1, C, H, W) or (1, H, W, C) array, stretched from its smallest to its largest value."""
    if array.ndim != 4 or array.dtype.kind not in "fui":
        return None
    one: Array = array[0]
    if one.shape[0] in {1, 3}:
        one = one.transpose(1, 2, 0)
    if one.shape[2] not in {1, 3} or min(one.shape[:2]) < _SMALLEST_PICTURE:
        return None
    low, high = float(one.min()), float(one.max())
    pixels: Array = np.rint((one - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
    return pixels
