"""Settings of every technique, steps, recipes and treatments.

A settings record is the whole of what a technique can be told: the form in the window, the
`--step NAME:key=value` of the command line, the recipe format and the help text come from its
fields. `Meta(title, description, ge, le, …)` says what a form needs; `extra_json_schema` may hold
`unit`, `choices` (value -> words) and `advanced: True`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from msgspec import Meta

from studio.records.base import Record

Slot: TypeAlias = Literal["prune", "factorize", "sparsify", "quantize", "train"]
SLOTS: tuple[Slot, ...] = ("prune", "factorize", "sparsify", "train", "quantize")  # the order of a chain

ShareKept: TypeAlias = Annotated[float, Meta(gt=0, le=1)]  # bounds belong to the number, not to "or None"


class Settings(Record, frozen=True, kw_only=True, tag_field="technique"):
    """The root of all settings.

    Class attributes:
        slot: which of a layer's treatments this is; a layer has at most one of each.
        title: in the window.
        summary: one sentence: what it does and what it costs.
        needs: 'nothing', 'calibration' (without which it is refused) or 'labels'.
        uses: data it takes when they are there.
    """

    slot: ClassVar[Slot]
    title: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[Literal["nothing", "calibration", "labels"]] = "nothing"

    @property
    def chip(self) -> str:
        """The words of the treatment column: 'INT8', '−30 % channels'."""
        return self.title


class Fp16(Settings, frozen=True, kw_only=True, tag="fp16"):
    """Half precision."""

    slot: ClassVar[Slot] = "quantize"
    title: ClassVar[str] = "Half precision"
    summary: ClassVar[str] = "Stores and computes in 16-bit floats: half the size, seldom faster on a CPU."

    keep_io: Annotated[
        bool, Meta(title="Inputs and outputs stay fp32", description="Casts are added at the borders.")
    ] = True
    keep: Annotated[
        tuple[str, ...],
        Meta(title="Kept in fp32", description="Names or globs of layers and operators to keep."),
    ] = ()

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return "FP16"


class QuantizeWeights(Settings, frozen=True, kw_only=True, tag="quantize_weights"):
    """Weight-only block quantization."""

    slot: ClassVar[Slot] = "quantize"
    title: ClassVar[str] = "Weights only, in blocks"
    summary: ClassVar[str] = (
        "Stores weights as 8-, 4-, 3- or 2-bit integers with a scale per block; computes in float."
    )

    bits: Annotated[
        Literal[2, 3, 4, 8],
        Meta(
            title="Bits",
            description="With 2, 4 and 8 matrix products run on the packed weights; 3 are unpacked when the model is loaded.",
        ),
    ] = 4
    block: Annotated[
        Literal[16, 32, 64, 128, 256], Meta(title="Block size", description="Values that share one scale.")
    ] = 32
    symmetric: Annotated[
        bool, Meta(title="Symmetric", description="No zero point: a little smaller, a little less exact.")
    ] = True
    preset: Annotated[
        Literal["fast", "careful"],
        Meta(
            title="Preset",
            description="Careful fits every layer to what the layers before it have lost: better answers from the same "
            "bits, in a few minutes. It needs calibration data.",
            extra_json_schema={"choices": {"fast": "Fast", "careful": "Careful"}},
        ),
    ] = "fast"
    form: Annotated[
        Literal["auto", "matmulnbits", "qdq", "unpacked"],
        Meta(
            title="Form",
            description="MatMulNBits multiplies the packed weights in onnxruntime; Q/DQ is standard ONNX (opset 21); "
            "unpacked weights become floats when the model is loaded: small on disk, exactly as fast as before.",
            extra_json_schema={
                "choices": {
                    "auto": "Automatic",
                    "matmulnbits": "MatMulNBits",
                    "qdq": "Q/DQ",
                    "unpacked": "Unpacked at load",
                }
            },
        ),
    ] = "auto"

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return f"W{self.bits}"


class QuantizeDynamic(Settings, frozen=True, kw_only=True, tag="quantize_dynamic"):
    """Dynamic int8."""

    slot: ClassVar[Slot] = "quantize"
    title: ClassVar[str] = "INT8, dynamic"
    summary: ClassVar[str] = (
        "8-bit weights; activation ranges are taken anew at every run. Suits transformers."
    )

    form: Annotated[
        Literal["auto", "integer", "blocks"],
        Meta(
            title="Form",
            description="Integer products are standard ONNX with one range for all activations of a run; in blocks "
            "(MatMulNBits) every row has ranges of its own, which answers better.",
            extra_json_schema={
                "choices": {"auto": "Automatic", "integer": "Integer products", "blocks": "MatMulNBits"}
            },
        ),
    ] = "auto"
    per_channel: Annotated[bool, Meta(title="Per channel", description="One scale per output channel.")] = (
        True
    )
    convolutions: Annotated[
        bool,
        Meta(
            title="Convolutions too",
            description="onnxruntime runs them four to eight times slower than in float.",
            extra_json_schema={"advanced": True},
        ),
    ] = False

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return "INT8 dyn"


class QuantizeStatic(Settings, frozen=True, kw_only=True, tag="quantize_static"):
    """Static int8 with Q/DQ nodes."""

    slot: ClassVar[Slot] = "quantize"
    title: ClassVar[str] = "INT8, static"
    summary: ClassVar[str] = (
        "8-bit weights and activations, ranges from calibration data: a quarter of the size, fast."
    )
    needs: ClassVar[Literal["nothing", "calibration", "labels"]] = "calibration"

    preset: Annotated[
        Literal["fast", "careful"],
        Meta(
            title="Preset",
            description="Fast takes about as long as running the calibration data; Careful tries more and rounds better.",
            extra_json_schema={"choices": {"fast": "Fast", "careful": "Careful"}},
        ),
    ] = "fast"
    calibrator: Annotated[
        Literal["auto", "minmax", "percentile", "mse", "entropy"],
        Meta(
            title="Calibrator",
            description="How activation ranges are chosen from the calibration data.",
            extra_json_schema={
                "choices": {
                    "auto": "Automatic",
                    "minmax": "MinMax",
                    "percentile": "Percentile",
                    "mse": "Least squared error",
                    "entropy": "Least KL divergence",
                }
            },
        ),
    ] = "auto"
    percentile: Annotated[
        float, Meta(ge=90, le=100, title="Percentile", extra_json_schema={"unit": "%", "advanced": True})
    ] = 99.99
    per_channel: Annotated[
        bool, Meta(title="Per channel", description="One weight scale per output channel.")
    ] = True
    reduce_range: Annotated[
        bool,
        Meta(
            title="7-bit weights",
            description="For processors without VNNI, whose 8-bit products may saturate.",
            extra_json_schema={"advanced": True},
        ),
    ] = False

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return "INT8"


class ShareWeights(Settings, frozen=True, kw_only=True, tag="share_weights"):
    """Weights as numbers of entries in a book of shared values."""

    slot: ClassVar[Slot] = "quantize"
    title: ClassVar[str] = "Share weights"
    summary: ClassVar[str] = (
        "Stores every weight as the number of one of 16 or 256 shared values, placed where the weights are. The file "
        "is 8 or 4 times smaller; the runtime unpacks it to floats when it loads, so nothing gets faster."
    )

    bits: Annotated[
        Literal[4, 8],
        Meta(title="Bits", description="4 bits choose among 16 values, 8 bits among 256."),
    ] = 4

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return f"{2**self.bits} values"


class StoreNarrow(Settings, frozen=True, kw_only=True, tag="store_narrow"):
    """Weights as narrow floats on disk."""

    slot: ClassVar[Slot] = "quantize"
    title: ClassVar[str] = "Narrow storage"
    summary: ClassVar[str] = (
        "Stores weights as 16- or 8-bit floats and computes in fp32: half or a quarter of the file, the same speed."
    )

    format: Annotated[
        Literal["bf16", "fp16", "fp8"],
        Meta(
            title="Format",
            description="bfloat16 holds every size of number, float16 is more precise, float8 (E4M3) takes a quarter.",
            extra_json_schema={"choices": {"bf16": "bfloat16", "fp16": "float16", "fp8": "float8 (E4M3)"}},
        ),
    ] = "bf16"

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return f"{self.format.upper()} stored"


class Sparsify(Settings, frozen=True, kw_only=True, tag="sparsify"):
    """Zeros in place."""

    slot: ClassVar[Slot] = "sparsify"
    title: ClassVar[str] = "Sparsity"
    summary: ClassVar[str] = (
        "Sets the least important weights to zero. The file only shrinks once compressed, "
        "and onnxruntime's CPU gets no faster from it."
    )

    ratio: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            title="Ratio",
            description="Share of weights set to zero.",
            extra_json_schema={"unit": "share"},
        ),
    ] = 0.5
    pattern: Annotated[
        Literal["free", "2:4", "4:8"],
        Meta(title="Pattern", description="2:4 keeps two of every four; the ratio is then fixed."),
    ] = "free"
    method: Annotated[
        Literal["auto", "magnitude", "wanda", "sparsegpt"],
        Meta(
            title="Method",
            description="Which weights go. SparseGPT moves what they did onto the weights that stay.",
            extra_json_schema={
                "choices": {
                    "auto": "SparseGPT with calibration data, else magnitude",
                    "magnitude": "Smallest magnitude",
                    "wanda": "Smallest magnitude × input (needs calibration data)",
                    "sparsegpt": "SparseGPT (needs calibration data)",
                }
            },
        ),
    ] = "auto"

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return (
            f"{self.pattern} zeros"
            if self.pattern != "free"
            else f"{self.ratio:.0%} zeros".replace("%", " %")
        )


class PruneChannels(Settings, frozen=True, kw_only=True, tag="prune_channels"):
    """Structured pruning: whole channels, heads and hidden units leave the graph."""

    slot: ClassVar[Slot] = "prune"
    title: ClassVar[str] = "Prune channels"
    summary: ClassVar[str] = (
        "Removes whole channels, heads and hidden units: the model becomes narrower, smaller and really faster. "
        "With calibration data the layers after them are refitted at once."
    )

    ratio: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            title="Ratio",
            description="Share of the channels of every group that goes; not used where a budget is set.",
            extra_json_schema={"unit": "share"},
        ),
    ] = 0.5
    macs: Annotated[
        ShareKept | None,
        Meta(
            title="MACs budget",
            description="Share of the model's multiply-accumulates to keep; spread over the groups by what they can spare.",
            extra_json_schema={"unit": "share"},
        ),
    ] = None
    params: Annotated[
        ShareKept | None,
        Meta(
            title="Parameter budget",
            description="Share of the parameters to keep.",
            extra_json_schema={"unit": "share"},
        ),
    ] = None
    bytes: Annotated[
        ShareKept | None,
        Meta(
            title="Size budget",
            description="Share of the weight bytes to keep.",
            extra_json_schema={"unit": "share"},
        ),
    ] = None
    criterion: Annotated[
        Literal["auto", "l1", "l2", "fpgm", "activation", "taylor", "fisher", "obs", "random"],
        Meta(
            title="Criterion",
            description="Which channels go first.",
            extra_json_schema={
                "choices": {
                    "auto": "OBS with calibration data, else L2",
                    "l1": "L1 norm of the weights",
                    "l2": "L2 norm of the weights",
                    "fpgm": "Nearest to the geometric median",
                    "activation": "Weights × activations (needs calibration data)",
                    "taylor": "Least first-order change of the answer (needs calibration data)",
                    "fisher": "Least Fisher information (needs calibration data)",
                    "obs": "Least error after refit, OBS (needs calibration data)",
                    "random": "Random, as a control",
                }
            },
        ),
    ] = "auto"
    refit: Annotated[
        bool,
        Meta(
            title="Refit",
            description="Fit what remains to the original's outputs on calibration data, layer by layer.",
        ),
    ] = True
    inside: Annotated[
        Literal["whole", "within", "both"],
        Meta(
            title="Attention heads, convolution groups",
            description="Remove whole ones, narrow every one within, or both.",
            extra_json_schema={
                "choices": {"whole": "Whole ones", "within": "Within each", "both": "Both"},
                "advanced": True,
            },
        ),
    ] = "whole"
    round_to: Annotated[
        int,
        Meta(
            ge=0,
            le=256,
            title="Round widths to",
            description="Wide layers keep a multiple of this many channels; 0 = what is fast here, 1 = no rounding.",
            extra_json_schema={"advanced": True},
        ),
    ] = 0
    minimum: Annotated[
        int,
        Meta(
            ge=1,
            title="Smallest width",
            description="No group gets narrower.",
            extra_json_schema={"advanced": True},
        ),
    ] = 1

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        for share, words in ((self.macs, "MACs"), (self.params, "parameters"), (self.bytes, "bytes")):
            if share is not None:
                return f"−{1 - share:.0%} {words}".replace("%", " %")
        return f"−{self.ratio:.0%} channels".replace("%", " %")


class Factorize(Settings, frozen=True, kw_only=True, tag="factorize"):
    """Low-rank factorisation."""

    slot: ClassVar[Slot] = "factorize"
    title: ClassVar[str] = "Factorise"
    summary: ClassVar[str] = (
        "Replaces a weight matrix by the product of two thin ones. With calibration data it keeps what the "
        "outputs depend on; layers that would not get smaller are left whole."
    )

    params: Annotated[
        float,
        Meta(
            gt=0,
            lt=1,
            title="Parameters kept",
            description="Share of the chosen layers' weights that is left.",
            extra_json_schema={"unit": "share"},
        ),
    ] = 0.7
    spread: Annotated[
        Literal["sensitive", "even"],
        Meta(
            title="Spread",
            description="How the budget is shared out among the layers.",
            extra_json_schema={
                "choices": {"sensitive": "By what each can spare", "even": "The same share everywhere"}
            },
        ),
    ] = "sensitive"
    form: Annotated[
        Literal["channels", "spatial", "depthwise", "tucker", "cp"],
        Meta(
            title="Convolutions become",
            description="Fewer filters and 1×1; k×1 and 1×k; filters of its own for every channel and 1×1; 1×1, k×k "
            "between few channels and 1×1 (Tucker-2); or 1×1, one filter a channel and 1×1 (CP).",
            extra_json_schema={
                "choices": {
                    "channels": "k×k, 1×1",
                    "spatial": "k×1, 1×k",
                    "depthwise": "Depthwise, 1×1",
                    "tucker": "1×1, k×k, 1×1 (Tucker-2)",
                    "cp": "1×1, depthwise, 1×1 (CP)",
                },
                "advanced": True,
            },
        ),
    ] = "channels"
    data_aware: Annotated[
        bool,
        Meta(
            title="Use calibration data",
            description="Keep the directions that the activations use and the outputs feel, not the largest weights.",
        ),
    ] = True

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return f"Rank, {self.params:.0%} weights".replace("%", " %")


class RemoveBlocks(Settings, frozen=True, kw_only=True, tag="remove_blocks"):
    """Depth pruning: whole residual blocks leave the graph."""

    slot: ClassVar[Slot] = "prune"
    title: ClassVar[str] = "Remove blocks"
    summary: ClassVar[str] = (
        "Takes out whole residual blocks (of a ResNet, of a transformer) that the answers miss least: fewer layers, "
        "faster in proportion. Distil afterwards."
    )
    needs: ClassVar[Literal["nothing", "calibration", "labels"]] = "calibration"

    blocks: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            title="Blocks",
            description="How many go; an attention and a feed-forward part count apart.",
        ),
    ] = 1

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return f"−{self.blocks} block{'s' if self.blocks > 1 else ''}"


class Student(Settings, frozen=True, kw_only=True, tag="student"):
    """A narrower and shallower student, started from the model."""

    slot: ClassVar[Slot] = "prune"
    title: ClassVar[str] = "Scaled student"
    summary: ClassVar[str] = (
        "Makes every layer narrower by one factor and leaves out blocks evenly, starting from the model's own weights. "
        "Needs no data, but knows little until it is distilled."
    )

    width: Annotated[
        ShareKept,
        Meta(
            title="Width",
            description="Share of the channels that is kept.",
            extra_json_schema={"unit": "share"},
        ),
    ] = 0.5
    depth: Annotated[
        ShareKept,
        Meta(
            title="Depth",
            description="Share of the residual blocks that is kept.",
            extra_json_schema={"unit": "share"},
        ),
    ] = 1.0

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        deep = "" if self.depth == 1 else f" × {self.depth:.0%} depth"
        return f"Student {self.width:.0%} width{deep}".replace("%", " %")


class Training(Settings, frozen=True, kw_only=True):
    """What every kind of training can be told."""

    slot: ClassVar[Slot] = "train"

    minutes: Annotated[
        float,
        Meta(
            gt=0,
            le=1440,
            title="Minutes",
            description="How long to train.",
            extra_json_schema={"unit": "min"},
        ),
    ] = 3
    steps: Annotated[
        int,
        Meta(
            ge=0,
            title="Steps",
            description="Train exactly so many steps instead; 0 = as many as the minutes allow.",
            extra_json_schema={"advanced": True},
        ),
    ] = 0
    batch: Annotated[
        int,
        Meta(
            ge=1,
            le=4096,
            title="Batch",
            description="Samples per step.",
            extra_json_schema={"advanced": True},
        ),
    ] = 64
    accumulate: Annotated[
        int,
        Meta(
            ge=1,
            le=1024,
            title="Accumulate",
            description="Batches per step.",
            extra_json_schema={"advanced": True},
        ),
    ] = 1
    rate: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            title="Learning rate",
            description="0 = what suits the model and its damage.",
            extra_json_schema={"advanced": True},
        ),
    ] = 0.0
    target: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            title="Stop at",
            description="End early once this share of answers is right (or agrees with the teacher); 0 = never.",
            extra_json_schema={"unit": "share", "advanced": True},
        ),
    ] = 0.0

    @property
    def length(self) -> str:
        """In words: '3 min', '500 steps'."""
        return f"{self.steps} steps" if self.steps else f"{self.minutes:g} min"


class Finetune(Training, frozen=True, kw_only=True, tag="finetune"):
    """Fine-tuning with labels."""

    title: ClassVar[str] = "Fine-tune"
    summary: ClassVar[str] = (
        "Trains the weights on labelled samples; nodes, names and sizes stay as they are."
    )
    needs: ClassVar[Literal["nothing", "calibration", "labels"]] = "labels"

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return f"Tuned {self.length}"


class Distill(Training, frozen=True, kw_only=True, tag="distill"):
    """Distillation without labels."""

    title: ClassVar[str] = "Distil"
    summary: ClassVar[str] = (
        "Trains the model to answer as the original does. Needs samples, but no labels; wins back most of what "
        "pruning, factorising or sparsity lost."
    )
    needs: ClassVar[Literal["nothing", "calibration", "labels"]] = "calibration"

    temperature: Annotated[
        float,
        Meta(
            ge=0.1,
            le=20,
            title="Temperature",
            description="Above 1 the teacher's second thoughts count more.",
            extra_json_schema={"advanced": True},
        ),
    ] = 1.0
    labels: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            title="Labels",
            description="Weight of labels beside the teacher's answers, where the samples have them.",
            extra_json_schema={"unit": "share", "advanced": True},
        ),
    ] = 0.0
    features: Annotated[
        float,
        Meta(
            ge=0,
            le=10,
            title="Inner values",
            description="Weight of what lies between, where teacher and model still have the same shapes.",
            extra_json_schema={"advanced": True},
        ),
    ] = 0.0

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return f"Distilled {self.length}"


class Qat(Training, frozen=True, kw_only=True, tag="qat"):
    """Quantization-aware training."""

    slot: ClassVar[Slot] = "quantize"
    title: ClassVar[str] = "Quantization-aware training"
    summary: ClassVar[str] = (
        "Puts quantizers into the graph and trains with them, so that the weights learn to live on few bits. "
        "The result needs no conversion."
    )
    needs: ClassVar[Literal["nothing", "calibration", "labels"]] = "calibration"

    weights: Annotated[Literal[2, 3, 4, 8], Meta(title="Weight bits")] = 4
    activations: Annotated[Literal[8], Meta(title="Activation bits")] = 8
    learns: Annotated[
        Literal["weights", "rounding"],
        Meta(
            title="Learns",
            description="All weights, from the teacher's answers; or only which weights are rounded up (AdaRound), so "
            "that every block answers as in float: few samples are enough, and steps count for each block.",
            extra_json_schema={
                "choices": {"weights": "Weights", "rounding": "Rounding, block by block"},
                "advanced": True,
            },
        ),
    ] = "weights"

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return f"QAT W{self.weights}A{self.activations}"


# Every technique's settings: the one list that recipes, forms and the command line read.
AnySettings: TypeAlias = (
    Fp16
    | QuantizeWeights
    | QuantizeDynamic
    | QuantizeStatic
    | ShareWeights
    | Sparsify
    | PruneChannels
    | StoreNarrow
    | RemoveBlocks
    | Student
    | Factorize
    | Finetune
    | Distill
    | Qat
)
SETTINGS: tuple[type[Settings], ...] = (
    Fp16,
    QuantizeWeights,
    QuantizeDynamic,
    QuantizeStatic,
    ShareWeights,
    Sparsify,
    PruneChannels,
    StoreNarrow,
    RemoveBlocks,
    Student,
    Factorize,
    Finetune,
    Distill,
    Qat,
)


class Step(Record, frozen=True, kw_only=True):
    """One technique with its settings on chosen layers (names or globs; '*' = all that can be treated)."""

    settings: AnySettings
    layers: tuple[str, ...] = ("*",)


class Recipe(Record, frozen=True, kw_only=True):
    """An ordered list of steps; a YAML file."""

    steps: tuple[Step, ...]
    seed: int = 0
    name: str = ""


class Treatment(Record, frozen=True, kw_only=True):
    """What one layer is to get: at most one settings record of each slot. Empty = keep as it is."""

    settings: tuple[AnySettings, ...] = ()

    def of(self, slot: Slot) -> AnySettings | None:
        """The settings in one slot, if any."""
        return next((s for s in self.settings if s.slot == slot), None)

    def with_slot(self, slot: Slot, settings: AnySettings | None) -> Treatment:
        """This treatment with one slot replaced (None empties it)."""
        kept = [s for s in self.settings if s.slot != slot]
        if settings is not None:
            kept.append(settings)
        return Treatment(settings=tuple(sorted(kept, key=lambda s: SLOTS.index(s.slot))))
