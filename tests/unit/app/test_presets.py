"""Presets in the window: what refuses its treatment is staged with 8-bit weights, as a recipe would do it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from studio.app.session import Session
from studio.records.measure import DataSpec
from studio.records.presets import FALLBACK, Preset
from studio.records.steps import AnySettings, Fp16, QuantizeDynamic, QuantizeStatic, QuantizeWeights

Until = Callable[[Callable[[], bool]], None]


def staged(session: Session) -> dict[str, AnySettings | None]:
    project = session.view.project
    assert project is not None
    return {name: treatment.of("quantize") for name, treatment in project.treatments}


@pytest.fixture
def picky(session: Session, tmp_path: Path, until: Until) -> Session:
    """A model whose stem refuses everything but 8-bit weights."""
    path = tmp_path / "picky.onnx"
    path.write_bytes(b"any bytes")
    session.open_model(path)
    until(lambda: session.view.project is not None and not any(j.active for j in session.view.jobs))
    session.set_data(calibration=DataSpec(kind="random"))
    return session


@pytest.mark.parametrize("preset", ["fast", "careful", "small"])
def test_what_refuses_a_preset_gets_eight_bit_weights(picky: Session, until: Until, preset: Preset) -> None:
    picky.set_treatment(["stem"], "quantize", Fp16())
    picky.stage_preset(preset)
    first = staged(picky)["body"]
    until(lambda: staged(picky)["stem"] == FALLBACK)
    assert staged(picky)["body"] == staged(picky)["head"] == first != FALLBACK


def test_only_the_selected_layers_are_staged_and_fall_back(picky: Session, until: Until) -> None:
    picky.stage_preset("small", ["stem"])
    until(lambda: staged(picky)["stem"] == FALLBACK)
    assert set(staged(picky)) == {"stem"}


def test_what_was_decided_meanwhile_stays(picky: Session, until: Until) -> None:
    picky.stage_preset("small")
    picky.set_treatment(["stem"], "quantize", Fp16())
    until(lambda: bool(picky.view.plans) and not picky.view.planning)
    assert staged(picky)["stem"] == Fp16()


def test_undo_takes_a_preset_and_its_fallback_back(picky: Session, until: Until) -> None:
    picky.stage_preset("small")
    until(lambda: staged(picky)["stem"] == FALLBACK)
    assert "refused" in picky.view.undo_text
    picky.undo()
    picky.undo()
    assert staged(picky) == {}


def test_static_integers_come_first_in_a_chain_whatever_the_order_of_layers(opened: Session) -> None:
    opened.set_treatment(["stem"], "quantize", QuantizeWeights())
    opened.set_treatment(["body"], "quantize", QuantizeDynamic())
    opened.set_treatment(["head"], "quantize", QuantizeStatic())
    project = opened.view.project
    assert project is not None
    assert [step.layers for step in project.steps()] == [("head",), ("body",), ("stem",)]


def test_layers_that_refuse_are_not_counted_among_those_to_compress(picky: Session, until: Until) -> None:
    picky.set_treatment(["stem", "body", "head"], "quantize", Fp16())
    assert picky.view.to_treat == 3  # nothing is known yet
    until(lambda: bool(picky.view.plans) and not picky.view.planning)
    assert picky.view.to_treat == 2
