"""Whatever a model holds, reading and writing it changes no tensor, node or name; damage never gets through."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from support import models

from studio.base.errors import StudioError
from studio.engine import graph
from studio.engine.graph import wire

SIZES = st.lists(st.integers(0, 40), min_size=0, max_size=3)
KINDS = st.sampled_from(["float32", "float16", "float64", "int8", "uint8", "int32", "int64", "bool"])


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    shape, kind, seed = draw(SIZES), draw(KINDS), draw(st.integers(0, 9))
    return np.random.default_rng(seed).integers(0, 2, shape).astype(kind)


@st.composite
def protos(draw: st.DrawFn) -> onnx.ModelProto:
    """A model whose weights lie in initializers, Constant nodes and nested branches."""
    weights = {f"w{i}": value for i, value in enumerate(draw(st.lists(arrays(), max_size=4)))}
    nodes = [helper.make_node("Identity", [name], [f"i{name}"], doc_string="kept") for name in weights]
    for number, value in enumerate(draw(st.lists(arrays(), max_size=3))):
        tensor = numpy_helper.from_array(value, f"k{number}")
        nodes.append(helper.make_node("Constant", [], [f"c{number}"], value=tensor))
    for level in range(draw(st.integers(0, 3))):
        inner = helper.make_graph(
            nodes, f"g{level}", [], [onnx.ValueInfoProto(name=n.output[0]) for n in nodes[:1]]
        )
        if not nodes:
            break
        nodes = [
            helper.make_node(
                "If", ["cond"], [f"o{level}"], then_branch=inner, else_branch=inner, name=f"if{level}"
            )
        ]
    return models.model(nodes, {"cond": (TensorProto.BOOL, [])}, [n.output[0] for n in nodes], weights)


def meaning(model: onnx.ModelProto) -> Any:
    """All that counts of a model, tensors as arrays."""

    def of_graph(g: onnx.GraphProto) -> Any:
        tensors = {t.name: of_tensor(t) for t in g.initializer}
        return [tensors, [of_node(n) for n in g.node], [v.name for v in g.input], [v.name for v in g.output]]

    def of_tensor(t: onnx.TensorProto) -> Any:
        array = numpy_helper.to_array(t)
        return (str(array.dtype), array.shape, array.tobytes())

    def of_node(n: onnx.NodeProto) -> Any:
        attributes = {a.name: of_graph(a.g) if a.HasField("g") else of_tensor(a.t) for a in n.attribute}
        return [n.op_type, n.name, list(n.input), list(n.output), n.doc_string, attributes]

    return of_graph(model.graph)


@settings(max_examples=60, deadline=None)
@given(protos())
def test_reading_and_writing_keep_everything(proto: onnx.ModelProto) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = models.write(proto, Path(folder) / "m.onnx")
        model = graph.load(path)
        for twin in (model, graph.copy(model)):
            assert meaning(onnx.ModelProto.FromString(graph.to_bytes(twin))) == meaning(proto)
        graph.save(model, Path(folder) / "out.onnx", inline_bytes=100)
        again = graph.load(Path(folder) / "out.onnx")
        assert meaning(onnx.ModelProto.FromString(graph.to_bytes(again))) == meaning(proto)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_words(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(b"\x08\x08\x3a" + data)
        try:
            graph.load(path)
        except StudioError as error:
            assert "\n" not in error.sentence  # noqa: PT017 - either outcome is fine


@given(st.integers(0, 2**63 - 1))
def test_a_number_is_read_as_it_was_written(number: int) -> None:
    data = memoryview(wire.varint(number))
    assert wire.read_varint(data, 0, len(data)) == (number, len(data))


@given(st.lists(st.tuples(st.integers(1, 500), st.binary(max_size=50)), max_size=8))
def test_fields_are_found_as_they_were_written(written: list[tuple[int, bytes]]) -> None:
    data = memoryview(b"".join(wire.text_field(number, content) for number, content in written))
    found = [(f.number, bytes(data[f.begin : f.end])) for f in wire.fields(data, 0, len(data))]
    assert found == written
