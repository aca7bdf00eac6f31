"""What a step would do here: actions, predicted cost, refusals."""

from __future__ import annotations

from studio.records.base import Record
from studio.records.model import Cost, Group
from studio.records.steps import Step


class Action(Record, frozen=True, kw_only=True):
    """One layer that will be treated."""

    layer: str
    what: str  # 'int8 weights per channel, 64 scales'
    before: Cost
    after: Cost  # predicted; equals what is counted afterwards


class Refusal(Record, frozen=True, kw_only=True):
    """A layer that is not treated so, with the reason. Data, never silence.

    Attributes:
        better: it could be, but is better left as it is.
    """

    layer: str
    reason: str
    hint: str = ""
    better: bool = False


class Plan(Record, frozen=True, kw_only=True):
    """A promise: what a step will do to one model.

    Attributes:
        step: with its globs resolved to layer names.
        before / after: of the whole model; `after` is predicted and equals what is counted afterwards.
        groups: channels that shrink together (structured pruning only).
        notes: what the user should know ('opset is raised from 12 to 13').
        questions: what needs a yes before it is done ('prune 50 % without calibration data?').
    """

    step: Step
    actions: tuple[Action, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    before: Cost
    after: Cost
    groups: tuple[Group, ...] = ()
    notes: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
