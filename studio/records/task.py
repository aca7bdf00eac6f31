"""Every question the engine understands, its answer, and the news on the way.

Tasks in, news and one answer out, over a pipe (`engine/worker`). Paths and records only.
`read_only` tasks belong to the *ask* lane (one warm worker), the others to the *do* lane.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from studio.records.base import Record
from studio.records.measure import (
    DataSpec,
    DataSummary,
    Latency,
    LayerTime,
    Measurement,
    OutputError,
    Sensitivity,
)
from studio.records.model import ModelInfo, Outline, TensorInfo
from studio.records.plan import Plan
from studio.records.steps import AnySettings, Recipe, Step

InputSizes: TypeAlias = tuple[tuple[str, int], ...]


class TaskBase(Record, frozen=True, kw_only=True, tag_field="task"):
    """The root of all tasks."""


class Inspect(TaskBase, frozen=True, kw_only=True, tag="inspect"):
    """List a model. Answer: Inspected."""

    model: str
    input_sizes: InputSizes = ()
    stripped: str = ""  # where to write the weightless copy for the graph view; '' = not wanted


class PreviewSteps(TaskBase, frozen=True, kw_only=True, tag="preview"):
    """Plan steps one after the other, changing nothing. Answer: Previewed."""

    model: str
    steps: tuple[Step, ...]
    input_sizes: InputSizes = ()
    calibration: DataSpec | None = None


class Forecast(TaskBase, frozen=True, kw_only=True, tag="forecast"):
    """Time a draft of what plans would leave against the model. Answer: Forecasted."""

    model: str
    plans: tuple[Plan, ...]
    input_sizes: InputSizes = ()
    calibration: DataSpec | None = None
    evaluation: DataSpec | None = None
    threads: int = 0


class DescribeLayer(TaskBase, frozen=True, kw_only=True, tag="describe_layer"):
    """Histogram, per-channel ranges and quantization grid of one layer. Answer: LayerDetail."""

    model: str
    layer: str
    settings: AnySettings | None = None
    calibration: DataSpec | None = None  # given: activation ranges too


class DescribeData(TaskBase, frozen=True, kw_only=True, tag="describe_data"):
    """Read a data set as the model would. Answer: DataPreview."""

    model: str
    spec: DataSpec
    folder: str = ""  # where to write small PNGs of what the model receives; '' = none


class Apply(TaskBase, frozen=True, kw_only=True, tag="apply"):
    """Carry out a recipe and write the result. News: Treated, TimedSoFar, Trained. Answer: Applied."""

    model: str
    recipe: Recipe
    output: str  # path of the .onnx to write (large weights go into OUTPUT.data beside it)
    input_sizes: InputSizes = ()
    calibration: DataSpec | None = None
    evaluation: DataSpec | None = None
    threads: int = 0
    checkpoints: bool = True  # time the model so far at checkpoints
    agreed: bool = False  # the plans' questions were answered with yes
    training: DataSpec | None = None  # samples to train on; None = the calibration samples
    teacher: str = ""  # path of the model to distil from; '' = the model before the first step
    scratch: str = ""  # folder for checkpoints of training, so that a killed run resumes; '' = none


class Measure(TaskBase, frozen=True, kw_only=True, tag="measure"):
    """Measure models against the first, interleaved. News: one Measured each as known. Answer: Measurements."""

    models: tuple[str, ...]
    evaluation: DataSpec | None = None
    calibration: DataSpec | None = None  # outputs are compared on these where there are no evaluation data
    input_sizes: InputSizes = ()
    threads: int = 0
    latency: bool = True
    reference: str = ""  # the model whose outputs are the truth; '' = the first


class Profile(TaskBase, frozen=True, kw_only=True, tag="profile"):
    """Time every layer with the runtime's profiler. Answer: Profiled."""

    model: str
    input_sizes: InputSizes = ()
    evaluation: DataSpec | None = None
    threads: int = 0


class Footprint(TaskBase, frozen=True, kw_only=True, tag="footprint"):
    """Peak memory of loading and running a model; needs a fresh process. Answer: Footprinted."""

    model: str
    evaluation: DataSpec | None = None
    input_sizes: InputSizes = ()
    threads: int = 0


class Scan(TaskBase, frozen=True, kw_only=True, tag="scan"):
    """Treat every layer alone and compare outputs. News: Sensitivity per layer. Answer: Scanned."""

    model: str
    settings: AnySettings
    layers: tuple[str, ...] = ("*",)
    calibration: DataSpec | None = None
    input_sizes: InputSizes = ()
    seed: int = 0
    threads: int = 0


class CheckExport(TaskBase, frozen=True, kw_only=True, tag="check_export"):
    """Check a written file: checker, onnxruntime loads it, outputs equal the version's. Answer: ExportChecked."""

    model: str
    version: str  # path of the version's own file
    evaluation: DataSpec | None = None
    input_sizes: InputSizes = ()


class Import(TaskBase, frozen=True, kw_only=True, tag="import"):
    """Convert a PyTorch file into an ONNX model. Answer: Imported.

    Attributes:
        factory: 'module:function' that builds the network, for files that hold weights only.
        folder: where that module lies; '' = beside the file.
        inputs: example inputs (type and sizes), in order; not needed where the file tells them.
        consent: code from the file, or of the factory, may be run (confined).
    """

    source: str
    output: str
    factory: str = ""
    folder: str = ""
    inputs: tuple[TensorInfo, ...] = ()
    opset: int = 18
    consent: bool = False


Task: TypeAlias = (
    Inspect
    | PreviewSteps
    | Forecast
    | DescribeLayer
    | DescribeData
    | Apply
    | Measure
    | Profile
    | Footprint
    | Scan
    | CheckExport
    | Import
)


# ------------------------------------------------------------------ news


class NewsBase(Record, frozen=True, kw_only=True, tag_field="news"):
    """The root of everything that arrives while a task runs."""


class Progressed(NewsBase, frozen=True, kw_only=True, tag="progressed"):
    """A share done, with words."""

    share: float
    words: str = ""


class Treated(NewsBase, frozen=True, kw_only=True, tag="treated"):
    """One layer is done: the size so far (weight bytes of the whole model, counted)."""

    layer: str
    done: int
    total: int
    bytes: int
    words: str = ""  # 'int8, SQNR 38.2 dB, −1.77 MB'


class TimedSoFar(NewsBase, frozen=True, kw_only=True, tag="timed"):
    """Latency of the model so far, measured at a checkpoint (few runs, in turns with the model at the start).

    Attributes:
        ratios: time of the start / time so far: median and 95 % interval; None where it was timed alone.
    """

    done: int
    total: int
    median_ms: float
    low_ms: float
    high_ms: float
    ratios: tuple[float, float, float] | None = None


class Trained(NewsBase, frozen=True, kw_only=True, tag="trained"):
    """One step of training.

    Attributes:
        total: steps expected.
        loss: smoothed.
        accuracy: share of right answers (or of agreement with the teacher) on samples that do not teach, when
            last judged; None where that means nothing.
        lr: learning rate.
    """

    step: int
    total: int
    loss: float
    accuracy: float | None = None
    lr: float = 0.0


class Measured(NewsBase, frozen=True, kw_only=True, tag="measured"):
    """One model's figures as far as they are known."""

    measurement: Measurement


class ScannedLayer(NewsBase, frozen=True, kw_only=True, tag="scanned_layer"):
    """One layer of a scan."""

    sensitivity: Sensitivity


News: TypeAlias = Progressed | Treated | TimedSoFar | Trained | Measured | ScannedLayer


# ------------------------------------------------------------------ answers


class AnswerBase(Record, frozen=True, kw_only=True, tag_field="answer"):
    """The root of all answers."""


class Inspected(AnswerBase, frozen=True, kw_only=True, tag="inspected"):
    """A model's description; `outline` for the native overview; `stripped` as asked for."""

    info: ModelInfo
    outline: Outline
    stripped: str = ""


class Previewed(AnswerBase, frozen=True, kw_only=True, tag="previewed"):
    """One plan per step, in order; each step is planned on the model that the one before leaves."""

    plans: tuple[Plan, ...]


class Forecasted(AnswerBase, frozen=True, kw_only=True, tag="forecasted"):
    """Latency of a draft; its ratio to the model's is what is predicted of the result."""

    latency: Latency


class ChannelRange(Record, frozen=True, kw_only=True):
    """Smallest and largest value of one channel."""

    low: float
    high: float


class Histogram(Record, frozen=True, kw_only=True):
    """Counts over equal bins from `low` to `high`."""

    low: float
    high: float
    counts: tuple[int, ...]


class RankSpectrum(Record, frozen=True, kw_only=True):
    """What a factorised layer would lose at each rank.

    Attributes:
        ranks: from 0 to the full one, at most 256 of them.
        lost: squared error of the weights at each of them, as a share of their squares.
        break_even: smallest rank that saves nothing.
    """

    ranks: tuple[int, ...]
    lost: tuple[float, ...]
    break_even: int


class LayerDetail(AnswerBase, frozen=True, kw_only=True, tag="layer_detail"):
    """What the inspector shows of one layer.

    Attributes:
        grid: values that the quantized weights may take (of the widest channel), at most 256; empty without settings.
        clipped: share of weights outside the grid's range.
        sqnr_db: of the weights after treatment; None without settings.
        outputs: histogram of the layer's output over the calibration data; None without data.
        spectrum: where it is to be factorised; None otherwise.
    """

    layer: str
    weights: Histogram | None = None
    channels: tuple[ChannelRange, ...] = ()
    grid: tuple[float, ...] = ()
    clipped: float | None = None
    sqnr_db: float | None = None
    sparsity: float | None = None
    outputs: Histogram | None = None
    inputs: Histogram | None = None
    refused: str = ""
    spectrum: RankSpectrum | None = None


class DataPreview(AnswerBase, frozen=True, kw_only=True, tag="data_preview"):
    """What the model really receives: statistics per input, a few samples as text or images."""

    summary: DataSummary
    inputs: tuple[tuple[str, str, str, float, float, float], ...]  # name, dtype, shape, min, mean, max
    images: tuple[str, ...] = ()  # paths of PNGs
    rows: tuple[str, ...] = ()  # the first samples as text
    labels: tuple[str, ...] = ()  # of those samples; '' = unlabelled


class Applied(AnswerBase, frozen=True, kw_only=True, tag="applied"):
    """A recipe carried out: where the model lies, and what was done."""

    output: str
    digest: str
    plans: tuple[Plan, ...]
    file_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()  # e.g. 'channels verified: max error 3e-7 of the spread'


class Imported(AnswerBase, frozen=True, kw_only=True, tag="imported"):
    """A converted model: where it lies, and what the user should know."""

    output: str
    digest: str
    file_bytes: int
    notes: tuple[str, ...] = ()


class Measurements(AnswerBase, frozen=True, kw_only=True, tag="measurements"):
    """One measurement per model, in the order asked."""

    measurements: tuple[Measurement, ...]


class Profiled(AnswerBase, frozen=True, kw_only=True, tag="profiled"):
    """Layer times; what belongs to no layer is in `other_ms`."""

    layers: tuple[LayerTime, ...]
    other_ms: float
    total_ms: float


class Footprinted(AnswerBase, frozen=True, kw_only=True, tag="footprinted"):
    """Peak resident bytes of loading and running a model, less those of the process before."""

    peak_bytes: int


class Scanned(AnswerBase, frozen=True, kw_only=True, tag="scanned"):
    """All layers of a scan, in model order; incomplete when it was cancelled."""

    layers: tuple[Sensitivity, ...]
    samples: int
    seconds: float


class ExportChecked(AnswerBase, frozen=True, kw_only=True, tag="export_checked"):
    """What the check of an exported file found, in words."""

    valid: bool
    loads: bool
    error: OutputError | None = None
    words: tuple[str, ...] = ()


class Failed(AnswerBase, frozen=True, kw_only=True, tag="failed"):
    """The task ended with an error: the fields of StudioError; `bug` = unexpected, details hold the traceback."""

    what: str
    why: str = ""
    hint: str = ""
    details: str = ""
    bug: bool = False


class Stopped(AnswerBase, frozen=True, kw_only=True, tag="stopped"):
    """The task was cancelled, as asked."""


Answer: TypeAlias = (
    Inspected
    | Previewed
    | Forecasted
    | LayerDetail
    | DataPreview
    | Applied
    | Imported
    | Measurements
    | Profiled
    | Footprinted
    | Scanned
    | ExportChecked
    | Failed
    | Stopped
)


# ------------------------------------------------------------------ frames


class Ask(Record, frozen=True, kw_only=True, tag="ask", tag_field="frame"):
    """Studio to worker: a task. `id` comes back with everything about it."""

    id: int
    task: Task


class Cancel(Record, frozen=True, kw_only=True, tag="cancel", tag_field="frame"):
    """Studio to worker: stop this task at its next tick; one that has ended or waits is meant just as well."""

    id: int


class Finish(Record, frozen=True, kw_only=True, tag="finish", tag_field="frame"):
    """Studio to worker: end long work soon and keep the best so far (training); other work goes on."""

    id: int


ToWorker: TypeAlias = Ask | Cancel | Finish


class Note(Record, frozen=True, kw_only=True, tag="note", tag_field="frame"):
    """Worker to studio: news about a task."""

    id: int
    news: News


class Reply(Record, frozen=True, kw_only=True, tag="reply", tag_field="frame"):
    """Worker to studio: the answer that ends a task."""

    id: int
    answer: Answer
    seconds: Annotated[float, Meta(ge=0)] = 0.0


FromWorker: TypeAlias = Note | Reply
