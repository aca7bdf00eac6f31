"""Settings of what makes a model sparser, narrower or shallower."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from studio.records.steps.settings import Settings, ShareKept, Slot

_BUDGETS = ("macs", "params", "bytes", "latency")  # of a PruneChannels


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
            extra_json_schema={"unit": "share", "when": {"pattern": ["free"]}},
        ),
    ] = 0.5
    pattern: Annotated[
        Literal["free", "2:4", "4:8"],
        Meta(
            title="Pattern",
            description="2:4 keeps two of every four; the ratio is then fixed.",
            extra_json_schema={"choices": {"free": "Free", "2:4": "2:4", "4:8": "4:8"}},
        ),
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
            extra_json_schema={"unit": "share", "when": dict.fromkeys(_BUDGETS, (None,))},
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
    latency: Annotated[
        ShareKept | None,
        Meta(
            title="Latency budget",
            description="Share of the running time to keep, as measured on this machine.",
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
                    "auto": "OBS, without data L2",
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
            extra_json_schema={"advanced": True, "zero": "what is fast here"},
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
    keep: Annotated[
        tuple[str, ...],
        Meta(
            title="Kept whole",
            description="Names or globs of layers that keep all their channels, and with them whatever would have to "
            "narrow together.",
            extra_json_schema={"advanced": True},
        ),
    ] = ()

    @property
    def budget(self) -> tuple[float, str] | None:
        """Share kept, and of what; None where every group is cut by the ratio."""
        budgets = (
            (self.macs, "MACs"),
            (self.params, "parameters"),
            (self.bytes, "bytes"),
            (self.latency, "latency"),
        )
        return next(((share, words) for share, words in budgets if share is not None), None)

    @property
    def chip(self) -> str:
        """See `Settings.chip`."""
        return f"{self.brief} {self.budget[1] if self.budget else 'channels'}"

    @property
    def brief(self) -> str:
        """See `Settings.brief`."""
        return f"−{1 - self.budget[0] if self.budget else self.ratio:.0%}".replace("%", " %")


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
