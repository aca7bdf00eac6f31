"""The inspector: one edit for the whole selection, outcomes in words, charts from details."""

from __future__ import annotations

import msgspec
import pytest
from PySide6.QtWidgets import QLabel
from pytestqt.qtbot import QtBot

from studio.gui.inspector import Inspector
from studio.gui.inspector.outcome import action_words, linked_layers, predicted_words, refusal_words
from studio.gui.inspector.pages import sensitivity_facts
from studio.gui.inspector.treatment import SlotForm, techniques_of
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from studio.records.measure import DataSpec
from studio.records.model import Cost, Group, Member
from studio.records.plan import Action, Plan, Refusal
from studio.records.steps import Factorize, QuantizeDynamic, QuantizeStatic, QuantizeWeights, Sparsify, Step
from studio.records.task import ChannelRange, Histogram, LayerDetail, RankSpectrum
from tests.support.canned import FakeSession, busy_view, plan_of


class Session(FakeSession):
    """Answers details at once."""

    def describe_layer(self, layer: str, settings: object, then: object) -> None:
        values = Histogram(low=-1, high=1, counts=tuple(range(64)))
        grid = (-1.0, 0.0, 1.0) if settings else ()
        ranges = (ChannelRange(low=-1, high=1),) * 8
        spectrum = RankSpectrum(ranks=(0, 1, 2, 3), lost=(1.0, 0.4, 0.1, 0.0), break_even=2)
        self.asked.append(("describe", (layer, settings)))
        then(
            LayerDetail(
                layer=layer,
                weights=values,
                channels=ranges,
                grid=grid,
                inputs=values,
                outputs=values,
                spectrum=spectrum if isinstance(settings, Factorize) else None,
            )
        )

    def set_treatments(self, slot: object, groups: object) -> None:
        project = self.view.project
        for layers, settings in groups:
            project = project.with_treatment(layers, slot, settings)
        self.asked.append(("set_treatments", (slot, groups)))
        self.show(project=project)


@pytest.fixture
def session() -> Session:
    return Session(busy_view())


@pytest.fixture
def inspector(session: Session, selection: Selection, theme: Theme, qtbot: QtBot) -> Inspector:
    made = Inspector(session, selection, theme)
    qtbot.addWidget(made)
    made.resize(340, 700)
    made.show()
    return made


def choose(form: SlotForm, kind: type | None) -> None:
    row = next(i for i in range(form.box.count()) if form.box.itemData(i) is kind)
    form.box.setCurrentIndex(row)
    form.box.activated.emit(row)


def test_without_a_selection_it_says_what_to_do(inspector: Inspector, selection: Selection) -> None:
    assert not inspector.treatment._empty.isHidden()
    selection.set(("conv1",))
    assert inspector.treatment._empty.isHidden()


def test_every_technique_can_be_chosen_in_its_slot(inspector: Inspector) -> None:
    for slot, form in inspector.treatment.slots.items():
        assert [form.box.itemData(i) for i in range(1, form.box.count())] == list(techniques_of(slot))


def test_a_choice_is_one_edit_for_all_selected_layers(
    inspector: Inspector, selection: Selection, session: Session
) -> None:
    names = ("conv1", "layer1.0.conv1", "fc")
    selection.set(names)
    choose(inspector.treatment.slots["quantize"], QuantizeWeights)
    edits = [asked for asked in session.asked if asked[0] == "set_treatments"]
    assert len(edits) == 1
    assert all(session.view.project.treatment_of(name).of("quantize") == QuantizeWeights() for name in names)


def test_editing_one_field_of_layers_that_differ_keeps_what_else_differs(
    inspector: Inspector, selection: Selection, session: Session
) -> None:
    session.set_treatment(("conv1",), "quantize", QuantizeWeights(bits=8, block=64))
    session.set_treatment(("fc",), "quantize", QuantizeWeights(bits=4, block=32))
    selection.set(("conv1", "fc"))
    form = inspector.treatment.slots["quantize"].form
    assert form is not None
    assert form.control("bits").widget.currentIndex() == -1
    form.edited.emit("symmetric", False)
    treatment = session.view.project.treatment_of
    assert treatment("conv1").of("quantize") == QuantizeWeights(bits=8, block=64, symmetric=False)
    assert treatment("fc").of("quantize") == QuantizeWeights(bits=4, block=32, symmetric=False)


def test_techniques_that_differ_are_mixed_and_no_form_pretends_otherwise(
    inspector: Inspector, selection: Selection, session: Session
) -> None:
    session.set_treatment(("conv1",), "quantize", QuantizeWeights())
    session.set_treatment(("fc",), "quantize", QuantizeDynamic())
    selection.set(("conv1", "fc"))
    form = inspector.treatment.slots["quantize"]
    assert form.box.currentIndex() == -1
    assert form.form is None


def test_choosing_the_same_technique_again_keeps_each_layers_own_settings(
    inspector: Inspector, selection: Selection, session: Session
) -> None:
    session.set_treatment(("conv1",), "quantize", QuantizeWeights(bits=8))
    session.set_treatment(("fc",), "quantize", QuantizeDynamic())
    selection.set(("conv1", "fc"))
    choose(inspector.treatment.slots["quantize"], QuantizeWeights)
    assert session.view.project.treatment_of("conv1").of("quantize") == QuantizeWeights(bits=8)
    assert session.view.project.treatment_of("fc").of("quantize") == QuantizeWeights()


def test_missing_calibration_data_is_said_with_the_button_that_mends_it(
    inspector: Inspector, selection: Selection, session: Session, qtbot: QtBot
) -> None:
    session.set_treatment(("fc",), "quantize", QuantizeStatic())
    selection.set(("fc",))
    outcome = inspector.treatment.outcome
    assert not outcome._data.isHidden()
    with qtbot.waitSignal(inspector.data_asked):
        outcome._data.click()
    project = msgspec.structs.replace(session.view.project, calibration=DataSpec(path="x.npz"))
    session.show(project=project)
    assert outcome._data.isHidden()


def test_the_outcome_counts_bytes_once_over_a_chain_of_steps() -> None:
    project = busy_view().project
    first = plan_of(project, ["fc"])
    action = first.actions[0]
    again = msgspec.structs.replace(action, before=action.after, after=Cost(bytes=100))
    second = msgspec.structs.replace(first, actions=(again,))
    words = predicted_words((first, second), {"fc"})
    assert words.startswith("Predicted: 2.05 MB → 100 B")
    assert predicted_words((first,), {"conv1"}) == ""


def test_equal_reasons_are_said_once() -> None:
    step = Step(settings=Sparsify())
    refusals = tuple(Refusal(layer=f"l{i}", reason="it is shared", hint="Untie it.") for i in range(9))
    better = Refusal(layer="l9", reason="it is small", better=True)
    plan = Plan(step=step, refusals=(*refusals, better), before=Cost(), after=Cost())
    chosen = {f"l{i}" for i in range(10)}
    assert refusal_words((plan,), chosen, better=True) == ["l9: it is small."]
    (words,) = refusal_words((plan,), chosen)
    assert words == "l0, l1, l2, l3 and 5 more: it is shared. Untie it."
    assert action_words((plan,), {"l0"}) == []


def test_layers_that_shrink_along_are_named_and_blocked_groups_are_not() -> None:
    def group(name: str, *layers: str, blocked: str = "") -> Group:
        members = tuple(Member(layer=layer, axis="out", channels=8) for layer in layers)
        return Group(name=name, width=8, members=members, blocked=blocked)

    actions = tuple(Action(layer=name, what="8 → 4", before=Cost(), after=Cost()) for name in "abd")
    groups = (group("a", "a", "b"), group("c", "a", "d", blocked="it feeds an output"), group("e", "a", "e"))
    plan = Plan(step=Step(settings=Sparsify()), actions=actions, groups=groups, before=Cost(), after=Cost())
    assert linked_layers((plan,), {"a"}) == ["b"]
    assert linked_layers((plan,), {"e"}) == []


def test_a_rank_is_given_among_all_layers_of_a_scan() -> None:
    scan = busy_view().project.current.scans[0]
    worst = max(scan.layers, key=lambda s: s.score)
    facts = dict(sensitivity_facts(worst, scan))
    assert facts["Rank"] == f"1 of {len(scan.layers)}, most sensitive first"
    assert sensitivity_facts(None, scan) == []


def test_details_are_asked_once_the_selection_rests_and_drawn_with_the_grid(
    inspector: Inspector, selection: Selection, session: Session, qtbot: QtBot
) -> None:
    session.set_treatment(("fc",), "quantize", QuantizeWeights())
    for name in ("conv1", "layer1.0.conv1", "fc"):
        selection.set((name,))
    qtbot.waitUntil(lambda: any(asked[0] == "describe" for asked in session.asked))
    asked = [what for name, what in session.asked if name == "describe"]
    assert asked == [("fc", QuantizeWeights())]
    for tab in range(inspector.count()):
        inspector.setCurrentIndex(tab)
        assert not inspector.grab().isNull()
    assert inspector.weights._ranges is not None


def test_selecting_ten_thousand_layers_is_quick_enough_to_test(
    inspector: Inspector, selection: Selection, session: Session
) -> None:
    names = tuple(f"layer{i}" for i in range(10_000))
    selection.set(names)
    assert "9997 more" in inspector.treatment._names.text()
    choose(inspector.treatment.slots["quantize"], QuantizeWeights)
    assert len(session.view.project.staged) >= 10_000


def test_a_layer_to_be_factorised_shows_what_each_rank_loses(
    inspector: Inspector, selection: Selection, session: Session, qtbot: QtBot
) -> None:
    page = inspector.weights
    assert page._spectrum_section.isHidden()
    session.set_treatment(("conv1",), "factorize", Factorize())
    selection.set(("conv1",))
    qtbot.waitUntil(lambda: not page._spectrum_section.isHidden())
    assert page._spectrum is not None
    assert page._spectrum._spectrum.break_even == 2


def test_figures_of_one_layer_say_which_where_several_are_selected(
    inspector: Inspector, selection: Selection, qtbot: QtBot
) -> None:
    def named() -> list[str]:
        return [part.text() for part in inspector.widget(0).findChildren(QLabel) if part.isVisible()]

    selection.set(("conv1",))
    assert "Layer" not in named()
    selection.set(("fc", "conv1"))
    qtbot.waitUntil(lambda: {"Layer", selection.current} <= set(named()))
