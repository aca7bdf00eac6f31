"""The state behind a session, and the two ways it changes: a decision is taken, a fact is learned.

What follows from a decision (a plan, an inspection, a summary of data) is asked here too, so that
no caller can forget it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from studio.app.board import Board
from studio.app.home import Home
from studio.app.jobs import default_limits, error_of
from studio.app.lanes import Lanes
from studio.app.project import Decisions, History, Project, Version
from studio.app.store import Store
from studio.base.errors import StudioError
from studio.records.base import replace
from studio.records.measure import DataSpec
from studio.records.plan import Plan
from studio.records.task import (
    Answer,
    DataPreview,
    DescribeData,
    Failed,
    Forecast,
    Forecasted,
    Inspect,
    Inspected,
    Previewed,
    PreviewSteps,
)

PLAN_LIMIT_S = 600.0
MERGE_S = 1.0  # edits of the same thing within this time are one decision


@dataclass
class Desk:
    """Everything that the parts of a session share; used on the owner's thread only."""

    board: Board
    lanes: Lanes
    home: Home
    store: Store
    history: History = field(default_factory=History)
    _merge: tuple[str, float] = ("", 0.0)
    _strips: int = 0

    # ------------------------------------------------------------ reading

    @property
    def project(self) -> Project:
        """The open project.

        Raises:
            StudioError: none is open.
        """
        if self.board.view.project is None:
            raise StudioError("No model is open", hint="Open one first.")
        return self.board.view.project

    @property
    def head(self) -> Version:
        """The version at the head.

        Raises:
            StudioError: no project is open.
        """
        current = self.project.current
        if current is None:
            raise StudioError("No model is open", hint="Open one first.")
        return current

    def stripped_path(self) -> str:
        """A fresh path for a weightless copy."""
        self._strips += 1
        return str(self.home.session / "stripped" / f"{self._strips}.onnx")

    # ------------------------------------------------------------ another project

    def show(self, project: Project | None, *, saved: bool = True) -> None:
        """Show another project, or none; `saved`: there is no unsaved work in it yet."""
        self.lanes.turn_page()
        self.lanes.forget("preview", "forecast", "describe")
        self.history, self._merge = History(), ("", 0.0)
        if saved:
            self.board.mark_saved(project)
        else:
            self.board.mark_unsaved()
        self.board.change(
            project=project,
            plans=(),
            planning=False,
            plan_error="",
            predicted=None,
            forecast=None,
            live=None,
            scan_live=None,
            **self._history_fields(),
        )
        if project is not None:
            self._inspect_head()
            self._summarise_data()
            self._plan()

    # ------------------------------------------------------------ facts

    def learn(self, version_id: int, **facts: Any) -> None:
        """Add what was found out about a version."""
        project = self.project
        version = replace(project.version(version_id), **facts)
        self.board.change(project=project.with_version(version))

    # ------------------------------------------------------------ decisions

    def decide(self, text: str, project: Project, merge: str = "") -> None:
        """Take a decision: show `project`, whose decisions are others than now.

        Args:
            text: of the decision, for undo.
            project: the open project with other decisions.
            merge: names what is edited; edits of the same in quick succession are one decision.
        """
        before = self.project
        if project == before:
            return
        now = self.board.clock()
        key, when = self._merge
        if not (merge and merge == key and now - when < MERGE_S):
            self.history = self.history.record(text, before.decisions)
        self._merge = (merge, now)
        self._settle(before, project)

    def undo(self) -> None:
        """Put the decisions before the last one back."""
        self._travel(self.history.undo)

    def redo(self) -> None:
        """Take the decision that was undone last again."""
        self._travel(self.history.redo)

    def _travel(self, step: Callable[[Decisions], tuple[History, Decisions]]) -> None:
        before = self.board.view.project
        if before is None:
            return
        self.history, decisions = step(before.decisions)
        self._merge = ("", 0.0)
        self._settle(before, before.decide(decisions))

    def _settle(self, before: Project, project: Project) -> None:
        """Show a project with other decisions, and ask what follows from them."""
        moved = project.head != before.head or project.input_sizes != before.input_sizes
        fields: dict[str, Any] = {"plans": (), "predicted": None, "forecast": None} if moved else {}
        self.board.change(project=project, **fields, **self._history_fields())
        if moved:
            self._inspect_head()
        self._summarise_data()
        if moved or project.steps() != before.steps() or project.calibration != before.calibration:
            self._plan()

    def _history_fields(self) -> dict[str, Any]:
        past, future = self.history.past, self.history.future
        return {
            "can_undo": bool(past),
            "can_redo": bool(future),
            "undo_text": past[-1].text if past else "",
            "redo_text": future[-1].text if future else "",
        }

    # ------------------------------------------------------------ what follows from decisions

    def _plan(self) -> None:
        """Ask what the staged treatments would do."""
        project, head = self.project, self.head
        steps = project.steps()
        self.lanes.forget("preview", "forecast")
        if not steps:
            self.board.change(plans=(), planning=False, plan_error="", predicted=None, forecast=None)
            return
        self.board.change(planning=True, forecast=None)

        def then(answer: Answer) -> None:
            match answer:
                case Previewed(plans=plans):
                    predicted = plans[-1].after if plans else None
                    self.board.change(plans=plans, planning=False, plan_error="", predicted=predicted)
                    self._forecast(plans)
                case Failed():
                    sentence = error_of(answer).sentence
                    self.board.change(plans=(), planning=False, plan_error=sentence, predicted=None)
                case _:
                    self.board.change(planning=False)

        task = PreviewSteps(
            model=head.file, steps=steps, input_sizes=project.input_sizes, calibration=project.calibration
        )
        # A plan that looks at data may take its time: the next edit ends it anyway.
        self.lanes.ask(task, then, key="preview", light=True, limits=default_limits(PLAN_LIMIT_S))

    def _forecast(self, plans: tuple[Plan, ...]) -> None:
        """Ask how fast the result of the plans would be; a draft that does not run leaves it unknown."""
        project, head = self.project, self.head
        if not any(plan.actions for plan in plans):
            return

        def then(answer: Answer) -> None:
            if isinstance(answer, Forecasted):
                self.board.change(forecast=answer.latency)

        task = Forecast(
            model=head.file,
            plans=plans,
            input_sizes=project.input_sizes,
            calibration=project.calibration,
            evaluation=project.evaluation,
            threads=project.threads,
        )
        self.lanes.ask(task, then, key="forecast", patient=True)

    def _inspect_head(self) -> None:
        """Inspect the head where that has not been done at the chosen sizes."""
        project, head = self.project, self.head
        if _known_at(head, dict(project.input_sizes)) and Path(head.stripped).is_file():
            return

        def then(answer: Answer) -> None:
            match answer:
                case Inspected(info=info):
                    self.learn(head.id, info=info, outline=answer.outline, stripped=answer.stripped)
                    # A saved original whose weights lay beside it was written anew, with another digest.
                    stored = Path(head.file).parent.name == head.digest
                    if head.digest != info.digest and not stored:
                        self.board.say(f"The file of {head.name} has changed since it was opened", "caution")
                case Failed():
                    self.board.say(error_of(answer).sentence, "error")
                case _:
                    pass

        task = Inspect(model=head.file, input_sizes=project.input_sizes, stripped=self.stripped_path())
        # The table is empty until this is answered, and a measurement takes half a minute; its process is
        # still loading the model by the time this is done.
        self.lanes.ask(task, then, key=f"inspect {head.id}", light=True)

    def _summarise_data(self) -> None:
        """Ask what the chosen data hold, where that is not known."""
        project = self.project
        if project.calibration is not None and project.calibration_summary is None:
            self._summarise("calibration", project.calibration)
        if project.evaluation is not None and project.evaluation_summary is None:
            self._summarise("evaluation", project.evaluation)

    def _summarise(self, role: Literal["calibration", "evaluation"], spec: DataSpec) -> None:
        def then(answer: Answer) -> None:
            project = self.project
            match answer:
                case DataPreview(summary=summary):
                    if role == "calibration" and project.calibration == spec:
                        self.board.change(project=replace(project, calibration_summary=summary))
                    elif role == "evaluation" and project.evaluation == spec:
                        self.board.change(project=replace(project, evaluation_summary=summary))
                case Failed():
                    self.board.say(f"The {role} data: {error_of(answer).sentence}", "error")
                case _:
                    pass

        self.lanes.ask(DescribeData(model=self.head.file, spec=spec), then, key=f"summarise {role}")


def _known_at(version: Version, sizes: dict[str, int]) -> bool:
    """Whether a version has been inspected at these sizes of dynamic dimensions."""
    if version.info is None or version.outline is None:
        return False
    return not sizes or sizes.items() >= dict(version.info.input_sizes).items()
