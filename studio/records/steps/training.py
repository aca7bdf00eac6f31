"""Settings of what trains."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from studio.records.steps.settings import Settings, Slot


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
            extra_json_schema={"advanced": True, "zero": "as time allows"},
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
            extra_json_schema={"advanced": True, "zero": "automatic"},
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
