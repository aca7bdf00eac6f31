"""Undo, redo and facts under arbitrary histories, against a model that keeps every state."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings as budget
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from studio.app.project import Decisions, History, Project, ScanResult, Version
from studio.base.errors import StudioError
from studio.records.base import decode, encode, replace
from studio.records.measure import DataSpec, Measurement
from studio.records.steps import Fp16, QuantizeWeights, Recipe, Sparsify

LAYERS = ("a", "b", "c", "d")
SETTINGS = (Fp16(), QuantizeWeights(bits=8), QuantizeWeights(), Sparsify(ratio=0.3), None)


class Undo(RuleBasedStateMachine):
    """Decisions are undone and redone exactly; facts only ever grow."""

    @initialize()
    def open_model(self) -> None:
        original = Version(id=0, name="Original", digest="d0", file="0.onnx")
        self.project = Project(name="net", versions=(original,), head=0)
        self.history = History()
        self.past: list[Decisions] = []
        self.future: list[Decisions] = []
        self.measured: dict[int, Measurement] = {}
        self.ids = {0}

    def decide(self, project: Project) -> None:
        if project == self.project:
            return
        self.past.append(self.project.decisions)
        self.future.clear()
        self.history = self.history.record("something", self.project.decisions)
        self.project = project

    # ------------------------------------------------------------ decisions

    @rule(layers=st.sets(st.sampled_from(LAYERS)), settings=st.sampled_from(SETTINGS))
    def stage(self, layers: set[str], settings: object) -> None:
        slot = settings.slot if settings is not None else "quantize"
        self.decide(self.project.with_treatment(layers, slot, settings))

    @rule(layers=st.none() | st.sets(st.sampled_from(LAYERS)))
    def clear(self, layers: set[str] | None) -> None:
        self.decide(self.project.without_treatments(layers))

    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        self.decide(self.project.with_head(data.draw(st.sampled_from([v.id for v in self.project.versions]))))

    @rule(data=st.data(), name=st.text(min_size=1, max_size=5))
    def rename(self, data: st.DataObject, name: str) -> None:
        version = data.draw(st.sampled_from(self.project.versions))
        self.decide(self.project.with_version(replace(version, name=name)))

    @rule(path=st.sampled_from(["", "a.npz", "b.npz"]))
    def choose_data(self, path: str) -> None:
        self.decide(replace(self.project, calibration=DataSpec(path=path), calibration_summary=None))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.project.versions))
        if version.parent is None:
            try:
                self.project.without_version(version.id)
            except StudioError:
                return
            raise AssertionError("the original was removed")
        self.decide(self.project.without_version(version.id))

    # ------------------------------------------------------------ facts

    @rule(settings=st.sampled_from(SETTINGS[:-1]))
    def make_version(self, settings: object) -> None:
        assert self.project.head is not None
        step = self.project.steps()[:1] or ()
        made = Version(
            id=self.project.next_id(),
            name="made",
            digest="d",
            parent=self.project.head,
            file="x.onnx",
            recipe=Recipe(steps=step),
        )
        assert made.id not in self.ids
        self.ids.add(made.id)
        self.project = self.project.with_version(made)

    @rule(data=st.data(), size=st.integers(1, 10**9))
    def measure(self, data: st.DataObject, size: int) -> None:
        version = self.project.version(data.draw(st.sampled_from(sorted(self.ids))))
        fact = Measurement(digest=version.digest, file_bytes=size)
        self.measured[version.id] = fact
        scan = ScanResult(settings=Fp16(), digest=version.digest)
        known = replace(version, measurement=fact, scans=(scan,))
        self.project = self.project.with_version(known)

    # ------------------------------------------------------------ there and back

    @precondition(lambda self: self.past)
    @rule()
    def undo(self) -> None:
        now = self.project.decisions
        self.history, decisions = self.history.undo(now)
        self.project = self.project.decide(decisions)
        self.future.append(now)
        self.same_but_for_newer_versions(self.past.pop())

    @precondition(lambda self: self.future)
    @rule()
    def redo(self) -> None:
        now = self.project.decisions
        self.history, decisions = self.history.redo(now)
        self.project = self.project.decide(decisions)
        self.past.append(now)
        self.same_but_for_newer_versions(self.future.pop())

    def same_but_for_newer_versions(self, wanted: Decisions) -> None:
        """Versions made since then keep the names that they have, and go where their parents go."""
        now = self.project.decisions
        known = set(dict(wanted.names))
        names = tuple((i, name) for i, name in now.names if i in known)
        notes = tuple((i, note) for i, note in now.notes if i in known)
        removed = tuple(i for i in now.removed if i in known)
        assert replace(now, names=names, notes=notes, removed=removed) == wanted

    # ------------------------------------------------------------ what always holds

    @invariant()
    def facts_are_never_lost(self) -> None:
        everything = {v.id: v for v in (*self.project.versions, *self.project.removed)}
        assert set(everything) == self.ids
        assert {i: v.measurement for i, v in everything.items() if v.measurement} == self.measured

    @invariant()
    def the_head_is_shown_and_the_original_never_removed(self) -> None:
        assert self.project.current is not None
        assert self.project.original is not None

    @invariant()
    def parents_of_shown_versions_are_shown(self) -> None:
        shown = {v.id for v in self.project.versions}
        assert all(v.parent in shown for v in self.project.versions if v.parent is not None)

    @invariant()
    def steps_hold_exactly_what_is_staged(self) -> None:
        staged = {(layer, s) for layer, t in self.project.treatments for s in t.settings}
        assert {(layer, step.settings) for step in self.project.steps() for layer in step.layers} == staged
        assert all(t.settings for _, t in self.project.treatments)

    @invariant()
    def the_history_says_what_can_be_done(self) -> None:
        assert (bool(self.history.past), bool(self.history.future)) == (bool(self.past), bool(self.future))

    @invariant()
    def deciding_what_is_decided_changes_nothing(self) -> None:
        assert self.project.decide(self.project.decisions).decisions == self.project.decisions

    @invariant()
    def a_project_survives_being_written(self) -> None:
        assert decode(encode(self.project), Project) == self.project


Undo.TestCase.settings = budget(max_examples=60, stateful_step_count=40, deadline=None)
TestUndo = Undo.TestCase
