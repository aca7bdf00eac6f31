"""Figures that were measured, with their conditions; and where samples come from."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from msgspec import Meta

from studio.base.errors import StudioError
from studio.records.base import Record, convert, replace


class Latency(Record, frozen=True, kw_only=True):
    """Time of one run, from interleaved runs of all models compared.

    Attributes:
        median_ms, low_ms, high_ms: median and its 95 % interval.
        ratio, ratio_low, ratio_high: baseline time / this time (above 1 = faster); None for the baseline.
        runs: timed runs of this model.
        threads: intra-op threads, not spinning.
        input_shapes: of the feed that was timed, as text.
        busy: the machine was not quiet: figures disagree by more than 5 %.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    runs: int
    threads: int
    input_shapes: str = ""
    busy: bool = False

    def told_in(self, base: Latency) -> Latency:
        """This latency with its times told in those of another measurement of the baseline.

        A machine is not equally quick all the time; what was measured well is the ratio. Unchanged where there
        is no ratio, or where the baseline ran under other conditions.
        """
        if not self.ratio or not self.ratio_low or not self.ratio_high:
            return self
        if (self.threads, self.input_shapes) != (base.threads, base.input_shapes):
            return self
        return replace(
            self,
            median_ms=base.median_ms / self.ratio,
            low_ms=base.median_ms / self.ratio_high,
            high_ms=base.median_ms / self.ratio_low,
        )


class OutputError(Record, frozen=True, kw_only=True):
    """How far the outputs are from the reference model's, over `samples` samples of one data set.

    Attributes:
        sqnr_db: 10·log10(Σ ref² / Σ (ref − out)²) over all float outputs; 200 = equal.
        kl: KL(reference ‖ this) in nats per row of output 0; None where it is no distribution.
        cosine: mean cosine similarity per sample of output 0.
        agreement: share of rows with equal argmax (or the same side of 0.5); None where senseless.
        max_abs: largest absolute difference.
        data: what it was measured on: 'evaluation data', 'calibration data', or 'random inputs', which say
            little about real ones.
    """

    sqnr_db: float
    kl: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    max_abs: float = 0.0
    samples: int = 0
    data: str = ""


class Portability(Record, frozen=True, kw_only=True):
    """How alike a model answers elsewhere, against its own answers here, on a few samples.

    Attributes:
        optimization: without the runtime's graph optimization.
        saturation: on an x86 processor without VNNI, where sums of two 8-bit products saturate at 16 bits
            (emulated); None where no layer's can.
        saturated: layers in which they did.
    """

    optimization: OutputError
    saturation: OutputError | None = None
    saturated: tuple[str, ...] = ()


class Accuracy(Record, frozen=True, kw_only=True):
    """A task metric where labels exist; always with its n.

    Attributes:
        samples: labelled rows (tokens, frames, pixels where a sample has many).
        also: further figures of the same run: (('top-5', 0.96),), (('bits per token', 2.35),).
    """

    metric: str  # 'top-1', 'AUC'
    value: float  # 0..1
    samples: int
    also: tuple[tuple[str, float], ...] = ()


class Measurement(Record, frozen=True, kw_only=True):
    """Everything measured of one version. A figure that was not measured is None.

    Attributes:
        digest: of the model measured.
        file_bytes: on disk, external data included.
        compressed_bytes: of the same bytes deflated (what zeros are worth).
        peak_bytes: peak resident memory of a process that loads and runs the model, less that of
            the same process before.
        unscored: why there is no accuracy although there are labels; '' otherwise.
    """

    digest: str
    file_bytes: int
    compressed_bytes: int | None = None
    peak_bytes: int | None = None
    latency: Latency | None = None
    error: OutputError | None = None
    accuracy: Accuracy | None = None
    unscored: str = ""
    portability: Portability | None = None
    runtime: str = ""  # 'onnxruntime 1.32.0, CPU'
    when: str = ""  # ISO 8601, UTC


class LayerTime(Record, frozen=True, kw_only=True):
    """Measured time of one layer per run, mapped back from the runtime's (fused) kernels."""

    layer: str
    ms: float
    share: float  # of the whole run
    kernel: str = ""  # what really ran: 'FusedConv', 'QLinearConv', 'MatMulNBits'…
    also: tuple[str, ...] = ()  # other layers fused into the same kernel


class Preprocess(Record, frozen=True, kw_only=True):
    """From an image file to what the model receives: resize, crop, scale, normalise, lay out.

    value = (pixel · scale − mean) / std per channel.
    """

    height: Annotated[int, Meta(ge=1, title="Height")] = 224
    width: Annotated[int, Meta(ge=1, title="Width")] = 224
    resize: Annotated[
        Literal["stretch", "crop", "pad"],
        Meta(
            title="Fit",
            description="Stretch, resize the short side and crop the centre, or pad to a square.",
            extra_json_schema={
                "choices": {"stretch": "Stretch", "crop": "Crop the centre", "pad": "Pad to a square"}
            },
        ),
    ] = "crop"
    crop_share: Annotated[
        float,
        Meta(gt=0, le=1, title="Crop share", description="Of the short side; 224/256 = 0.875."),
    ] = 0.875
    scale: Annotated[
        float, Meta(title="Scale", description="Pixels are multiplied by it; 1/255 = 0.00392.")
    ] = 1 / 255
    mean: Annotated[
        tuple[float, ...], Meta(title="Mean", description="Subtracted after scaling, one a channel.")
    ] = (0.485, 0.456, 0.406)
    std: Annotated[
        tuple[float, ...], Meta(title="Deviation", description="Divided by at last, one a channel.")
    ] = (0.229, 0.224, 0.225)
    channels: Annotated[
        Literal["rgb", "bgr", "gray"],
        Meta(
            title="Channels",
            description="Their order as the model was trained.",
            extra_json_schema={"choices": {"rgb": "RGB", "bgr": "BGR", "gray": "Grey"}},
        ),
    ] = "rgb"
    layout: Annotated[
        Literal["nchw", "nhwc"],
        Meta(
            title="Layout",
            description="Of the model's input.",
            extra_json_schema={"choices": {"nchw": "Channels first (NCHW)", "nhwc": "Channels last (NHWC)"}},
        ),
    ] = "nchw"


class DataSpec(Record, frozen=True, kw_only=True):
    """Where samples come from and how they become feeds. Calibration and evaluation have one each.

    Attributes:
        path: file or folder; '' for random data.
        kind: 'auto' looks at the path.
        limit: use at most so many samples; 0 = all.
        shuffle: draw them with `seed` instead of taking the first.
        input: which model input the file feeds where the file does not name it (.npy, CSV, images).
        label_column: of a CSV; '' = none.
        batch: samples per run; 0 = what the model and memory allow.
    """

    path: str = ""
    kind: Literal["auto", "npz", "npz_folder", "npy", "images", "csv", "random"] = "auto"
    limit: Annotated[
        int,
        Meta(
            ge=0,
            title="At most",
            description="Use so many samples; 0 = all.",
            extra_json_schema={"zero": "all"},
        ),
    ] = 0
    shuffle: Annotated[
        bool, Meta(title="Shuffle", description="Draw the samples at random instead of taking the first.")
    ] = False
    seed: Annotated[
        int, Meta(ge=0, title="Seed", description="Of the shuffle.", extra_json_schema={"advanced": True})
    ] = 0
    input: Annotated[
        str,
        Meta(
            title="Feeds input",
            description="The model input that the data feed, where the file does not name it.",
            extra_json_schema={"advanced": True},
        ),
    ] = ""
    label_column: Annotated[
        str,
        Meta(title="Label column", description="Of a CSV table.", extra_json_schema={"advanced": True}),
    ] = ""
    batch: Annotated[
        int,
        Meta(
            ge=0,
            title="Batch",
            description="Samples per run; 0 = what the model and memory allow.",
            extra_json_schema={"advanced": True, "zero": "automatic"},
        ),
    ] = 0
    preprocess: Preprocess | None = None


def parse_data_spec(text: str) -> DataSpec:
    """'calibration.npz', 'photos:height=32,width=32,mean=0.5|0.5|0.5', 'random:32' as a DataSpec.

    After the last colon stand fields of DataSpec and Preprocess, or the number of random samples; values of a list
    are parted by '|', and a number may be a fraction ('scale=1/255').

    Raises:
        StudioError: a key or value is unknown, or the path does not exist.
    """
    path, colon, rest = text.rpartition(":")
    if path == "random" and rest.isdigit():
        rest = f"limit={rest}"
    if not colon or not all("=" in item for item in rest.split(",")):
        path, rest = text, ""
    values: dict[str, Any] = {}
    preprocess: dict[str, Any] = {}
    for key, _, value in (item.partition("=") for item in filter(None, rest.split(","))):
        if key in Preprocess.__struct_fields__:
            numbers = tuple(_number(part) for part in value.split("|"))
            preprocess[key] = numbers if key in {"mean", "std"} else numbers[0]
        elif key in DataSpec.__struct_fields__ and key not in {"path", "preprocess"}:
            values[key] = value
        else:
            known = ", ".join((*DataSpec.__struct_fields__[1:-1], *Preprocess.__struct_fields__))
            raise StudioError(f"Cannot use the data '{text}'", f"'{key}' is unknown", f"Known are: {known}.")
    if path == "random":
        path, values["kind"] = "", "random"
    elif not os.path.exists(path):  # noqa: PTH110 - a name that is too long is no error to it
        raise StudioError(f"Cannot use the data '{text}'", f"there is no file or folder {path}")
    chosen = {"preprocess": preprocess} if preprocess else {}
    return convert({"path": path, **values, **chosen}, DataSpec, f"the data '{text}'")


def _number(text: str) -> str:
    """'1/255' as a decimal; any other text as it is."""
    above, slash, below = text.partition("/")
    try:
        return repr(float(above) / float(below)) if slash else text
    except (ValueError, ZeroDivisionError):
        return text


def data_spec_text(spec: DataSpec) -> str:
    """A DataSpec as `parse_data_spec` reads it; defaults are left out."""
    parts = _changed(spec, DataSpec(), skip={"path", "preprocess"})
    if spec.preprocess is not None:
        parts += _changed(spec.preprocess, Preprocess(), skip=set()) or ["layout=nchw"]
    if spec.kind == "random":
        parts.remove("kind=random")
    place = "random" if spec.kind == "random" else spec.path
    return f"{place}:{','.join(parts)}" if parts else place


def _changed(record: Record, default: Record, skip: set[str]) -> list[str]:
    texts = []
    for key in type(record).__struct_fields__:
        value = getattr(record, key)
        if key not in skip and value != getattr(default, key):
            texts.append(f"{key}={'|'.join(map(str, value)) if isinstance(value, tuple) else value}")
    return texts


class DataSummary(Record, frozen=True, kw_only=True):
    """What a DataSpec turned out to hold.

    Attributes:
        labelled: samples with a label.
        classes: different labels; 0 where labels are no class numbers.
        input_sizes: the sizes that dynamic dimensions have in the first sample, for costs that fit the data.
    """

    spec: DataSpec
    samples: int
    labelled: int
    classes: int
    description: str  # 'fashion-calibration.npz · 256 samples'
    random: bool = False
    input_sizes: tuple[tuple[str, int], ...] = ()
    cautions: tuple[str, ...] = ()


class Sensitivity(Record, frozen=True, kw_only=True):
    """What treating only this layer does to the output."""

    layer: str
    error: OutputError | None = None  # None: refused
    accuracy: Accuracy | None = None
    refused: str = ""
    seconds: float = 0.0

    @property
    def score(self) -> float | None:
        """Higher = more sensitive: KL where there is one, else noise share 10^(−SQNR/10)."""
        if self.error is None:
            return None
        return self.error.kl if self.error.kl is not None else 10 ** (-self.error.sqnr_db / 10)
