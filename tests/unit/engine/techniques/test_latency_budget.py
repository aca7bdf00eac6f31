"""A latency budget is kept in the way that hurts least."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from studio.engine.dataset import open_for
from studio.engine.graph import load
from studio.engine.groups.grouping import Grouping
from studio.engine.layers import Listing, list_layers
from studio.engine.pruning import staircase
from studio.engine.pruning.allocation import by_ratio
from studio.engine.pruning.staircase import Stair, Staircase
from studio.engine.techniques import latency_budget
from studio.engine.techniques.channel_orders import grouping_of, judge_of, limits_of, orders_of
from studio.engine.techniques.contract import Context
from studio.engine.techniques.latency_budget import within_time
from studio.records.measure import DataSpec
from studio.records.steps import PruneChannels

NETS = Path(__file__).parents[3] / "data" / "nets"
SETTINGS = PruneChannels(latency=0.6, round_to=1)


@pytest.fixture
def listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Listing:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return list_layers(load(NETS / "residual.torchscript.onnx"), {"N": 2})


@pytest.fixture
def context(listing: Listing, tmp_path: Path) -> Context:
    shapes = {v.name: [16, *[int(d) for d in listing.shapes.of(v)[1:]]] for v in listing.model.graph.inputs}
    rng = np.random.default_rng(0)
    file = tmp_path / "data.npz"
    np.savez(file, **{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    data = open_for(listing.model, DataSpec(path=str(file), batch=8), dict(listing.input_sizes))
    return Context(calibration=data, threads=1)


def on_a_steady_machine(monkeypatch: pytest.MonkeyPatch, grouping: Grouping, names: list[str]) -> list[float]:
    """Time follows the mean share of the channels; what was timed is listed."""
    took: list[float] = []

    def timed(
        _listing: Listing, _grouping: Grouping, kept: Mapping[str, int], *_: object
    ) -> tuple[float, bool]:
        took.append(float(np.mean([kept[g.record.name] / g.record.width for g in grouping.groups])))
        return took[-1], False

    def stairs(_l: Listing, _g: Grouping, widths: Mapping[float, dict[str, int]], *_: object) -> Staircase:
        return Staircase(
            stairs=tuple(
                Stair(kept=dict(kept), layers=dict.fromkeys(names, share), other=0.0)
                for share, kept in widths.items()
            )
        )

    monkeypatch.setattr(staircase, "timed", timed)
    monkeypatch.setattr(staircase, "measure", stairs)
    return took


def test_of_the_ways_that_keep_the_budget_the_one_that_hurts_least_is_taken(
    listing: Listing, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouping = grouping_of(listing)
    on_a_steady_machine(monkeypatch, grouping, [layer.name for layer in listing.layers])
    limits = limits_of(grouping, SETTINGS, {g.record.name: 0 for g in grouping.groups})
    orders = orders_of(listing, grouping, SETTINGS, limits, context)

    def unevenness(kept: Mapping[str, int]) -> float:
        return 1 + float(np.ptp([kept[g.record.name] / g.record.width for g in grouping.groups]))

    monkeypatch.setattr(latency_budget, "judge_of", lambda *_: unevenness)
    kept, reached = within_time(listing, grouping, grouping.groups, orders, SETTINGS, context)
    shares = [kept[g.record.name] / g.record.width for g in grouping.groups]
    assert np.ptp(shares) < 0.15
    assert np.mean(shares) <= 0.61
    assert reached == pytest.approx(0.6)
    monkeypatch.setattr(staircase, "timed", lambda *_: pytest.fail("timed again"))
    assert within_time(listing, grouping, grouping.groups, orders, SETTINGS, context)[0] == kept


def test_a_way_that_seems_much_worse_is_not_timed(
    listing: Listing, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouping = grouping_of(listing)
    took = on_a_steady_machine(monkeypatch, grouping, [layer.name for layer in listing.layers])
    limits = limits_of(grouping, SETTINGS, {g.record.name: 0 for g in grouping.groups})
    orders = orders_of(listing, grouping, SETTINGS, limits, context)
    judged: list[Mapping[str, int]] = []

    def first_is_best(kept: Mapping[str, int]) -> float:
        judged.append(kept)
        return 1.0 if len(judged) in (1, 4) else 100.0

    monkeypatch.setattr(latency_budget, "judge_of", lambda *_: first_is_best)
    within_time(listing, grouping, grouping.groups, orders, SETTINGS, context)
    assert len(judged) == 4  # three ways at a guess, and the one that was aimed
    assert 0 < len(took) <= 5


@pytest.mark.parametrize("taught", [True, False])
def test_narrower_ways_are_judged_to_hurt_more(listing: Listing, context: Context, taught: bool) -> None:
    context = context if taught else Context(threads=1)
    grouping = grouping_of(listing)
    limits = {g.record.name: g.record.width for g in grouping.groups}
    orders = orders_of(listing, grouping, PruneChannels(), limits, context)
    error = judge_of(listing, grouping, orders, context)
    whole, most, half = (
        error(by_ratio(grouping, grouping.groups, ratio, 1, 1)) for ratio in (0.0, 0.25, 0.75)
    )
    assert whole < 1e-6
    assert whole < most < half
