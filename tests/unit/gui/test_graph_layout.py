"""Where the nodes of a large graph go."""

from __future__ import annotations

import random
from collections.abc import Generator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from studio.gui.graph_layout import LANE, STEP, Laid, layered, ranks


def laid(count: int, edges: list[tuple[int, int]], aspect: float = 3.0) -> Laid:
    def collect() -> Generator[None, None, None]:
        found.append((yield from layered(count, edges, aspect)))

    found: list[Laid] = []
    for _ in collect():
        pass
    return found[0]


def test_a_layer_follows_all_that_it_needs() -> None:
    assert ranks(4, [(0, 1), (1, 2), (0, 2), (2, 3)]) == [0, 1, 2, 3]


def test_a_constant_stands_right_before_its_user() -> None:
    assert ranks(5, [(0, 1), (1, 2), (2, 3), (4, 3)])[4] == 2


def test_a_line_of_constants_stands_right_before_its_user() -> None:
    assert ranks(7, [(0, 1), (1, 2), (2, 3), (3, 4), (5, 6), (6, 4)])[5:] == [2, 3]


def test_cycles_and_loops_end() -> None:
    assert len(ranks(3, [(0, 1), (1, 0), (1, 2), (2, 2)])) == 3
    assert len(laid(3, [(0, 1), (1, 0), (1, 2), (2, 2)]).places) == 3


def test_nothing_has_no_places() -> None:
    assert laid(0, []).places == ()


def test_a_short_graph_stays_in_one_row() -> None:
    found = laid(6, [(i, i + 1) for i in range(5)])
    assert found.rows == 1
    assert [x for x, _ in found.places] == [i * STEP for i in range(6)]


def test_a_long_chain_is_folded_to_the_shape_of_the_room() -> None:
    found = laid(2000, [(i, i + 1) for i in range(1999)])
    assert found.rows > 3
    width = max(x for x, _ in found.places) - min(x for x, _ in found.places)
    height = max(y for _, y in found.places) - min(y for _, y in found.places)
    assert 1 < width / height < 9


def test_graphs_of_any_shape_leave_the_process_alive() -> None:
    """The order within layers comes from native code that once read past its memory; not every time, so often."""
    rng = random.Random(0)
    for _ in range(300):
        count = rng.randint(2, 60)
        edges = [tuple(sorted(rng.sample(range(count), 2))) for _ in range(rng.randint(0, 120))]
        assert len(laid(count, edges).places) == count


@given(st.integers(1, 60), st.data())
def test_no_two_nodes_share_a_place(count: int, data: st.DataObject) -> None:
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda e: e[0] < e[1])
    edges = data.draw(st.lists(pairs, max_size=120)) if count > 1 else []
    places = laid(count, edges).places
    assert len(places) == count
    ordered = sorted(places)
    for (x, y), (x2, y2) in pairwise(ordered):
        assert x2 - x > 1 or y2 - y >= LANE * 0.99
