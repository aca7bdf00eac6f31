"""Columns, colours and summaries of layers."""

from __future__ import annotations

import pytest
from support.canned import busy_view, info_of, layer, project_of, resnet_layers

from studio.app.view import View
from studio.gui.figures import (
    BY_ID,
    COLUMNS,
    Figures,
    bytes_after,
    chips,
    column_title,
    figures,
    heat,
    log_share,
    same_figures,
    shown_as,
    summary,
    treatment_text,
)
from studio.records.measure import LayerTime
from studio.records.model import Cost
from studio.records.plan import Refusal
from studio.records.steps import PruneChannels, QuantizeStatic, Treatment


def test_a_view_without_a_model_has_no_figures() -> None:
    assert figures(View()).layers == ()
    assert summary(figures(View()), ()) == ""


def test_figures_take_the_newest_scan_and_the_plans() -> None:
    known = figures(busy_view())
    assert known.scanned == "INT8"
    assert column_title(BY_ID["sensitivity"], known) == "Sensitivity (INT8)"
    treated = next(x for x in known.layers if x.name == "layer3.0.conv2")
    assert bytes_after(treated, known) < treated.cost.bytes / 3
    assert treatment_text(treated, known) == "INT8"
    assert treatment_text(known.layers[0], known) == "keep fp32"


def test_every_column_reads_every_layer() -> None:
    known = figures(busy_view())
    for column in COLUMNS:
        for one in known.layers:
            assert isinstance(column.text(column.value(one, known)), str)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0"),
        (441, "<0.001"),
        (4_100, "0.004"),
        (37_632, "0.04"),
        (2_359_296, "2.36"),
        (44_700_000, "44.7"),
    ],
)
def test_megabytes_have_decimals_as_they_need(count: int, words: str) -> None:
    one = layer("a", cost=Cost(parameters=count, bytes=count))
    size = BY_ID["size"]
    assert shown_as(size, size.value(one, Figures()), Figures()) == words


def test_small_models_are_shown_in_kilobytes() -> None:
    known = Figures(layers=(layer("a", cost=Cost(bytes=640)), layer("b", cost=Cost(bytes=36_000))))
    size = BY_ID["size"]
    assert column_title(size, known) == "kB"
    assert column_title(BY_ID["after"], known) == "kB after"
    assert [shown_as(size, size.value(one, known), known) for one in known.layers] == ["0.64", "36.0"]


def test_what_is_not_known_is_a_dash_and_has_no_colour() -> None:
    known = Figures(layers=resnet_layers())
    assert BY_ID["latency"].text(BY_ID["latency"].value(known.layers[0], known)) == "–"
    assert not heat(BY_ID["sensitivity"], known).shares


def test_heat_runs_from_nothing_to_the_largest() -> None:
    known = figures(busy_view())
    warmth = heat(BY_ID["size"], known)
    assert max(warmth.shares.values()) == 1
    assert (warmth.low, warmth.high) == ("0", "9.44")
    assert warmth.shares["conv1"] < 0.01


def test_sensitivity_is_warm_by_its_logarithm() -> None:
    assert log_share(1, 1) == 1
    assert log_share(1e-3, 1) == pytest.approx(0)
    assert log_share(1e-9, 1) == 0
    assert log_share(0, 1) == log_share(1, 0) == 0
    assert log_share(10**-1.5, 1) == pytest.approx(0.5)


def test_precision_is_coloured_by_its_bits() -> None:
    layers = (layer("a"), layer("b", precision="int8"), layer("c", precision="int4 weights"))
    shares = heat(BY_ID["precision"], Figures(layers=layers)).shares
    assert shares["a"] > shares["b"] > shares["c"]


def test_the_summary_counts_what_is_selected() -> None:
    layers = (layer("a", cost=Cost(bytes=4_000_000)), layer("b", cost=Cost(bytes=5_400_000)), layer("c"))
    times = {name: LayerTime(layer=name, ms=1, share=0.205) for name in "ab"}
    known = Figures(layers=layers, times=times)
    assert summary(known, ("a", "b")) == "2 of 3 selected · 9.40 MB · 41 % of latency"
    assert summary(known, ()).startswith("3 layers · ")


def test_a_view_differs_only_where_figures_do() -> None:
    view = busy_view()
    assert same_figures(view, view)
    project = project_of(resnet_layers())
    staged = project.with_treatment(("conv1",), "quantize", QuantizeStatic())
    assert not same_figures(View(project=project), View(project=staged))
    assert same_figures(View(project=project), View(project=project, modified=True))
    assert Treatment() == project.treatment_of("conv1")
    assert info_of(()).layers == ()


def test_a_refusal_strikes_out_its_own_treatment_alone() -> None:
    int8, pruned = QuantizeStatic(), PruneChannels(ratio=0.3)
    one, both = layer("a"), Treatment(settings=(pruned, int8))
    refusal = Refusal(layer="a", reason="it has no constant weight")
    known = Figures(layers=(one,), treatments={"a": both}, refused={("a", "quantize"): refusal})
    assert chips(one, known) == [(pruned, False), (int8, True)]


def test_what_is_better_left_alone_has_no_chip() -> None:
    int8, one = QuantizeStatic(), layer("a")
    refusal = Refusal(layer="a", reason="it is small", better=True)
    staged = {"a": Treatment(settings=(int8,))}
    assert chips(one, Figures(treatments=staged, refused={("a", "quantize"): refusal})) == []


def test_a_chip_is_shorter_where_room_is_scarce() -> None:
    assert (PruneChannels(ratio=0.3).chip, PruneChannels(ratio=0.3).brief) == ("−30 % channels", "−30 %")
    assert (PruneChannels(macs=0.7).chip, PruneChannels(macs=0.7).brief) == ("−30 % MACs", "−30 %")
    assert (PruneChannels(latency=0.8).chip, PruneChannels(latency=0.8).brief) == ("−20 % latency", "−20 %")
