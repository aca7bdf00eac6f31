"""Sizes that are known beforehand are written down; what inputs decide stays computed; answers stay the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import (
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor,
    make_tensor_value_info,
)
from onnx.numpy_helper import from_array

from studio.engine import execute
from studio.engine.graph import Model, constant, load
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step, ready
from studio.engine.techniques.contract import Context
from studio.engine.techniques.prune_channels import ChannelPruning
from studio.engine.tidy import fold_sizes, tidy
from studio.records.steps import AnySettings, PruneChannels, QuantizeDynamic, Step

NETS = Path(__file__).parents[2] / "data" / "nets"
F, I = TensorProto.FLOAT, TensorProto.INT64


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    tmp_path: Path,
    opset: int = 17,
    **stored: list[int] | np.ndarray,
) -> Model:
    """A model from `inputs` to 'y', with stored integers and weights."""
    graph = make_graph(
        nodes,
        "sizes",
        [make_tensor_value_info(name, F, dims) for name, dims in inputs.items()],
        [make_tensor_value_info("y", F, None)],
        [from_array(np.asarray(v), name) for name, v in stored.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", opset)], ir_version=8), path)
    return load(path)


def target(model: Model) -> list[int] | None:
    """The constant sizes of the only Reshape."""
    reshape = next(n for n in model.graph if n.op_type == "Reshape")
    tensor = constant(reshape.inputs[1])
    return None if tensor is None else tensor.numpy().tolist()


def size_of(value: str, axis: int) -> list[onnx.NodeProto]:
    """Nodes that compute '{value}{axis}', the length of an axis as a vector of one."""
    where = make_node("Constant", [], [f"{value}{axis}_i"], value_ints=[axis])
    return [
        make_node("Shape", [value], [f"{value}{axis}_s"]), where,
        make_node("Gather", [f"{value}{axis}_s", f"{value}{axis}_i"], [f"{value}{axis}"]),
    ]  # fmt: skip


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("net", ["vit", "gpt", "glu", "channel_shuffle", "pixel_shuffle"])
def test_a_tidied_network_answers_the_same_at_every_batch_size_and_keeps_its_layers(
    net: str, exporter: str
) -> None:
    listing = list_layers(load(NETS / f"{net}.{exporter}.onnx"))
    tidied = tidy(listing)
    assert [layer.name for layer in tidied.layers] == [layer.name for layer in listing.layers]
    assert tidied.cost.macs == listing.cost.macs
    assert len(list(tidied.model.graph)) <= len(list(listing.model.graph))
    with np.load(NETS / "inputs.npz") as stored:
        sample = np.asarray(stored[net])
    given = listing.inputs[0]
    fixed = (given.shape or ("N",))[0]
    for batch in (fixed,) if isinstance(fixed, int) else (1, 3):
        feed = {given.name: np.repeat(sample[:1], batch, axis=0)}
        wanted = execute.run(execute.session(listing.model, threads=1, optimize="off"), feed)
        found = execute.run(execute.session(tidied.model, threads=1, optimize="off"), feed)
        for a, b in zip(wanted, found, strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-6 * float(np.abs(a).max()))


def test_an_exporters_attention_needs_no_shape_nodes() -> None:
    tidied = tidy(list_layers(load(NETS / "gpt.torchscript.onnx")))
    assert all(constant(n.inputs[1]) is not None for n in tidied.model.graph if n.op_type == "Reshape")


@pytest.mark.parametrize("opset", [11, 17])
def test_a_size_of_the_same_axis_is_copied_and_one_other_is_what_is_left(opset: int, tmp_path: Path) -> None:
    nodes = [*size_of("x", 0), *size_of("x", 1)]
    if opset < 12:  # a Constant of old operator sets is a tensor
        nodes = [
            make_node("Constant", [], n.output, value=make_tensor("i", I, [1], n.attribute[0].ints))
            if n.op_type == "Constant" else n for n in nodes
        ]  # fmt: skip
    nodes += [
        make_node("Concat", ["x0", "heads", "x1", "width"], ["target"], axis=0),
        make_node("Reshape", ["x", "target"], ["y"]),
    ]
    model = model_of(nodes, {"x": ["N", "T", 12]}, tmp_path, opset, heads=[3], width=[4])
    assert fold_sizes(model)
    assert target(model) == [0, 3, -1, 4]
    assert [n.op_type for n in model.graph] == ["Reshape"]


def test_sizes_of_two_inputs_are_not_taken_for_equal_whatever_they_are_called(tmp_path: Path) -> None:
    nodes = [
        *size_of("z", 0), *size_of("z", 1),
        make_node("Concat", ["z0", "z1", "width"], ["target"], axis=0),
        make_node("Reshape", ["x", "target"], ["y"]),
    ]  # fmt: skip
    model = model_of(nodes, {"x": ["N", "T", 12], "z": ["N", "T"]}, tmp_path, width=[12])
    assert not fold_sizes(model)
    assert target(model) is None


def test_a_size_that_is_computed_from_what_inputs_decide_stays(tmp_path: Path) -> None:
    nodes = [
        *size_of("x", 0), *size_of("x", 1),
        make_node("Mul", ["x1", "twice"], ["double"]),
        make_node("Concat", ["x0", "double", "width"], ["target"], axis=0),
        make_node("Reshape", ["x", "target"], ["y"]),
    ]  # fmt: skip
    model = model_of(nodes, {"x": ["N", "T", 12]}, tmp_path, twice=[2], width=[6])
    assert not fold_sizes(model)


def test_a_size_that_may_be_one_is_not_taken_for_another(tmp_path: Path) -> None:
    nodes = [
        make_node("Shape", ["x"], ["s"]),
        make_node("Equal", ["s", "ones"], ["is_one"]),
        make_node("Where", ["is_one", "wide", "s"], ["target"]),
        make_node("Expand", ["x", "target"], ["y"]),
    ]
    model = model_of(nodes, {"x": ["N", 1]}, tmp_path, ones=[1, 1], wide=[5, 5])
    fold_sizes(model)
    for batch in (1, 2):
        found = execute.run(execute.session(model, threads=1), {"x": np.zeros((batch, 1), np.float32)})[0]
        assert found.shape == ((5, 5) if batch == 1 else (2, 5))


def test_a_zero_that_means_nothing_is_left_alone(tmp_path: Path) -> None:
    nodes = [
        *size_of("x", 0),
        make_node("Concat", ["x0", "none"], ["target"], axis=0),
        make_node("Reshape", ["x", "target"], ["y"], allowzero=1),
    ]
    model = model_of(nodes, {"x": ["N", 0]}, tmp_path, none=[0])
    assert not fold_sizes(model)


def test_a_factor_computed_from_a_width_is_a_number_of_its_type(tmp_path: Path) -> None:
    nodes = [
        *size_of("x", 1),
        make_node("Cast", ["x1"], ["width"], to=F),
        make_node("Sqrt", ["width"], ["root"]),
        make_node("Div", ["x", "root"], ["y"]),
    ]
    model = model_of(nodes, {"x": ["N", 16]}, tmp_path)
    assert fold_sizes(model) == 1
    tensor = constant(next(iter(model.graph)).inputs[1])
    assert tensor is not None
    assert tensor.numpy().dtype == np.float32
    assert tensor.numpy().tolist() == [4.0]


def test_a_model_without_computed_sizes_is_returned_as_it_is() -> None:
    listing = list_layers(load(NETS / "residual.torchscript.onnx"))
    assert tidy(listing) is listing


@pytest.mark.parametrize("settings", [PruneChannels(refit=False), QuantizeDynamic()])
def test_steps_start_from_the_tidied_model_and_say_what_the_users_costs(settings: AnySettings) -> None:
    listing = list_layers(load(NETS / "vit.torchscript.onnx"))
    step = Step(settings=settings)
    found = ready(listing, step)
    assert found is ready(listing, step)
    assert len(list(found.model.graph)) < len(list(listing.model.graph))
    assert plan_step(listing, step, Context(threads=1)).before == listing.cost


def test_halves_whose_bounds_were_computed_are_pruned_like_any_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        make_node("MatMul", ["x", "w"], ["h"], name="wide"),
        *size_of("h", 2),
        make_node("Div", ["h2", "two"], ["half"]),
        make_node("Slice", ["h", "start", "half", "last"], ["a"]),
        make_node("Slice", ["h", "half", "h2", "last"], ["b"]),
        make_node("Sigmoid", ["b"], ["gate"]),
        make_node("Mul", ["a", "gate"], ["gated"]),
        make_node("MatMul", ["gated", "o"], ["y"], name="out"),
    ]
    weights = {"w": rng.standard_normal((6, 16)).astype("f4"), "o": rng.standard_normal((8, 3)).astype("f4")}
    model = model_of(nodes, {"x": ["N", "T", 6]}, tmp_path, two=[2], start=[0], last=[-1], **weights)
    listing, context = list_layers(model), Context(threads=1, agreed=True)
    step = Step(settings=PruneChannels(ratio=0.5, refit=False))
    plan = plan_step(listing, step, context)
    result = ChannelPruning().apply(ready(listing, step), plan, context)
    assert list_layers(result).cost == plan.after
    assert plan.after.parameters == (6 * 8 + 4 * 3)
