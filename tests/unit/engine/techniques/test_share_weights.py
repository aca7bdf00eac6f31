"""Weight sharing: the values lie where the weights are, the file is as small as promised, tied layers go together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import nets

from studio.engine import execute, graph
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization.grids import symmetric
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.engine.techniques.share_weights import shared
from studio.records.steps import ShareWeights, Step


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 4, 8]), st.integers(1, 3000))
def test_every_weight_becomes_the_nearest_of_the_shared_values(seed: int, bits: int, size: int) -> None:
    weights = np.random.default_rng(seed).standard_t(4, size).astype(np.float32)
    codes, book = shared(weights, bits)
    assert len(book) == 2**bits
    assert codes.max() < 2**bits
    nearest = np.abs(weights[:, None].astype(np.float64) - book).min(1)
    np.testing.assert_allclose(np.abs(weights - book[codes]), nearest, atol=1e-6)


def test_values_that_are_few_are_kept_exactly() -> None:
    weights = np.random.default_rng(0).choice(np.linspace(-2, 3, 13).astype(np.float32), (40, 7))
    codes, book = shared(weights, 4)
    np.testing.assert_array_equal(book[codes], weights)


def test_shared_values_are_nearer_than_even_ones() -> None:
    weights = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    codes, book = shared(weights, 4)
    even = symmetric(weights, None, 4).snap(weights)
    assert np.square(weights - book[codes]).mean() < 0.6 * np.square(weights - even).mean()


def test_what_is_fed_more_is_kept_better() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(50, 40))
    weighing = np.broadcast_to(rng.exponential(size=40) ** 3, weights.shape)
    plain, weighed = (book[codes] for codes, book in (shared(weights, 4), shared(weights, 4, weighing)))
    assert (weighing * np.square(weights - weighed)).sum() < (weighing * np.square(weights - plain)).sum()


@pytest.mark.parametrize(("bits", "times"), [(4, 7.5), (8, 3.5)])
def test_the_file_shrinks_and_the_answers_stay_near(tmp_path: Path, bits: int, times: float) -> None:
    listing = list_layers(graph.load(nets.write("transformer", tmp_path)), {"N": 4, "T": 12})
    name = max(listing.layers, key=lambda layer: layer.cost.bytes).name
    step = Step(settings=ShareWeights(bits=bits), layers=(name,))
    plan = plan_step(listing, step, Context())
    model = find(step.settings).apply(listing, plan, Context())
    held = listing.nodes[name].weight.const_value
    assert held is not None
    assert plan.before.bytes - plan.after.bytes == pytest.approx(
        held.nbytes - held.nbytes * bits / 32 - 4 * 2**bits
    )
    assert held.nbytes / (held.nbytes * bits / 32 + 4 * 2**bits) > 0.5 * times
    feed = nets.feed("transformer")
    wanted, got = (execute.run(execute.session(m, threads=1), feed)[0] for m in (listing.model, model))
    assert np.square(got - wanted).mean() < 0.05 * np.var(wanted)


def test_small_layers_are_refused_in_words(tmp_path: Path) -> None:
    listing = list_layers(graph.load(nets.write("cnn", tmp_path)))
    plan = plan_step(listing, Step(settings=ShareWeights(bits=8)), Context())
    assert any("a book of 256 values would take as much" in refusal.reason for refusal in plan.refusals)
