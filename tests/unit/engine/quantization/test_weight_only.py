"""Weights as few bits: what the file stores is what the runtime computes with, in every form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import nets

from studio.engine import execute, graph
from studio.engine.layers import float_weights, list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization import weight_only
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.engine.trainable import GraphModule
from studio.records.steps import QuantizeWeights, Step

SIZES = {"N": 4, "T": 12}
BITS = pytest.mark.parametrize("bits", [2, 3, 4, 8])
NETS = pytest.mark.parametrize("net", list(nets.NETS))


def treated(net: str, settings: QuantizeWeights, folder: Path) -> tuple[graph.Model, graph.Model]:
    listing = list_layers(graph.load(nets.write(net, folder)), SIZES)
    plan = plan_step(listing, Step(settings=settings), Context(threads=1))
    return listing.model, find(settings).apply(listing, plan, Context(threads=1))


def answer(model: graph.Model, net: str) -> np.ndarray:
    return execute.run(execute.session(model, threads=1), nets.feed(net, 4))[0]


@BITS
@NETS
@pytest.mark.parametrize("symmetric", [True, False])
def test_fewer_bits_take_less_space_and_the_plan_knows_how_much(
    net: str, bits: int, symmetric: bool, tmp_path: Path
) -> None:
    listing = list_layers(graph.load(nets.write(net, tmp_path)), SIZES)
    settings = QuantizeWeights(bits=bits, block=16, symmetric=symmetric)  # type: ignore[arg-type]
    plan = plan_step(listing, Step(settings=settings), Context(threads=1))
    model = find(settings).apply(listing, plan, Context(threads=1))
    graph.save(model, tmp_path / "out.onnx")
    counted = list_layers(graph.load(tmp_path / "out.onnx"), SIZES)
    assert counted.cost == plan.after
    words = {counted.nodes[a.layer].record.precision for a in plan.actions}
    assert f"int{bits} weights" in words


@NETS
def test_more_bits_answer_better(net: str, tmp_path: Path) -> None:
    wanted = answer(treated(net, QuantizeWeights(bits=8, block=16), tmp_path)[0], net)
    noise = [
        float(
            np.square(
                answer(treated(net, QuantizeWeights(bits=b, block=16), tmp_path)[1], net) - wanted
            ).sum()
        )  # type: ignore[arg-type]
        for b in (2, 4, 8)
    ]
    assert noise == sorted(noise, reverse=True)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_torch_and_the_runtime_read_packed_weights_alike(bits: int, symmetric: bool, tmp_path: Path) -> None:
    settings = QuantizeWeights(bits=bits, block=16, symmetric=symmetric)  # type: ignore[arg-type]
    _, model = treated("transformer", settings, tmp_path)
    for node in model.graph:  # products in float, as torch computes them
        if "accuracy_level" in node.attributes:
            del node.attributes["accuracy_level"]
    feed = nets.feed("transformer", 4)
    mine = next(iter(GraphModule(model).numpy(feed).values()))
    theirs = execute.run(execute.session(model, threads=1), feed)[0]
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed_products_can_be_shown_as_floats(bits: int, tmp_path: Path) -> None:
    original, model = treated("transformer", QuantizeWeights(bits=bits, block=16), tmp_path)  # type: ignore[arg-type]
    before, after = list_layers(original, SIZES), list_layers(model, SIZES)
    packed = [n for n, layer in after.nodes.items() if layer.node.op_type == "MatMulNBits"]
    assert packed
    for name in packed:
        old, new = float_weights(before.nodes[name]), float_weights(after.nodes[name])
        assert old is not None
        assert new is not None
        assert old.shape in {new.shape, new.T.shape}
        share = np.linalg.norm(new if old.shape == new.shape else new.T) / np.linalg.norm(old)
        assert 0.5 < share < 1.5


@BITS
def test_unpacked_weights_run_as_float_products(bits: int, tmp_path: Path) -> None:
    settings = QuantizeWeights(bits=bits, block=16, symmetric=False, form="unpacked")  # type: ignore[arg-type]
    original, model = treated("transformer", settings, tmp_path)
    assert "MatMulNBits" not in {n.op_type for n in model.graph}
    packed = treated("transformer", QuantizeWeights(bits=bits, block=16, symmetric=False), tmp_path)[1]  # type: ignore[arg-type]
    wanted, mine, theirs = (answer(m, "transformer") for m in (original, model, packed))
    assert np.square(mine - wanted).sum() < 2 * np.square(theirs - wanted).sum() + 1e-3


@pytest.mark.parametrize(("bits", "form"), [(3, "matmulnbits"), (3, "qdq"), (2, "qdq")])
def test_a_form_that_nothing_runs_is_refused_in_words(bits: int, form: str, tmp_path: Path) -> None:
    listing = list_layers(graph.load(nets.write("transformer", tmp_path)), SIZES)
    settings = QuantizeWeights(bits=bits, form=form)  # type: ignore[arg-type]
    plan = plan_step(listing, Step(settings=settings), Context(threads=1))
    products = [n for n, layer in listing.nodes.items() if layer.node.op_type == "MatMul"]
    reasons = {r.layer: r for r in plan.refusals}
    assert all(f"{bits} bits" in reasons[name].reason and reasons[name].hint for name in products)


def test_without_data_the_rounding_suits_random_tokens_and_the_plan_says_so(tmp_path: Path) -> None:
    model = graph.load(nets.write("transformer", tmp_path))
    listing = list_layers(model, SIZES)
    settings = QuantizeWeights(bits=3, block=16)
    plan = plan_step(listing, Step(settings=settings), Context(threads=1))
    assert any("random tokens" in note for note in plan.notes)
    made_up = find(settings).apply(listing, plan, Context(threads=1))
    again = find(settings).apply(listing, plan, Context(threads=1))
    assert graph.to_bytes(made_up) == graph.to_bytes(again)
    plain = weight_only.Writer(
        model, settings, [weight_only.Target(a.layer, listing.nodes[a.layer].record.key, "") for a in plan.actions], {},
        weight_only.layer_constants(listing),
    )  # fmt: skip
    for action in plan.actions:
        plain.write(weight_only.Target(action.layer, listing.nodes[action.layer].record.key, ""))
    wanted = answer(model, "transformer")
    noises = [np.square(answer(m, "transformer") - wanted).sum() for m in (made_up, plain.finish())]
    assert noises[0] < noises[1]
    pictures = list_layers(graph.load(nets.write("cnn", tmp_path)), SIZES)
    notes = plan_step(pictures, Step(settings=settings), Context(threads=1)).notes
    assert not any("random tokens" in note for note in notes)
