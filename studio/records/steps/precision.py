"""Settings of what stores weights in fewer bits: half precision, quantization, sharing."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from studio.records.steps.settings import Settings, Slot


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
    zeros: Annotated[
        Literal["integer", "float"],
        Meta(
            title="Zero points",
            description="Of a grid that is not symmetric. Floats fit closer (with 4 bits, some 0.8 dB of the weights), take "
            "4 bytes a block, and onnxruntime multiplies them at a half to a third of the speed.",
            extra_json_schema={
                "choices": {"integer": "Integers", "float": "Floats"},
                "advanced": True,
                "when": {"symmetric": [False]},
            },
        ),
    ] = "integer"
    solver: Annotated[
        Literal["squares", "hqq"],
        Meta(
            title="Grids by",
            description="Least squares weigh every weight by its inputs where these are known; HQQ (half-quadratic) lets "
            "single outlying weights be wrong, and needs zero points.",
            extra_json_schema={
                "choices": {"squares": "Least squares", "hqq": "HQQ"},
                "advanced": True,
                "when": {"symmetric": [False]},
            },
        ),
    ] = "squares"
    scale_inputs: Annotated[
        bool,
        Meta(
            title="Scale inputs (AWQ)",
            description="With calibration data, weights that meet large inputs are rounded finer where the norm or product "
            "before a layer can take the factors and the layer then answers better. Costs nothing at run time.",
            extra_json_schema={"advanced": True},
        ),
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

    preset: Annotated[
        Literal["fast", "careful"],
        Meta(
            title="Preset",
            description="Careful rounds weights so that errors make up for each other on calibration data: better answers "
            "at the same size and speed.",
            extra_json_schema={"choices": {"fast": "Fast", "careful": "Careful"}},
        ),
    ] = "fast"
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
    reduce_range: Annotated[
        bool,
        Meta(
            title="7-bit weights",
            description="For processors without VNNI, where sums of 8-bit products may saturate.",
            extra_json_schema={"advanced": True},
        ),
    ] = False
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
        Literal["auto", "minmax", "percentile", "mse", "entropy", "gradient", "answer"],
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
                    "gradient": "Least error weighted by gradients (task-aware)",
                    "answer": "Least error of the answer (task-aware, takes longer)",
                }
            },
        ),
    ] = "auto"
    percentile: Annotated[
        float,
        Meta(
            ge=90,
            le=100,
            title="Percentile",
            description="Share of the values that the calibrator of this name leaves in the range; Automatic tries it, too.",
            extra_json_schema={
                "unit": "%",
                "advanced": True,
                "when": {"calibrator": ["auto", "percentile", "answer"]},
            },
        ),
    ] = 99.99
    per_channel: Annotated[
        bool, Meta(title="Per channel", description="One weight scale per output channel.")
    ] = True
    symmetric: Annotated[
        bool,
        Meta(
            title="Symmetric weights",
            description="Without zero points, as the fastest kernels want them; with them, weights whose range lies to one "
            "side are stored more exactly.",
            extra_json_schema={"advanced": True},
        ),
    ] = True
    activations: Annotated[
        Literal[8, 16],
        Meta(
            title="Activation bits",
            description="With 8 onnxruntime multiplies integers; 16 are for NPUs: its CPU then computes in float, slower.",
            extra_json_schema={"advanced": True},
        ),
    ] = 8
    reduce_range: Annotated[
        bool,
        Meta(
            title="7-bit weights",
            description="For processors without VNNI, where sums of 8-bit products may saturate.",
            extra_json_schema={"advanced": True},
        ),
    ] = False

    float_ends: Annotated[
        bool,
        Meta(
            title="Small ends in float",
            description="A small first convolution and a small last layer stay in float: faster, and closer to the original.",
            extra_json_schema={"advanced": True},
        ),
    ] = True

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return "INT8" if self.activations == 8 else "INT8, 16-bit activations"


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
