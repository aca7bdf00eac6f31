"""What holds for the channel groups of every net."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.engine.graph import load
from studio.engine.groups.atoms import Atoms
from studio.engine.groups.cut import cut
from studio.engine.groups.grouping import Grouping, find_groups
from studio.engine.groups.trace import trace
from studio.engine.layers import list_layers
from studio.engine.pruning.allocation import rounded
from studio.engine.pruning.criteria import by_weights
from studio.engine.pruning.elimination import eliminate
from studio.engine.pruning.linear import Linear
from studio.engine.pruning.moments import Statistics
from studio.engine.pruning.orders import Reader

FILES = sorted((Path(__file__).parents[1] / "data" / "nets").glob("*.torchscript.onnx"))


@cache
def grouped(path: Path) -> Grouping:
    listing = list_layers(load(path), {"N": 2})
    return find_groups(trace(listing.model, listing.shapes), listing)


@given(st.sampled_from(FILES))
@settings(deadline=None, max_examples=13)
def test_no_channel_belongs_to_two_groups_and_every_free_one_to_one(path):
    grouping = grouped(path)
    atoms = np.concatenate([group.atoms for group in grouping.groups])
    assert len(atoms) == len(set(atoms.tolist()))
    names = [group.record.name for group in grouping.groups]
    assert len(names) == len(set(names))
    for group in grouping.groups:
        assert len(group.atoms) == group.record.width
        assert all(member.channels % group.record.width == 0 for member in group.record.members)


@given(st.sampled_from(FILES), st.data())
@settings(deadline=None, max_examples=40)
def test_parameters_after_a_cut_are_what_the_groups_say(path, data):
    grouping = grouped(path)
    removed = {
        group.record.name: np.arange(group.record.width) >= data.draw(st.integers(1, group.record.width))
        for group in grouping.groups
    }
    gone = grouping.gone(removed)
    model = cut(grouping.trace, gone)
    for held in grouping.trace.constants.values():
        value = model.graph.initializers.get(held.value.name or "")
        if value is None or value.const_value is None:
            continue
        for size, axis in zip(value.const_value.shape.numpy(), held.labels, strict=True):
            assert axis is None or size == grouping.kept(gone, axis).sum()


@given(st.sampled_from(FILES), st.sampled_from(["l1", "l2", "fpgm", "random"]), st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_pruning_more_removes_a_superset(path, criterion, seed):
    grouping = grouped(path)
    for name, order in by_weights(grouping, criterion, seed).items():
        width = next(g.record.width for g in grouping.groups if g.record.name == name)
        assert sorted(order.channels.tolist()) == list(range(width))
        assert (np.diff(order.error) >= 0).all()


@given(st.integers(2, 12), st.integers(1, 3), st.integers(0, 20))
@settings(deadline=None, max_examples=40)
def test_elimination_orders_all_channels_with_errors_that_grow(width, taps, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 60, width * taps))
    statistics = Statistics(np.array([60, 60]), x.sum(axis=1)[:, None], (x.transpose(0, 2, 1) @ x)[:, None])
    columns = np.arange(width * taps).reshape(taps, width).T
    w = rng.standard_normal((5, width * taps))
    view = Linear(kind="matrix", shape=w.T.shape, transposed=True)
    reader = Reader(ir.node("MatMul", []), view, w, statistics, centred=False, columns=columns)
    order = eliminate([reader], width, 0.1)
    assert sorted(order.channels.tolist()) == list(range(width))
    assert (np.diff(order.error) >= 0).all()


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0, 1, 8, 16]), st.integers(1, 20))
def test_widths_round_up_within_their_bounds(width, share, unit, minimum):
    kept = rounded(width, width * share, unit, minimum, "plain")
    assert 1 <= kept <= width
    assert kept >= min(width, minimum)
    assert kept >= width * share - 1e-6
    if unit > 1 and kept < width:
        assert kept % unit == 0


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20),
    st.sets(st.integers(0, 9), max_size=3),
)
def test_unified_atoms_share_their_fate_and_fixed_ones_stay(pairs, fixed):
    atoms = Atoms()
    axis = atoms.fresh(10)
    for a, b in pairs:
        atoms.unify(axis[[a]], axis[[b]])
    for a in fixed:
        atoms.fix(axis[[a]], "wanted")
    parts = atoms.parts(axis)[:, 0]
    for a, b in pairs:
        assert parts[a] == parts[b]
    for a in fixed:
        assert parts[a] == 0
        assert atoms.reason(int(axis[a])) == "wanted"


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 30))
def test_a_product_goes_exactly_when_one_of_its_parts_does(rows, columns, seed):
    rng = np.random.default_rng(seed)
    atoms = Atoms()
    merged, outer, inner = atoms.fresh(rows * columns), atoms.fresh(rows), atoms.fresh(columns)
    pairs = np.stack([np.repeat(outer, columns), np.tile(inner, rows)], axis=1)
    atoms.unify(merged, atoms.product(pairs))
    gone = np.zeros(atoms.count, bool)
    gone[rng.choice(outer)] = True
    gone[rng.choice(inner)] = True
    expected = gone[pairs].any(axis=1)
    assert np.array_equal(gone[atoms.parts(merged)].any(axis=1), expected)
