"""Staging a preset: what it chooses for each layer, and 8-bit weights for the layers that this is refused for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from studio.app.desk import Desk
from studio.base import units
from studio.base.errors import StudioError
from studio.records.presets import FALLBACK, TITLES, Preset, treatments
from studio.records.steps import AnySettings, Step
from studio.records.task import Answer, Previewed, PreviewSteps

Groups = Sequence[tuple[tuple[str, ...], AnySettings]]


def stage(desk: Desk, preset: Preset, layers: Iterable[str] = ()) -> None:
    """Stage what a preset chooses, on these layers or on all; once it is known what is refused, that gets the fallback.

    Raises:
        StudioError: none of the layers holds float weights that can be treated.
    """
    wanted = set(layers)
    chosen = treatments(preset, desk.head.layers, calibrated=desk.project.calibration is not None)
    named = [(tuple(n for n in names if not wanted or n in wanted), settings) for settings, names in chosen]
    groups = [(names, settings) for names, settings in named if names]
    if not groups:
        raise StudioError(
            f"{TITLES[preset]} finds nothing to quantize",
            "none of the layers holds float32 weights that can be treated",
        )
    _decide(desk, f"{TITLES[preset]} on {_count(groups)}", groups)
    _fall_back(desk, groups)


def _fall_back(desk: Desk, groups: Groups) -> None:
    """Ask what would be refused, and what of that 8-bit weights can treat: all steps are planned, then these on all layers."""
    project, head = desk.project, desk.head
    every = tuple(name for names, _ in groups for name in names)
    steps = [Step(settings=settings, layers=names) for names, settings in groups]

    def then(answer: Answer) -> None:
        if not isinstance(answer, Previewed) or desk.project.head != project.head:
            return
        refused = {refusal.layer for plan in answer.plans[:-1] for refusal in plan.refusals}
        staged = dict(desk.project.treatments)
        before = dict(project.treatments)
        left = tuple(
            action.layer
            for action in answer.plans[-1].actions
            if action.layer in refused and staged.get(action.layer) == before.get(action.layer)
        )
        if left:
            _decide(desk, f"{FALLBACK.chip} on {_count([(left, FALLBACK)])} that refused", [(left, FALLBACK)])

    task = PreviewSteps(
        model=head.file,
        steps=(*steps, Step(settings=FALLBACK, layers=every)),
        input_sizes=project.input_sizes,
        calibration=project.calibration,
    )
    desk.lanes.ask(task, then, key="preset", light=True)


def _decide(desk: Desk, text: str, groups: Groups) -> None:
    project = desk.project
    for names, settings in groups:
        project = project.with_treatment(names, "quantize", settings)
    desk.decide(text, project)


def _count(groups: Groups) -> str:
    return units.counted(sum(len(names) for names, _ in groups), "layer")
