"""Low-rank factorisation keeps what the outputs depend on, and says what it leaves whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from support.nets import Net

from studio.base.progress import Progress
from studio.engine import execute, graph
from studio.engine.cost import macs
from studio.engine.dataset import Dataset, open_data
from studio.engine.graph import Model, Shapes
from studio.engine.layers import Listing, list_layers
from studio.engine.planning import plan_step
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.engine.techniques.conv_forms import cut, decompose, factor_shapes
from studio.engine.techniques.spectra import _of_weights
from studio.records.measure import DataSpec
from studio.records.steps import Factorize, Step

RNG = np.random.default_rng(3)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 10_000), st.data())
@settings(deadline=None, max_examples=40)
def test_without_data_the_error_is_that_of_eckart_and_young(
    rows: int, columns: int, seed: int, data: st.DataObject
) -> None:
    matrix = np.random.default_rng(seed).normal(size=(rows, columns))
    rank = data.draw(st.integers(1, min(rows, columns)))
    spectrum = _of_weights(matrix)
    left, right, offset = spectrum.factors(rank, matrix)
    assert offset is None
    error = np.linalg.norm(matrix - left @ right) ** 2 / np.linalg.norm(matrix) ** 2
    assert error == pytest.approx(spectrum.tail[rank], abs=1e-9)
    assert np.linalg.norm(right, axis=1) == pytest.approx(np.linalg.norm(left, axis=0))


def mlp(folder: Path) -> tuple[Listing, Dataset]:
    """16 → 24 → 24 → 5 on inputs that use only four directions, and a layer that nothing can factorise."""
    net = Net(seed=1)
    net.add("MatMul", ["x", net.weight("w1", 16, 24)], "h1")
    net.add("Add", ["h1", net.weight("b1", 24)], "a1")
    net.add("Relu", ["a1"], "r1")
    net.add("Gemm", ["r1", net.weight("w2", 24, 24)], "h2", transB=1)
    net.add("Relu", ["h2"], "r2")
    net.add("Gemm", ["r2", net.weight("w3", 24, 5), net.weight("b3", 5)], "y")
    proto = net.build({"x": (TensorProto.FLOAT, ["N", 16])}, {"y": (TensorProto.FLOAT, ["N", 5])})
    path = folder / "mlp.onnx"
    path.write_bytes(proto.SerializeToString())
    listing = list_layers(graph.load(path))
    x = (RNG.normal(size=(256, 4)) @ RNG.normal(size=(4, 16)) + 1).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    return listing, open_data(DataSpec(path=str(folder / "x.npz")), listing.inputs, dict(listing.input_sizes))


def error(listing: Listing, model: Model, data: Dataset) -> float:
    wanted = np.concatenate([o[0] for o in execute.outputs(listing.model, data.feeds(), Progress())])
    got = np.concatenate([o[0] for o in execute.outputs(model, data.feeds(), Progress())])
    return float(np.square(wanted - got).mean() / wanted.var())


def factorised(listing: Listing, data: Dataset | None, how: Factorize) -> tuple[Model, list[str]]:
    context = Context(calibration=data)
    plan = plan_step(listing, Step(settings=how), context)
    model = find(how).apply(listing, plan, context)
    assert list_layers(model, dict(listing.input_sizes)).cost == plan.after
    return model, [a.layer for a in plan.actions]


def test_with_data_it_keeps_the_directions_that_the_inputs_use(tmp_path: Path) -> None:
    listing, data = mlp(tmp_path)
    aware, treated = factorised(listing, data, Factorize(params=0.5, spread="even"))
    blind, _ = factorised(listing, data, Factorize(params=0.5, spread="even", data_aware=False))
    assert len(treated) == 3
    assert error(listing, aware, data) < 0.6 * error(listing, blind, data)


def test_a_sensitive_budget_is_kept_and_beats_an_even_one(tmp_path: Path) -> None:
    listing, data = mlp(tmp_path)
    sensitive, _ = factorised(listing, data, Factorize(params=0.6))
    even, _ = factorised(listing, data, Factorize(params=0.6, spread="even"))
    whole = sum(layer.cost.parameters for layer in listing.layers)
    assert list_layers(sensitive).cost.parameters <= 0.6 * whole + 64
    assert error(listing, sensitive, data) <= error(listing, even, data) * 1.05


def test_what_would_not_get_smaller_is_left_whole_with_a_reason(tmp_path: Path) -> None:
    listing, data = mlp(tmp_path)
    plan = plan_step(listing, Step(settings=Factorize(params=0.99)), Context(calibration=data))
    assert all("left whole" in r.reason for r in plan.refusals)
    assert plan.refusals
    assert plan.after.parameters <= plan.before.parameters


def test_names_of_the_models_own_values_survive(tmp_path: Path) -> None:
    listing, data = mlp(tmp_path)
    model, treated = factorised(listing, data, Factorize(params=0.4))
    kept = {v.name for n in graph.nodes(model) for v in n.outputs}
    assert kept >= {v.name for n in graph.nodes(listing.model) for v in n.outputs}
    names = [layer.name for layer in list_layers(model).layers]
    assert all(f"{name}_low" in names for name in treated)


@pytest.mark.parametrize("form", ["spatial", "depthwise", "tucker"])
@pytest.mark.parametrize("more", [{}, {"strides": [2, 2]}, {"dilations": [2, 2]}, {"auto_pad": "SAME_UPPER"}])
def test_another_form_at_full_rank_computes_the_same(
    tmp_path: Path, form: str, more: dict[str, object]
) -> None:
    from studio.engine.techniques.factorize import rebuild
    from studio.engine.techniques.spectra import spectra

    net = Net(seed=2)
    pads = {} if "auto_pad" in more else {"pads": [1, 2, 1, 2]}
    net.add("Conv", ["x", net.weight("w", 6, 4, 3, 3), net.weight("b", 6)], "y", **pads, **more)
    proto = net.build(
        {"x": (TensorProto.FLOAT, [2, 4, 9, 8])}, {"y": (TensorProto.FLOAT, ["N", 6, "H", "W"])}
    )
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    listing = list_layers(graph.load(tmp_path / "net.onnx"))
    name = listing.layers[0].name
    found = spectra(listing, dict(listing.nodes), None, Progress(), 0, 1, form)  # type: ignore[arg-type]
    model, shapes = rebuild(listing, {name: len(found[name].tail) - 1}, found, Context())
    x = {"x": RNG.normal(size=(2, 4, 9, 8)).astype(np.float32)}
    before, after = (execute.run(execute.session(m, threads=1), x)[0] for m in (listing.model, model))
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert list_layers(model).cost.macs == sum(a for a in (_macs(model, shapes)))


def _macs(model: Model, shapes: Shapes) -> list[int]:
    return [macs(node, shapes) or 0 for node in graph.nodes(model)]


def conv_pair(folder: Path, weight: np.ndarray) -> tuple[Listing, Dataset]:
    """A convolution with the given weights (out, in, 3, 3), stride 2, and a plain one after it."""
    out, channels = weight.shape[:2]
    net = Net(seed=2)
    net.add(
        "Conv", ["x", net.constant("w", weight), net.weight("b", out)], "c", pads=[1, 1, 1, 1], strides=[2, 2]
    )
    net.add("Relu", ["c"], "r")
    net.add("Conv", ["r", net.weight("w2", 12, out, 3, 3), net.weight("b2", 12)], "y", pads=[1, 1, 1, 1])
    proto = net.build(
        {"x": (TensorProto.FLOAT, ["N", channels, 8, 8])}, {"y": (TensorProto.FLOAT, ["N", 12, 4, 4])}
    )
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    listing = list_layers(graph.load(folder / "net.onnx"))
    np.savez(folder / "x.npz", x=RNG.normal(size=(24, channels, 8, 8)).astype(np.float32))
    return listing, open_data(DataSpec(path=str(folder / "x.npz")), listing.inputs, dict(listing.input_sizes))


@pytest.mark.parametrize("form", ["channels", "spatial", "depthwise", "tucker", "cp"])
@pytest.mark.parametrize("spread", ["sensitive", "even"])
def test_every_form_costs_what_was_planned_and_more_weights_answer_better(
    tmp_path: Path, form: str, spread: str
) -> None:
    listing, data = conv_pair(tmp_path, RNG.normal(size=(20, 16, 3, 3)).astype(np.float32))
    errors = []
    for share in (0.3, 0.8):
        how = Factorize(params=share, form=form, spread=spread)  # type: ignore[arg-type]
        model, treated = factorised(listing, data, how)
        assert treated
        errors.append(error(listing, model, data))
    assert errors[1] < errors[0] < 1.2


@pytest.mark.parametrize("form", ["tucker", "cp"])
def test_a_convolution_that_is_a_product_is_found_to_be_one(tmp_path: Path, form: str) -> None:
    parts = (RNG.normal(size=(20, 3)), RNG.normal(size=(16, 3)), RNG.normal(size=(9, 3)))
    weight = np.einsum("or,cr,tr->oct", *parts).reshape(20, 16, 3, 3).astype(np.float32)
    listing, data = conv_pair(tmp_path, weight)
    name = listing.layers[0].name
    context = Context(calibration=data)
    step = Step(settings=Factorize(params=0.3, form=form, spread="even"), layers=(name,))  # type: ignore[arg-type]
    model = find(step.settings).apply(listing, plan_step(listing, step, context), context)
    assert error(listing, model, data) < 1e-3
    assert len([n for n in graph.nodes(model) if n.op_type == "Conv"]) == 4


@pytest.mark.parametrize("form", ["spatial", "depthwise", "tucker", "cp"])
def test_a_convolution_that_hardly_matters_can_be_cut_to_rank_1(form: str) -> None:
    weight = RNG.normal(size=(40, 48, 3, 3))
    factors = decompose(form, weight, np.eye(40))  # type: ignore[arg-type]
    parts = cut(form, factors, weight.shape, 1)  # type: ignore[arg-type]
    assert [p.shape for p in parts] == list(factor_shapes(form, weight.shape, 1))  # type: ignore[arg-type]
