"""Saving: whole or not at all, and no output changes by a bit."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import models

from studio.base.errors import StudioError
from studio.engine import graph


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return models.write(models.dense(64), folder / "m.onnx")


def test_load_and_save_keep_every_output_bit(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    written = graph.save(graph.load(source), out)
    assert written == out.stat().st_size
    feed = {"x": models.floats(3, 64, seed=1)}
    assert np.array_equal(models.run(source, feed)[0], models.run(out, feed)[0])


def test_what_is_saved_twice_is_equal(source: Path, tmp_path: Path) -> None:
    graph.save(graph.load(source), tmp_path / "a.onnx")
    graph.save(graph.load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_bytes_in_memory_equal_the_file(source: Path, tmp_path: Path) -> None:
    model = graph.load(source)
    graph.save(model, tmp_path / "a.onnx")
    assert graph.to_bytes(model) == (tmp_path / "a.onnx").read_bytes()


def test_a_model_can_be_saved_over_itself(source: Path) -> None:
    before = source.read_bytes()
    model = graph.load(source)
    graph.save(model, source)
    feed = {"x": models.floats(3, 64, seed=1)}
    assert np.array_equal(models.run(before, feed)[0], models.run(source, feed)[0])
    assert np.array_equal(models.run(graph.to_bytes(model), feed)[0], models.run(source, feed)[0])


def test_nothing_is_left_beside_the_file(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    graph.save(graph.load(source), folder / "m.onnx")
    assert [p.name for p in folder.iterdir()] == ["m.onnx"]


def test_the_file_gets_the_usual_permissions(source: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        graph.save(graph.load(source), tmp_path / "m.onnx", inline_bytes=0)
    finally:
        os.umask(before)
    assert (tmp_path / "m.onnx").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "m.onnx.data").stat().st_mode & 0o777 == 0o640


def test_large_models_get_their_weights_in_a_file_of_their_own(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "big.onnx"
    written = graph.save(graph.load(source), out, inline_bytes=1000)
    assert written == out.stat().st_size + (tmp_path / "big.onnx.data").stat().st_size
    assert graph.file_bytes(out) == written
    feed = {"x": models.floats(3, 64, seed=1)}
    assert np.array_equal(models.run(source, feed)[0], models.run(out, feed)[0])
    assert np.array_equal(models.run(source, feed)[0], models.run(graph.to_bytes(graph.load(out)), feed)[0])


def test_replacing_a_model_with_external_data_never_mixes_old_and_new(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "big.onnx"
    graph.save(graph.load(source), out, inline_bytes=1000)
    feed = {"x": models.floats(3, 64, seed=1)}
    first = models.run(out, feed)[0]
    changed = graph.load(out)
    changed.graph.initializers["w"].const_value = ir.tensor(models.floats(64, 64, seed=9))
    graph.save(changed, out, inline_bytes=1000)
    assert not np.array_equal(models.run(out, feed)[0], first)
    assert len(list(tmp_path.glob("big.onnx*"))) == 2


def test_weights_in_constant_nodes_and_subgraphs_are_written_out_too(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(models.floats(32, 32), "k")
    branch = [
        helper.make_node("Constant", [], ["c"], value=weight),
        helper.make_node("MatMul", ["x", "c"], ["b"]),
    ]
    then = helper.make_graph(branch, "then", [], [onnx.ValueInfoProto(name="b")])
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["b"])], "else", [], [onnx.ValueInfoProto(name="b")]
    )
    nodes = [helper.make_node("If", ["cond"], ["y"], then_branch=then, else_branch=other)]
    inputs = {"x": (TensorProto.FLOAT, [2, 32]), "cond": (TensorProto.BOOL, [])}
    path = models.write(models.model(nodes, inputs, ["y"]), tmp_path / "m.onnx")
    feed = {"x": models.floats(2, 32, seed=1), "cond": np.array(True)}
    for inline in (0, 10**9):
        out = tmp_path / f"{inline}.onnx"
        graph.save(graph.load(path), out, inline_bytes=inline)
        assert np.array_equal(models.run(path, feed)[0], models.run(out, feed)[0])


def test_weights_in_memory_of_every_kind_are_written(source: Path, tmp_path: Path) -> None:
    model = graph.copy(graph.load(source))
    values = models.floats(64, 64, seed=5)
    model.graph.initializers["w"].const_value = ir.LazyTensor(
        lambda: ir.tensor(values), ir.DataType.FLOAT, ir.Shape([64, 64])
    )
    graph.save(model, tmp_path / "out.onnx")
    held = graph.load(tmp_path / "out.onnx").graph.initializers["w"].const_value
    assert held is not None
    assert np.array_equal(held.numpy(), values)


def test_one_tensor_under_two_names_keeps_both(tmp_path: Path, source: Path) -> None:
    model = graph.copy(graph.load(source))
    tensor = model.graph.initializers["w"].const_value
    other = ir.Value(name="other", const_value=tensor)
    model.graph.register_initializer(other)
    graph.save(model, tmp_path / "out.onnx")
    assert set(graph.load(tmp_path / "out.onnx").graph.initializers) == {"w", "other"}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_an_error_while_writing_leaves_the_old_file_whole(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    out = tmp_path / "m.onnx"
    out.write_bytes(b"what was there before")

    def full(_handle: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StudioError, match=r"Cannot write m\.onnx"):
        graph.save(graph.load(source), out)
    assert out.read_bytes() == b"what was there before"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["m.onnx"]


def test_a_place_that_cannot_be_written_is_said_in_words(source: Path, tmp_path: Path) -> None:
    model = graph.load(source)
    with pytest.raises(StudioError, match="there is no folder"):
        graph.save(model, tmp_path / "missing" / "m.onnx")
    (tmp_path / "dir.onnx").mkdir()
    with pytest.raises(StudioError, match="a folder of that name"):
        graph.save(model, tmp_path / "dir.onnx")


def test_a_full_disk_is_said_in_words(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StudioError, match="the disk is full"):
        graph.save(graph.load(source), tmp_path / "m.onnx", inline_bytes=0)
    assert not list(tmp_path.glob("*.onnx*"))


def test_the_weightless_copy_has_all_names_types_and_dimensions(source: Path) -> None:
    bare = onnx.ModelProto.FromString(graph.to_bytes(graph.load(source), weights=False))
    (weight,) = bare.graph.initializer
    assert (weight.name, list(weight.dims), weight.data_type) == ("w", [64, 64], TensorProto.FLOAT)
    assert not weight.raw_data
    assert [n.op_type for n in bare.graph.node] == ["MatMul", "Relu"]
    assert len(bare.SerializeToString()) < 1000


def test_stripping_leaves_the_model_as_it_was(source: Path) -> None:
    model = graph.load(source)
    before = graph.to_bytes(model)
    graph.to_bytes(model, weights=False)
    stripped = graph.strip(model)
    assert graph.to_bytes(model) == before
    assert stripped.graph.initializers["w"].const_value is not model.graph.initializers["w"].const_value


def test_quantization_annotations_survive(tmp_path: Path) -> None:
    proto = models.dense(32)
    note = proto.graph.quantization_annotation.add(tensor_name="h")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    model = graph.load(models.write(proto, tmp_path / "m.onnx"))
    for data in (
        graph.to_bytes(model),
        graph.to_bytes(graph.copy(model)),
        graph.to_bytes(model, weights=False),
    ):
        kept = onnx.ModelProto.FromString(data).graph.quantization_annotation
        assert [(a.tensor_name, a.quant_parameter_tensor_names[0].value) for a in kept] == [("h", "w")]
