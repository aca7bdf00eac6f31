"""Rounding layer after layer: what is made up for, what is left alone, what is made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from support import nets

from studio.engine import execute, graph
from studio.engine.dataset import open_data
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization.invented import invent, table_inputs
from studio.engine.quantization.sequential import Sums, corrected
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import QuantizeWeights, Step

SIZES = {"N": 4, "T": 12}


def noise(net: str, settings: QuantizeWeights, folder: Path) -> float:
    """Squared output error on samples that were not calibrated on."""
    listing = list_layers(graph.load(nets.write(net, folder)), SIZES)
    np.savez(folder / "data.npz", **nets.feed(net, 32, 1))
    data = open_data(DataSpec(path=str(folder / "data.npz")), listing.inputs, SIZES)
    context = Context(calibration=data, threads=1)
    plan = plan_step(listing, Step(settings=settings), context)
    result = find(settings).apply(listing, plan, context)
    feed = nets.feed(net, 32, 2)
    wanted, given = (execute.run(execute.session(m, threads=1), feed)[0] for m in (listing.model, result))
    return float(np.square(wanted - given).sum())


@pytest.mark.parametrize("net", ["cnn", "transformer"])
def test_layers_in_order_answer_better_than_each_for_itself(net: str, tmp_path: Path) -> None:
    careful = noise(net, QuantizeWeights(bits=3, block=16, preset="careful"), tmp_path)
    assert careful < noise(net, QuantizeWeights(bits=3, block=16), tmp_path)


def test_one_sample_alone_is_enough_to_be_careful(tmp_path: Path) -> None:
    listing = list_layers(graph.load(nets.write("cnn", tmp_path)), SIZES)
    np.savez(tmp_path / "one.npz", **nets.feed("cnn", 1))
    context = Context(
        calibration=open_data(DataSpec(path=str(tmp_path / "one.npz")), listing.inputs, SIZES), threads=1
    )
    settings = QuantizeWeights(bits=4, block=16, preset="careful")
    plan = plan_step(listing, Step(settings=settings), context)
    result = find(settings).apply(listing, plan, context)
    answer = execute.run(execute.session(result, threads=1), nets.feed("cnn", 4))[0]
    assert np.isfinite(answer).all()


def halves(rows: list[tuple[np.ndarray, np.ndarray]]) -> list[Sums]:
    """Of (original, approximate) inputs, a half each."""
    return [
        Sums((seen.T @ seen)[None].astype(np.float32), ((x - seen).T @ seen)[None].astype(np.float32))
        for x, seen in rows
    ]


def test_inputs_that_have_not_changed_leave_the_weights_alone() -> None:
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=(64, 8))
    assert np.array_equal(corrected(w, halves([(x[:32], x[:32]), (x[32:], x[32:])])), w)


def test_an_error_that_turns_round_is_not_fitted() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(5, 8)).astype(np.float32)
    error = 0.1 * rng.normal(size=(8, 8))
    parts = [rng.normal(size=(100, 8)) for _ in range(2)]
    rows = [(x, x + sign * x @ error) for x, sign in zip(parts, (1, -1), strict=True)]
    assert np.array_equal(corrected(w, halves(rows)), w)


def test_an_error_that_comes_again_is_made_up_for() -> None:
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=(400, 8))
    mixed = x @ (np.eye(8) + 0.2 * rng.normal(size=(8, 8)))
    better = corrected(w, halves([(x[:200], mixed[:200]), (x[200:], mixed[200:])]))
    assert np.square(x @ w.T - mixed @ better.T).sum() < 0.1 * np.square(x @ w.T - mixed @ w.T).sum()


def reader(folder: Path) -> graph.Model:
    """Tokens that are row numbers of a table of 50 rows."""
    net = nets.Net()
    net.add("Gather", [net.weight("table", 50, 4), "tokens"], "y")
    built = net.build({"tokens": (TensorProto.INT64, ["N", 6])}, {"y": (TensorProto.FLOAT, ["N", 6, 4])})
    onnx.save(built, folder / "reader.onnx")
    return graph.load(folder / "reader.onnx")


def test_made_up_texts_keep_what_every_text_has(tmp_path: Path) -> None:
    model = reader(tmp_path)
    assert table_inputs(model) == {"tokens": 50}
    tokens = np.array([[1, 7, 9, 2, 0, 0], [1, 8, 11, 12, 2, 0], [1, 13, 2, 0, 0, 0]])
    made = invent(model, [{"tokens": tokens}], 2, 0)
    assert len(made) == 2
    for feed in made:
        for common in (0, 1, 2):
            assert (feed["tokens"][tokens == common] == common).all()
        assert feed["tokens"].dtype == tokens.dtype
        assert feed["tokens"].min() >= 0
        assert feed["tokens"].max() < 50
    assert not np.array_equal(made[0]["tokens"], made[1]["tokens"])


def test_nothing_is_made_up_where_all_texts_are_alike(tmp_path: Path) -> None:
    tokens = np.tile(np.array([[1, 7, 9, 2, 0, 0]]), (3, 1))
    assert invent(reader(tmp_path), [{"tokens": tokens}], 2, 0) == []
