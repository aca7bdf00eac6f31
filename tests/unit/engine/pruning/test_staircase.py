"""What was timed is kept, and a model's time at other widths follows from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from studio.base.progress import Progress
from studio.engine.dataset import open_for
from studio.engine.graph import load
from studio.engine.layers import Listing, list_layers
from studio.engine.pruning import staircase
from studio.engine.pruning.allocation import Costs, by_ratio
from studio.engine.pruning.staircase import Stair, Staircase
from studio.engine.techniques.channel_orders import grouping_of
from studio.records.measure import DataSpec

NETS = Path(__file__).parents[3] / "data" / "nets"


@pytest.fixture
def listing() -> Listing:
    return list_layers(load(NETS / "residual.torchscript.onnx"), {"N": 2})


def test_a_narrower_draft_never_takes_longer() -> None:
    times = (4.0, 5.0, 3.0)
    found = Staircase(stairs=tuple(Stair(kept={}, layers={"a": ms, "b": 1.0}, other=ms) for ms in times))
    assert found.curve("a") == (4.0, 4.0, 3.0)
    assert found.rest({"a"}) == (5.0, 5.0, 4.0)
    assert found.curve("unknown") == (0.0, 0.0, 0.0)


def test_a_draft_costs_what_was_measured_and_widths_between_lie_between(listing: Listing) -> None:
    grouping = grouping_of(listing)
    names = [layer.name for layer in listing.layers]
    drafts = {share: by_ratio(grouping, grouping.groups, 1 - share, 1, 1) for share in (1.0, 0.5)}
    known = Staircase(
        stairs=tuple(
            Stair(kept=kept, layers=dict.fromkeys(names, 2 * share), other=share)
            for share, kept in drafts.items()
        )
    )
    costs = Costs(grouping, "latency", known)
    totals = [
        costs.total([kept[g.record.name] / g.record.width for g in grouping.groups])
        for kept in (drafts[1.0], by_ratio(grouping, grouping.groups, 0.25, 1, 1), drafts[0.5])
    ]
    assert totals[0] == pytest.approx(2 * len(names) + 1)
    assert totals[2] == pytest.approx(0.5 * totals[0])
    assert totals[2] < totals[1] < totals[0]


def test_every_layer_is_timed_in_every_draft_and_found_again(listing: Listing, tmp_path: Path) -> None:
    grouping = grouping_of(listing)
    feed = open_for(listing.model, DataSpec(kind="random", limit=1), dict(listing.input_sizes)).first()
    widths = {share: by_ratio(grouping, grouping.groups, 1 - share, 1, 1) for share in (1.0, 0.5)}
    found = staircase.measure(listing, grouping, widths, feed, 1, Progress())
    assert [stair.kept for stair in found.stairs] == list(widths.values())
    assert all(ms > 0 for stair in found.stairs for ms in stair.layers.values())
    file = tmp_path / "deep" / "file"
    assert staircase.known(file) is None
    staircase.keep(file, found)
    assert staircase.known(file) == found
    file.write_bytes(b"{")
    assert staircase.known(file) is None


def test_other_sizes_threads_and_structures_have_times_of_their_own(listing: Listing) -> None:
    feed = {"x": np.zeros((1, 3, 8, 8), "f4")}
    other = list_layers(load(NETS / "split.torchscript.onnx"), {"N": 2})
    places = {
        staircase.place(listing, feed, 1),
        staircase.place(listing, feed, 2),
        staircase.place(listing, {"x": feed["x"][..., :4]}, 1),
        staircase.place(other, feed, 1),
    }
    assert len(places) == 4
