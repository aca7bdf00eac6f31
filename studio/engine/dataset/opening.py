"""From a DataSpec to a data set that fits a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from studio.base.errors import StudioError
from studio.engine.dataset.arrays import open_file, open_folder
from studio.engine.dataset.core import Dataset, Source, draw
from studio.engine.dataset.images import IMAGE_SUFFIXES, Images, open_images
from studio.engine.dataset.made_up import Range, input_ranges, make_up
from studio.engine.dataset.tables import open_table
from studio.engine.graph import Model, dynamic_dimensions, named_shape, real_inputs, type_name
from studio.records.measure import DataSpec
from studio.records.model import TensorInfo


def open_data(
    spec: DataSpec,
    inputs: tuple[TensorInfo, ...],
    input_sizes: Mapping[str, int] | None = None,
    ranges: Mapping[str, Range] | None = None,
) -> Dataset:
    """The data set that a DataSpec names, checked against the model's inputs.

    Args:
        spec: where the samples come from.
        inputs: of the model, without those that have a default value.
        input_sizes: sizes of dynamic dimensions, for random data.
        ranges: of integer inputs, for random data (`made_up.input_ranges`).

    Raises:
        StudioError: missing, damaged, empty, or not fitting the model, in words.
    """
    path = Path(spec.path).expanduser()
    kind = spec.kind if spec.kind != "auto" else _kind(spec, path)
    if kind != "random" and not path.exists():
        raise StudioError(f"Cannot find the data '{spec.path}'", "there is no such file or folder")
    source: Source
    match kind:
        case "random":
            source = make_up(inputs, input_sizes or {}, spec, ranges or {})
        case "npz" | "npy":
            source = open_file(path, inputs, spec.input)
        case "npz_folder":
            source = open_folder(path, inputs)
        case "images":
            source = open_images(path, inputs, spec)
        case "csv":
            source = open_table(path, inputs, spec)
    if isinstance(source, Images):
        spec = msgspec.structs.replace(spec, preprocess=source.preprocess)  # so that a guess is seen
    order = draw(spec, source.count)
    if source.batch and len(order) < source.batch:
        raise StudioError(
            f"{source.what} holds too few samples",
            f"the model takes {source.batch} at a time, and there are {len(order)}",
        )
    return Dataset(spec, inputs, source, order, random=kind == "random")


def open_for(model: Model, spec: DataSpec, input_sizes: Mapping[str, int] | None = None) -> Dataset:
    """The data set that a DataSpec names, for a model in memory; random data keep to its embeddings' ranges."""
    sizes = {**dynamic_dimensions(model), **(input_sizes or {})}
    return open_data(spec, model_inputs(model), sizes, input_ranges(model))


def model_inputs(model: Model) -> tuple[TensorInfo, ...]:
    """What a run must be fed: the inputs without a default value, dynamic dimensions by their names."""
    return tuple(
        TensorInfo(name=v.name or "", dtype=type_name(v.dtype), shape=named_shape(v))
        for v in real_inputs(model)
    )


def _kind(spec: DataSpec, path: Path) -> str:
    if not spec.path:
        return "random"
    if path.is_dir():
        return "npz_folder" if any(path.glob("*.npz")) else "images"
    suffix = path.suffix.lower()
    if suffix in {".npz", ".npy"}:
        return suffix[1:]
    if suffix in {".csv", ".tsv"}:
        return "csv"
    if suffix in IMAGE_SUFFIXES:
        return "images"
    if not path.exists():
        raise StudioError(f"Cannot find the data '{spec.path}'", "there is no such file or folder")
    raise StudioError(
        f"Cannot tell what {path.name} holds",
        f"'{path.suffix}' is no ending of a data file",
        "Use .npz, .npy, .csv, a folder of images or a folder of .npz files.",
    )
