"""A project: facts that accumulate and decisions that can be undone, as frozen records.

Facts are versions, their measurements and scans. Decisions are where the head is, what is staged
on its layers, names, notes, data and sizes. Undo puts earlier *decisions* back and never unmakes
a fact, so it needs no inverse operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from studio.base.errors import StudioError
from studio.records import presets
from studio.records.base import Record, replace
from studio.records.measure import DataSpec, DataSummary, Latency, Measurement, Sensitivity
from studio.records.model import Layer, ModelInfo, Outline
from studio.records.plan import Plan
from studio.records.steps import SLOTS, AnySettings, Recipe, Slot, Step, Treatment
from studio.records.task import InputSizes, Profiled

Treatments = tuple[tuple[str, Treatment], ...]


class ScanResult(Record, frozen=True, kw_only=True):
    """A sensitivity scan of one version, whole or as far as it came before it was cancelled."""

    settings: AnySettings
    layers: tuple[Sensitivity, ...] = ()
    samples: int = 0
    complete: bool = False
    digest: str = ""  # of the version scanned


class Version(Record, frozen=True, kw_only=True):
    """A model file, where it came from, and everything known of it.

    Attributes:
        parent: id of the version that `recipe` was applied to; None for the original.
        file: path of its .onnx; large weights lie beside it.
        file_bytes: of all its files; more than `file` has where weights lie beside it.
        recipe: only the last link of the chain; `Project.recipe_of` gives the whole.
        calibration: the data its recipe was given.
        info / outline / stripped: filled by an inspection; '' and None until then.
        notes: what the engine said while it was made.
    """

    id: int
    name: str
    note: str = ""
    digest: str
    parent: int | None = None
    file: str
    file_bytes: int = 0
    recipe: Recipe | None = None
    calibration: DataSpec | None = None
    plans: tuple[Plan, ...] = ()
    info: ModelInfo | None = None
    outline: Outline | None = None
    stripped: str = ""
    measurement: Measurement | None = None
    profile: Profiled | None = None
    scans: tuple[ScanResult, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers as inspected; none before that."""
        return self.info.layers if self.info else ()


class Decisions(Record, frozen=True, kw_only=True):
    """Everything about a project that undo puts back."""

    head: int | None = None
    staged: tuple[tuple[int, Treatments], ...] = ()
    names: tuple[tuple[int, str], ...] = ()
    notes: tuple[tuple[int, str], ...] = ()
    removed: tuple[int, ...] = ()
    calibration: DataSpec | None = None
    evaluation: DataSpec | None = None
    input_sizes: InputSizes = ()
    threads: int = 0
    seed: int = 0


class Project(Record, frozen=True, kw_only=True):
    """One model's versions and what the user decided about them.

    Attributes:
        path: of the saved project; '' = never saved.
        versions: those shown; `removed` keeps the others, so that undo can bring them back.
        treatments: staged on the head's layers.
        parked: treatments staged on other versions, waiting for the head to come back.
    """

    name: str
    path: str = ""
    versions: tuple[Version, ...] = ()
    removed: tuple[Version, ...] = ()
    head: int | None = None
    treatments: Treatments = ()
    parked: tuple[tuple[int, Treatments], ...] = ()
    calibration: DataSpec | None = None
    evaluation: DataSpec | None = None
    calibration_summary: DataSummary | None = None
    evaluation_summary: DataSummary | None = None
    input_sizes: InputSizes = ()
    threads: int = 0
    seed: int = 0

    # ------------------------------------------------------------ reading

    def version(self, version_id: int) -> Version:
        """The version with this id, shown or removed.

        Raises:
            StudioError: there is none.
        """
        for version in (*self.versions, *self.removed):
            if version.id == version_id:
                return version
        raise StudioError(f"There is no version {version_id}", hint="It may have been removed.")

    @property
    def original(self) -> Version | None:
        """The model as it was opened."""
        return next((v for v in self.versions if v.parent is None), None)

    @property
    def current(self) -> Version | None:
        """The version at the head."""
        return next((v for v in self.versions if v.id == self.head), None)

    def treatment_of(self, layer: str) -> Treatment:
        """What is staged on a layer of the head; an empty treatment where nothing is."""
        return dict(self.treatments).get(layer, Treatment())

    @property
    def staged(self) -> tuple[str, ...]:
        """The head's layers that have a treatment, in model order."""
        return tuple(name for name, _ in self.treatments)

    def steps(self) -> tuple[Step, ...]:
        """The staged treatments as steps: layers of equal settings together, in the order of a chain."""
        grouped: dict[AnySettings, list[str]] = {}
        for layer, treatment in self.treatments:
            for settings in treatment.settings:
                grouped.setdefault(settings, []).append(layer)
        ordered = sorted(grouped, key=lambda settings: (SLOTS.index(settings.slot), presets.order(settings)))
        return tuple(Step(settings=s, layers=tuple(grouped[s])) for s in ordered)

    def chain_of(self, version: Version) -> tuple[Version, ...]:
        """The versions from the original to this one, both included."""
        chain = [version]
        while chain[-1].parent is not None:
            chain.append(self.version(chain[-1].parent))
        return tuple(reversed(chain))

    def recipe_of(self, version: Version) -> Recipe:
        """The whole chain from the original to this version as one recipe; a step on every layer names none."""
        chain = self.chain_of(version)
        steps = [step for parent, made in pairwise(chain) for step in _told_shortly(parent, made)]
        return Recipe(
            steps=tuple(steps),
            seed=version.recipe.seed if version.recipe is not None else self.seed,
            name=version.name,
        )

    def find(self, parent: int, recipe: Recipe, calibration: DataSpec | None) -> Version | None:
        """The version that this recipe already made of this parent, if there is one."""
        for version in (*self.versions, *self.removed):
            if (version.parent, version.recipe, version.calibration) == (parent, recipe, calibration):
                return version
        return None

    # ------------------------------------------------------------ facts

    def with_version(self, version: Version) -> Project:
        """This project with a version added, or replaced where its id is known."""
        if any(v.id == version.id for v in self.removed):
            return replace(self, removed=_put(self.removed, version))
        return replace(self, versions=_put(self.versions, version))

    def in_one_time(self, known: Latency | None) -> Project:
        """This project with all versions' times told in one time of the original, so that they can be compared.

        Args:
            known: the original's latency before it was last measured; it stays where the new one was disturbed.
        """
        start = self.original.measurement.latency if self.original and self.original.measurement else None
        if start is None:
            return self
        alike = known is not None and (known.threads, known.input_shapes) == (
            start.threads,
            start.input_shapes,
        )
        base = known if known is not None and alike and start.busy and not known.busy else start
        project = self
        for version in self.versions:
            measured = version.measurement
            if measured is not None and measured.latency is not None:
                latency = base if version == self.original else measured.latency.told_in(base)
                project = project.with_version(
                    replace(version, measurement=replace(measured, latency=latency))
                )
        return project

    def next_id(self) -> int:
        """An id that no version has or had."""
        return max((v.id for v in (*self.versions, *self.removed)), default=-1) + 1

    # ------------------------------------------------------------ decisions

    def with_head(self, version_id: int) -> Project:
        """This project at another version; what is staged stays with the version it is staged on."""
        self.version(version_id)
        parked = {**dict(self.parked)}
        if self.head is not None:
            parked[self.head] = self.treatments
        treatments = parked.pop(version_id, ())
        kept = tuple(sorted((i, staged) for i, staged in parked.items() if staged))
        return replace(self, head=version_id, treatments=treatments, parked=kept)

    def with_treatment(self, layers: Iterable[str], slot: Slot, settings: AnySettings | None) -> Project:
        """This project with one slot of some layers' treatments replaced (None empties it)."""
        staged = dict(self.treatments)
        for layer in layers:
            staged[layer] = staged.get(layer, Treatment()).with_slot(slot, settings)
        return self._with_staged(staged)

    def without_treatments(self, layers: Iterable[str] | None = None) -> Project:
        """This project with nothing staged on these layers (None: on any)."""
        gone = set(self.staged if layers is None else layers)
        return self._with_staged({name: t for name, t in self.treatments if name not in gone})

    def without_version(self, version_id: int) -> Project:
        """This project without a version and its descendants; the head moves to the parent.

        Raises:
            StudioError: it is the original.
        """
        target = self.version(version_id)
        if target.parent is None:
            raise StudioError("The original cannot be removed", hint="Close the project instead.")
        family = {version_id}
        for version in self.versions:  # parents come before their children
            if version.parent in family:
                family.add(version.id)
        project = self.with_head(target.parent) if self.head in family else self
        gone = tuple(v for v in project.versions if v.id in family)
        return replace(
            project,
            versions=tuple(v for v in project.versions if v.id not in family),
            removed=(*project.removed, *gone),
        )

    @property
    def decisions(self) -> Decisions:
        """Everything that undo puts back."""
        staged = dict(self.parked)
        if self.head is not None and self.treatments:
            staged[self.head] = self.treatments
        everything = sorted((*self.versions, *self.removed), key=lambda v: v.id)
        return Decisions(
            head=self.head,
            staged=tuple(sorted(staged.items(), key=lambda item: item[0])),
            names=tuple((v.id, v.name) for v in everything),
            notes=tuple((v.id, v.note) for v in everything),
            removed=tuple(sorted(v.id for v in self.removed)),
            calibration=self.calibration,
            evaluation=self.evaluation,
            input_sizes=self.input_sizes,
            threads=self.threads,
            seed=self.seed,
        )

    def decide(self, decisions: Decisions) -> Project:
        """This project, all its facts kept, with other decisions.

        Versions that the decisions do not know (made later) stay as they are.
        """
        names, notes = dict(decisions.names), dict(decisions.notes)
        shown: list[Version] = []
        removed: list[Version] = []
        for version in sorted((*self.versions, *self.removed), key=lambda v: v.id):
            named = replace(
                version,
                name=names.get(version.id, version.name),
                note=notes.get(version.id, version.note),
            )
            # What was made of a removed version since then goes with it.
            orphan = any(version.parent == gone.id for gone in removed)
            (removed if orphan or version.id in decisions.removed else shown).append(named)
        staged = dict(decisions.staged)
        treatments = staged.pop(decisions.head, ()) if decisions.head is not None else ()
        same_calibration = decisions.calibration == self.calibration
        same_evaluation = decisions.evaluation == self.evaluation
        return replace(
            self,
            versions=tuple(shown),
            removed=tuple(removed),
            head=decisions.head,
            treatments=treatments,
            parked=tuple(staged.items()),
            calibration=decisions.calibration,
            evaluation=decisions.evaluation,
            calibration_summary=self.calibration_summary if same_calibration else None,
            evaluation_summary=self.evaluation_summary if same_evaluation else None,
            input_sizes=decisions.input_sizes,
            threads=decisions.threads,
            seed=decisions.seed,
        )

    # ------------------------------------------------------------ inside

    def _with_staged(self, staged: Mapping[str, Treatment]) -> Project:
        current = self.current
        order = {layer.name: i for i, layer in enumerate(current.layers)} if current else {}
        names = sorted(
            (n for n, t in staged.items() if t.settings), key=lambda n: (order.get(n, len(order)), n)
        )
        return replace(self, treatments=tuple((name, staged[name]) for name in names))


def _put(versions: tuple[Version, ...], version: Version) -> tuple[Version, ...]:
    if any(v.id == version.id for v in versions):
        return tuple(version if v.id == version.id else v for v in versions)
    return (*versions, version)


class Change(Record, frozen=True, kw_only=True):
    """One decision in the history: what it was, and the decisions before it (or, undone, after it)."""

    text: str
    decisions: Decisions


class History(Record, frozen=True, kw_only=True):
    """Decisions taken, and decisions undone that can be redone."""

    past: tuple[Change, ...] = ()
    future: tuple[Change, ...] = ()

    def record(self, text: str, before: Decisions) -> History:
        """This history after a decision was taken; what was undone can no longer be redone."""
        return History(past=(*self.past, Change(text=text, decisions=before))[-HISTORY_LIMIT:])

    def undo(self, now: Decisions) -> tuple[History, Decisions]:
        """The history and the decisions one step back; unchanged at the beginning."""
        if not self.past:
            return self, now
        last = self.past[-1]
        redo = Change(text=last.text, decisions=now)
        return History(past=self.past[:-1], future=(*self.future, redo)), last.decisions

    def redo(self, now: Decisions) -> tuple[History, Decisions]:
        """The history and the decisions one step forward; unchanged at the end."""
        if not self.future:
            return self, now
        following = self.future[-1]
        undo = Change(text=following.text, decisions=now)
        return History(past=(*self.past, undo), future=self.future[:-1]), following.decisions


HISTORY_LIMIT = 500  # decisions remembered


def _told_shortly(parent: Version, made: Version) -> Iterator[Step]:
    """The steps of one link; '*' stands for all layers where it means the same ones when the recipe is repeated."""
    names = {layer.name for layer in parent.layers}
    every = {layer.name for layer in parent.layers if not layer.untreatable}
    kept = names == {layer.name for layer in made.layers}
    for number, step in enumerate(made.recipe.steps if made.recipe else ()):
        whole = bool(every) and every <= set(step.layers) and (kept or number == 0)
        yield replace(step, layers=("*",)) if whole else step
