"""What a technique is: `plan` promises and changes nothing, `apply` keeps the promise.

Adding one takes a settings record in `records/steps`, one file here, and one line in the
catalogue (`techniques/__init__.py`). Techniques know this contract and the floors below, never
each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from studio.base.progress import Progress
from studio.engine.dataset import Dataset
from studio.engine.graph import Model
from studio.engine.layers import Listing
from studio.records.plan import Plan
from studio.records.steps import Settings, Step


@dataclass(frozen=True)
class Context:
    """Everything a technique may use besides the model and its settings.

    Attributes:
        progress: ticked often (at least ten times a second of work); a tick may raise `Cancelled`.
        calibration: unlabelled samples, streamed; None when the user gave none.
        seed: of all randomness; same model + step + seed gives the same bytes.
        threads: for onnxruntime, numpy and torch; 0 = the runtime's choice.
        agreed: the user has said yes to the plan's questions.
        preview: the plan is shown while the user edits and will be made anew: it may guess, saying so, where
            exactness would take calibration runs.
        memo: what stays true for one unchanged model and data set (calibration ranges, second moments), so that
            treating layer after layer alone, as a scan does, need not measure it anew; keyed by the technique.
        training: samples to train on, labelled or not; None = train on the calibration samples.
        teacher: the model whose answers are followed; None when there is none but the model itself.
        scratch: folder for checkpoints of long work; None = none are kept.
        enough: asked between steps of long work; True = end it with the best so far.
        trained: called while training with (step, steps, loss, share right or None, learning rate).
        note: called with a sentence that belongs to the version ('channels verified …').
        treated: called after each layer with (model so far, layer name, words); feeds the live plots.
    """

    progress: Progress = field(default_factory=Progress)
    calibration: Dataset | None = None
    seed: int = 0
    threads: int = 0
    agreed: bool = False
    preview: bool = False
    memo: dict[object, object] = field(default_factory=dict)
    training: Dataset | None = None
    teacher: Model | None = None
    scratch: Path | None = None
    enough: Callable[[], bool] = lambda: False
    trained: Callable[[int, int, float, float | None, float], None] = lambda *_: None
    note: Callable[[str], None] = lambda _words: None
    treated: Callable[[Model, str, str], None] = lambda _model, _layer, _words: None


class Technique(Protocol):
    """One way to compress. Stateless; an instance stands in the catalogue.

    A technique with an attribute `treats_stored = True` changes how stored numbers are written, whatever the graph
    makes of them; it is also asked about layers whose weights are computed from constants. One with `tidies = True` gets
    the model without nodes that compute sizes which are known beforehand (`engine/tidy`).
    """

    settings: type[Settings]

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """What `step` would do to the model, changing nothing.

        Every name of `step.layers` (already resolved from globs) ends up in `actions` or in
        `refusals`; a refusal has a reason in words. Costs after are exact.
        """
        ...

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """A new model with the plan's actions carried out; the given one is left untouched.

        Raises:
            Cancelled: at any tick.
            StudioError: the plan cannot be kept (e.g. calibration data are missing or do not fit).
        """
        ...


@runtime_checkable
class Drafting(Protocol):
    """A technique that can show the structure of its result without doing the work.

    Steps of a chain are planned one after the other, each on what the one before leaves. A technique
    whose `apply` takes long (refit, training) drafts instead; the others are simply applied.
    """

    def draft(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """A model with the same nodes, shapes and types as `apply` gives, with any weights."""
        ...


@runtime_checkable
class Timing(Protocol):
    """A technique whose plans are surer once something has been timed on this machine; done behind the scenes."""

    def warm(self, listing: Listing, plan: Plan, context: Context) -> None:
        """Time what the next plan will want to know, unless that is known."""
        ...
