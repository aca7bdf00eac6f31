"""Cut models equal their oracles exactly, for nets of every kind from both torch exporters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from studio.engine.execute import run, session
from studio.engine.graph import load, to_bytes
from studio.engine.groups.cut import cut_twins
from studio.engine.groups.grouping import Grouping, find_groups
from studio.engine.groups.trace import trace
from studio.engine.layers import list_layers
from studio.engine.pruning.oracle import verify

NETS = Path(__file__).parents[3] / "data" / "nets"
FILES = sorted(NETS.glob("*.onnx"))
KINDS = {"whole": ("plain", "outer"), "within": ("plain", "inner"), "both": ("plain", "outer", "inner")}


def feed_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(NETS / "inputs.npz") as inputs:
        return {"x": inputs[path.name.split(".")[0]]}


def grouped(path: Path) -> Grouping:
    listing = list_layers(load(path), {"N": 2})
    return find_groups(trace(listing.model, listing.shapes), listing)


def removal(grouping: Grouping, ratio: float, kinds: tuple[str, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    removed = {}
    for group in grouping.groups:
        if group.kind in kinds:
            mask = np.zeros(group.record.width, bool)
            mask[rng.permutation(group.record.width)[: int(ratio * group.record.width)]] = True
            removed[group.record.name] = mask
    return grouping.gone(removed)


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_cut_model_equals_the_original_whose_sums_skip_what_is_gone(path, ratio, kinds):
    grouping = grouped(path)
    gone = removal(grouping, ratio, KINDS[kinds])
    twins = cut_twins(grouping.trace, gone)
    checked = verify(grouping.trace, gone, twins, feed_of(path), threads=1)
    assert gone.any()
    assert checked.live > 0
    assert checked.error <= 1e-5
    onnx.checker.check_model(onnx.load_from_string(to_bytes(twins.copy)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_removing_nothing_changes_nothing(path):
    grouping = grouped(path)
    kept = cut_twins(grouping.trace, np.zeros(grouping.trace.atoms.count, bool)).copy
    feed = feed_of(path)
    before = run(session(grouping.trace.model, threads=1), feed)
    assert all(np.array_equal(a, b) for a, b in zip(before, run(session(kept, threads=1), feed), strict=True))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_narrower_model_runs_at_another_batch_size_where_the_batch_is_free(path):
    if "torchscript" not in path.name:
        pytest.skip("this exporter fixed the batch size")
    grouping = grouped(path)
    gone = removal(grouping, 0.5, KINDS["whole"])
    feed = {name: array[:1] for name, array in feed_of(path).items()}
    cut = cut_twins(grouping.trace, gone)
    assert verify(grouping.trace, gone, cut, feed, threads=1).error <= 1e-5


EXPECTED = {
    "residual": {"plain": [16, 24]},
    "vit": {
        "plain": [64],
        "outer": [4],
        "inner": [8],
    },  # one tensor holds Q, K and V: their dimensions are tied
    "gpt": {"plain": [64], "outer": [4], "inner": [8, 8]},
    "glu": {"plain": [16, 24, 40]},
    "grouped": {"outer": [8], "inner": [4, 6]},
    "lstm": {"plain": [10, 12, 16]},
    "group_norm": {"plain": [6]},  # whole norm groups
}


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", EXPECTED)
def test_heads_dimensions_hidden_units_and_halves_fall_out_of_the_graph(name, exporter):
    grouping = grouped(NETS / f"{name}.{exporter}.onnx")
    found: dict[str, list[int]] = {}
    for group in grouping.groups:
        found.setdefault(group.kind, []).append(group.record.width)
    assert {kind: sorted(widths) for kind, widths in found.items() if kind in EXPECTED[name]} == EXPECTED[
        name
    ]


def test_what_cannot_be_cut_says_why():
    grouping = grouped(NETS / "gpt.torchscript.onnx")
    reasons = {group.name: group.blocked for group in grouping.blocked}
    assert any("normalized" in reason for reason in reasons.values())
    assert any("output" in reason for reason in reasons.values())
    assert all(reasons.values())
