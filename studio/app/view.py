"""What a face shows, as one frozen record: every change of a session replaces it."""

from __future__ import annotations

from studio.app.jobs import Job, LogLine
from studio.app.project import Project, ScanResult
from studio.records.base import Record
from studio.records.measure import Latency
from studio.records.model import Cost
from studio.records.plan import Plan


class Live(Record, frozen=True, kw_only=True):
    """The points of the running compress job, kept after it ended.

    Attributes:
        job: its id.
        total: layers to treat.
        start_bytes / start_ms: of the parent before the first layer; ms None where not measured.
        sizes: (layers done, weight bytes).
        times: (layers done, median, low, high in ms).
        training: (step, loss, accuracy or None) of every step of training.
        training_steps: expected.
        words: what was said of each layer done: (layer, words).
        running: whether more may come.
        made: the version that came of it, None until it is there.
    """

    job: int
    total: int = 0
    start_bytes: int = 0
    start_ms: float | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    times: tuple[tuple[int, float, float, float], ...] = ()
    training: tuple[tuple[int, float, float | None], ...] = ()
    training_steps: int = 0
    words: tuple[tuple[str, str], ...] = ()
    running: bool = True
    made: int | None = None


class View(Record, frozen=True, kw_only=True):
    """Everything a face shows.

    Attributes:
        plans: of the staged treatments, one a step; () while nothing is staged or planned.
        planning: a newer plan is on its way.
        plan_error: why the staged treatments cannot be planned; '' when they can.
        predicted: cost of the head once the staged treatments are carried out.
        forecast: latency of a draft of that, timed against the head; None until it is known.
        scan_live: the running scan's layers so far.
        undo_text / redo_text: what undo and redo would take back or repeat.
    """

    project: Project | None = None
    modified: bool = False
    jobs: tuple[Job, ...] = ()
    log: tuple[LogLine, ...] = ()
    plans: tuple[Plan, ...] = ()
    planning: bool = False
    plan_error: str = ""
    predicted: Cost | None = None
    forecast: Latency | None = None
    live: Live | None = None
    scan_live: ScanResult | None = None
    can_undo: bool = False
    can_redo: bool = False
    undo_text: str = ""
    redo_text: str = ""

    @property
    def to_treat(self) -> int:
        """How many of the staged layers compressing would treat: those that no plan refuses as far as it is known."""
        staged = self.project.staged if self.project is not None else ()
        treated = {action.layer for plan in self.plans for action in plan.actions}
        refused = {refusal.layer for plan in self.plans for refusal in plan.refusals} - treated
        return sum(name not in refused for name in staged)

    @property
    def predicted_ms(self) -> float | None:
        """Latency of the head once the staged treatments are carried out; None where it cannot be said."""
        current = self.project.current if self.project is not None else None
        measured = current.measurement if current is not None else None
        if self.forecast is None or not self.forecast.ratio or measured is None or measured.latency is None:
            return None
        return measured.latency.median_ms / self.forecast.ratio

    def job(self, job_id: int) -> Job | None:
        """The job with this id, if it is known."""
        return next((job for job in self.jobs if job.id == job_id), None)
