"""What the inspector shows of a layer agrees with the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import models

from studio.base.errors import StudioError
from studio.engine import graph
from studio.engine.dataset import open_data
from studio.engine.describe import describe_layer
from studio.engine.layers import Listing, list_layers
from studio.records import steps
from studio.records.measure import DataSpec


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    return list_layers(graph.load(models.write(models.dense(64), tmp_path / "m.onnx")))


def test_histogram_and_ranges_cover_all_weights(listing: Listing) -> None:
    w = models.floats(64, 64)
    detail = describe_layer(listing, "product")
    assert detail.weights is not None
    assert sum(detail.weights.counts) == w.size
    assert detail.weights.low == pytest.approx(float(w.min()))
    assert [c.high for c in detail.channels] == pytest.approx(w.max(axis=0).tolist())
    assert (detail.sparsity, detail.sqnr_db, detail.grid) == (0.0, None, ())


@pytest.mark.parametrize(
    ("settings", "levels", "least_db"),
    [
        (steps.Fp16(), 0, 60),
        (steps.QuantizeStatic(), 255, 35),
        (steps.QuantizeDynamic(per_channel=False), 255, 30),
        (steps.QuantizeWeights(bits=4), 16, 15),
        (steps.QuantizeWeights(bits=8, symmetric=False), 256, 38),
        (steps.Sparsify(ratio=0.5), 0, 5),
        (steps.Sparsify(pattern="2:4"), 0, 3),
        (steps.Qat(weights=2), 3, 0),
    ],
)
def test_a_treatment_shows_its_grid_and_error(
    listing: Listing, settings: steps.AnySettings, levels: int, least_db: float
) -> None:
    detail = describe_layer(listing, "product", settings)
    assert len(detail.grid) == levels
    assert detail.sqnr_db is not None
    assert detail.sqnr_db > least_db
    assert list(detail.grid) == sorted(detail.grid)
    assert detail.clipped is None or detail.clipped < 0.05


def test_fewer_bits_are_never_better(listing: Listing) -> None:
    four = describe_layer(listing, "product", steps.QuantizeWeights(bits=4)).sqnr_db
    eight = describe_layer(listing, "product", steps.QuantizeWeights(bits=8)).sqnr_db
    assert four is not None
    assert eight is not None
    assert eight > four + 15


def test_activations_are_shown_where_data_are_given(listing: Listing) -> None:
    data = open_data(DataSpec(kind="random", limit=4), listing.inputs, dict(listing.input_sizes))
    detail = describe_layer(listing, "product", data=data)
    assert detail.inputs is not None
    assert detail.outputs is not None
    assert sum(detail.outputs.counts) == sum(detail.inputs.counts) == 4 * 64


def test_a_layer_in_a_subgraph_has_weights_but_no_activations(tmp_path: Path) -> None:
    import onnx

    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["b"], name="fc")], "t", [], [onnx.ValueInfoProto(name="b")]
    )
    nodes = [helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch, else_branch=branch)]
    inputs = {"x": (TensorProto.FLOAT, [1, 8]), "c": (TensorProto.BOOL, [])}
    proto = models.model(nodes, inputs, ["y"], {"w": models.floats(8, 8)})
    found = list_layers(graph.load(models.write(proto, tmp_path / "m.onnx")))
    data = open_data(DataSpec(kind="random", limit=2), found.inputs, {})
    detail = describe_layer(found, found.layers[0].name, data=data)
    assert detail.weights is not None
    assert detail.outputs is None


def test_integers_are_shown_as_the_numbers_they_stand_for(tmp_path: Path) -> None:
    q = np.arange(-64, 64, dtype=np.int8).reshape(16, 8)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="fc"),
    ]
    weights = {"q": q, "s": np.array(0.5, np.float32)}
    proto = models.model(nodes, {"x": (TensorProto.FLOAT, [1, 16])}, ["y"], weights)
    found = list_layers(graph.load(models.write(proto, tmp_path / "m.onnx")))
    detail = describe_layer(found, "fc", steps.Fp16())
    assert detail.weights is not None
    assert (detail.weights.low, detail.weights.high) == (-32.0, 31.5)
    assert "quantized already" in detail.refused


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    proto = models.dense(8)
    broken = models.floats(8, 8)
    broken[0, 0] = np.nan
    proto.graph.initializer[0].raw_data = broken.tobytes()
    found = list_layers(graph.load(models.write(proto, tmp_path / "m.onnx")))
    assert "NaN" in describe_layer(found, "product", steps.Fp16()).refused


def test_an_unknown_layer_is_an_error(listing: Listing) -> None:
    with pytest.raises(StudioError, match="No layer is called 'nothing'"):
        describe_layer(listing, "nothing")


def test_a_factorised_layer_shows_what_each_rank_loses(listing: Listing) -> None:
    found = describe_layer(listing, "product", steps.Factorize()).spectrum
    assert found is not None
    s = np.linalg.svd(models.floats(64, 64), compute_uv=False) ** 2
    assert found.ranks == tuple(range(65))
    assert found.lost[0] == 1
    np.testing.assert_allclose(found.lost, 1 - np.concatenate(([0], np.cumsum(s))) / s.sum(), atol=1e-5)
    assert found.break_even == 32
