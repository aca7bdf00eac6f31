"""What all settings have in common.

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

    @property
    def brief(self) -> str:
        """The chip where room is scarce: '−30 %'."""
        return self.chip
