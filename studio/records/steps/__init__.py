"""Settings of every technique, steps, recipes and treatments."""

from __future__ import annotations

from typing import Literal, TypeAlias

from studio.records.base import Record
from studio.records.steps.precision import (
    Fp16,
    QuantizeDynamic,
    QuantizeStatic,
    QuantizeWeights,
    ShareWeights,
    StoreNarrow,
)
from studio.records.steps.settings import SLOTS, Settings, Slot
from studio.records.steps.structure import Factorize, PruneChannels, RemoveBlocks, Sparsify, Student
from studio.records.steps.training import Distill, Finetune, Qat, Training

__all__ = [
    "SETTINGS",
    "SLOTS",
    "AnySettings",
    "Distill",
    "Factorize",
    "Finetune",
    "Fp16",
    "PruneChannels",
    "Qat",
    "QuantizeDynamic",
    "QuantizeStatic",
    "QuantizeWeights",
    "Recipe",
    "RemoveBlocks",
    "Settings",
    "ShareWeights",
    "Slot",
    "Sparsify",
    "Step",
    "StoreNarrow",
    "Student",
    "Training",
    "Treatment",
]

AnySettings: TypeAlias = (
    Fp16
    | QuantizeWeights
    | QuantizeDynamic
    | QuantizeStatic
    | ShareWeights
    | StoreNarrow
    | Sparsify
    | PruneChannels
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
    StoreNarrow,
    Sparsify,
    PruneChannels,
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
    """An ordered list of steps, or a preset that chooses them for the model at hand; a YAML file."""

    steps: tuple[Step, ...] = ()
    seed: int = 0
    name: str = ""
    preset: Literal["fast", "careful", "small"] | None = None


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
