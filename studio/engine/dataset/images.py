"""Samples that are image files: decoded, resized, cropped, normalised and laid out, one preprocessing for all.

    value = (pixel · scale − mean) / std        per channel

A folder of folders gives labels: the class is the folder, classes are numbered in the order of their names, or
by the names themselves where all of them are numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from studio.base.errors import StudioError
from studio.base.units import shape as shape_text
from studio.engine.dataset.core import UNLABELLED, Array, Batch, Order
from studio.engine.dataset.fitting import check_shape, expected_text, numpy_dtype
from studio.records.measure import DataSpec, Preprocess
from studio.records.model import TensorInfo

# Pillow would start Ghostscript for EPS; only formats that it decodes itself.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)


@dataclass(frozen=True)
class Images:
    """A source over image files with their classes (−1 where there is none)."""

    what: str
    files: tuple[tuple[Path, int], ...]
    info: TensorInfo
    preprocess: Preprocess
    batch: int
    labelled: bool
    cautions: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """See `Source`."""
        return len(self.files)

    def read(self, order: Order, size: int) -> Iterator[Batch]:
        """See `Source`."""
        for start in range(0, len(order), size):
            wanted = [self.files[index] for index in order[start : start + size]]
            pixels = np.stack([prepare(path, self.preprocess) for path, _ in wanted])
            labels = next(self.labels(order[start : start + size])) if self.labelled else None
            yield Batch({self.info.name: pixels.astype(numpy_dtype(self.info))}, labels, len(wanted))

    def labels(self, order: Order) -> Iterator[Array]:
        """See `Source`."""
        yield np.array([self.files[index][1] for index in order])

    def class_name(self, label: int) -> str:
        """What the folder of a class is called."""
        return next((path.parent.name for path, number in self.files if number == label), "")


def prepare(path: Path, how: Preprocess) -> Array:
    """What the model receives of one image: float32 (C, H, W) or (H, W, C).

    Raises:
        StudioError: no image, damaged, or so large that it may be an attack.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as opened:
                image = ImageOps.exif_transpose(opened).convert("L" if how.channels == "gray" else "RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise StudioError(
            f"Will not read {path.name}", "it unpacks to a suspiciously large picture"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise StudioError(f"Cannot read the picture {path.name}", "it is damaged or no picture") from error
    pixels = np.asarray(_fit(image, how), np.float32)
    if how.channels == "gray":
        pixels = pixels[..., None]
    elif how.channels == "bgr":
        pixels = pixels[..., ::-1]
    mean, std = per_channel(how)
    values = (pixels * np.float32(how.scale) - mean) / std  # (H, W, C)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if how.layout == "nchw" else values, np.float32)


def restore(values: Array, how: Preprocess) -> Array:
    """Pixels (H, W, 3 or 1), uint8, that `values` came from: the inverse of the normalisation and layout."""
    laid = values.transpose(1, 2, 0) if how.layout == "nchw" else values
    mean, std = per_channel(how)
    pixels = (laid * std + mean) / np.float32(how.scale or 1)
    if how.channels == "bgr":
        pixels = pixels[..., ::-1]
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def per_channel(how: Preprocess) -> tuple[Array, Array]:
    """Mean and deviation with one value per channel; a single one serves all, three are averaged for gray."""
    channels = 1 if how.channels == "gray" else 3
    both = []
    for name, given in (("mean", how.mean), ("std", how.std)):
        values = np.asarray(given, np.float32)
        if values.size == 1 or channels == 1:
            values = np.full(channels, values.mean(), np.float32)
        if values.size != channels:
            raise StudioError(f"The preprocessing's {name} does not fit", f"expected 1 or {channels} values")
        both.append(values)
    if not both[1].all():
        raise StudioError("The preprocessing's std does not fit", "it divides by zero")
    return both[0], both[1]


def _fit(image: Image.Image, how: Preprocess) -> Image.Image:
    """Resize to (width, height): stretched, cropped at the centre, or padded with black."""
    size = (how.width, how.height)
    bilinear = Image.Resampling.BILINEAR
    if how.resize == "stretch":
        return image.resize(size, bilinear)
    if how.resize == "pad":
        return ImageOps.pad(image, size, bilinear)
    cover = max(how.width / image.width, how.height / image.height) / how.crop_share
    scaled = image.resize(
        (max(how.width, round(image.width * cover)), max(how.height, round(image.height * cover))), bilinear
    )
    left, top = (scaled.width - how.width) // 2, (scaled.height - how.height) // 2
    return scaled.crop((left, top, left + how.width, top + how.height))


def sensible(info: TensorInfo) -> Preprocess:
    """The usual ImageNet preprocessing, with size, channels and layout as far as the input's shape tells."""
    usual = Preprocess()
    dims = info.shape or ()
    if len(dims) != 4:
        return usual
    last = dims[3] in {1, 3} and dims[1] not in {1, 3}
    height, width = (dims[1], dims[2]) if last else (dims[2], dims[3])
    gray = (dims[3] if last else dims[1]) == 1
    raw = info.dtype in {"uint8", "int8"}
    return Preprocess(
        height=height if isinstance(height, int) else usual.height,
        width=width if isinstance(width, int) else usual.width,
        channels="gray" if gray else "rgb",
        layout="nhwc" if last else "nchw",
        scale=1.0 if raw else usual.scale,
        mean=(0.0,) if raw else usual.mean,
        std=(1.0,) if raw else usual.std,
    )


def open_images(path: Path, inputs: tuple[TensorInfo, ...], spec: DataSpec) -> Images:
    """The source over a folder of images, of class folders, or one image.

    Raises:
        StudioError: no images, the preprocessing does not give the input's shape, or more than one input.
    """
    info = _image_input(inputs, spec.input)
    how = spec.preprocess or sensible(info)
    channels = 1 if how.channels == "gray" else 3
    made = (channels, how.height, how.width) if how.layout == "nchw" else (how.height, how.width, channels)
    check_shape((1, *made), info, f"the preprocessing ({shape_text(made)})", sample_axis=True)
    per_channel(how)
    files, labelled = _files(path)
    if not files:
        raise StudioError(
            f"{path.name} holds no samples",
            "there is no picture in it",
            f"Known endings: {', '.join(sorted(IMAGE_SUFFIXES))}.",
        )
    prepare(files[0][0], how)  # so that a broken folder is told on opening
    first = info.shape[0] if info.shape else 0
    guessed = () if spec.preprocess else ("preprocessing guessed: ImageNet's mean and deviation",)
    return Images(path.name, files, info, how, first if isinstance(first, int) else 0, labelled, guessed)


def _image_input(inputs: tuple[TensorInfo, ...], wanted: str) -> TensorInfo:
    if len(inputs) != 1:
        raise StudioError(
            f"Pictures feed one input, and the model has {len(inputs)}",
            hint="Use an .npz file with one array per input.",
        )
    if wanted and inputs[0].name != wanted:
        raise StudioError(f"The model has no input '{wanted}'", f"its input is '{inputs[0].name}'")
    if inputs[0].shape is not None and len(inputs[0].shape) != 4:
        raise StudioError(
            f"Input '{inputs[0].name}' takes no pictures", f"its shape is {expected_text(inputs[0])}"
        )
    return inputs[0]


def _files(path: Path) -> tuple[tuple[tuple[Path, int], ...], bool]:
    """Image files with classes, and whether there are classes; classes take turns, so that a part has them all."""
    if path.is_file():
        return ((path, UNLABELLED),), False
    folders = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    classes = [(folder, found) for folder in folders if (found := _pictures(folder))]
    if not classes:
        return tuple((file, UNLABELLED) for file in _pictures(path)), False
    numbered = all(folder.name.isdigit() for folder, _ in classes)
    rows = [
        [(file, int(folder.name) if numbered else index) for file in found]
        for index, (folder, found) in enumerate(classes)
    ]
    turns = chain.from_iterable(zip_longest(*rows))
    return tuple(item for item in turns if item is not None), True


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)
