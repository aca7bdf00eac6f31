"""Opening: weights stay in the file, and everything that is wrong with it is said in one sentence."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import models

from studio.base.errors import StudioError
from studio.engine import graph
from studio.engine.graph.wire import text_field


def refusal(path: Path) -> str:
    with pytest.raises(StudioError) as caught:
        graph.load(path)
    sentence = caught.value.sentence
    assert path.name in sentence
    assert "\n" not in sentence
    return sentence


def external(folder: Path, location: str = "weights.bin", data: bytes | None = None) -> Path:
    proto = models.dense(16)
    weight = proto.graph.initializer[0]
    raw = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(raw)))):
        weight.external_data.add(key=key, value=value)
    if location and not Path(location).is_absolute() and ".." not in location:
        (folder / location).write_bytes(raw if data is None else data)
    return models.write(proto, folder / "m.onnx")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"hello, this is no model at all", "no ONNX model"),
        (b"\xff" * 100, "no ONNX model"),
        (b"PK\x03\x04" + b"\0" * 40, "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1c\0\0\0TFL3" + b"\0" * 40, "TensorFlow Lite"),
        (b"\x08\x08", "holds no graph"),
    ],
)
def test_a_file_that_is_no_model_says_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert words in refusal(path)


def test_a_model_cut_off_anywhere_is_refused_in_words(tmp_path: Path) -> None:
    whole = models.dense(32).SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(1, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        assert "m.onnx" in refusal(path)
    path.write_bytes(whole[:-100])
    assert "cut off" in refusal(path)


def test_what_is_no_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "missing.onnx")
    (tmp_path / "folder.onnx").mkdir()
    assert "a folder" in refusal(tmp_path / "folder.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "no regular file" in refusal(tmp_path / "pipe.onnx")


def test_external_data_are_mapped_and_equal(tmp_path: Path) -> None:
    model = graph.load(external(tmp_path))
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    assert np.array_equal(weight.numpy(), models.floats(16, 16))
    assert graph.file_bytes(tmp_path / "m.onnx") == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_missing_external_data_are_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    sentence = refusal(path)
    assert "weights.bin" in sentence
    assert "no such file" in sentence


def test_external_data_that_are_too_short_are_refused(tmp_path: Path) -> None:
    assert "are there" in refusal(external(tmp_path, data=b"\0" * 100))


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/hostname", "a/../../secret.bin", "..\\secret.bin"]
)
def test_external_data_outside_of_the_folder_are_never_read(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\1" * 2000)
    assert "outside of the model's folder" in refusal(external(folder, location))


def test_a_link_out_of_the_folder_is_explained(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder)
    (folder / "weights.bin").rename(tmp_path / "blob")
    (folder / "weights.bin").symlink_to(tmp_path / "blob")
    sentence = refusal(path)
    assert "link to a file outside" in sentence
    assert "Copy the model and its data into one folder" in sentence


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").rename(tmp_path / "blob")
    (tmp_path / "weights.bin").symlink_to(tmp_path / "blob")
    assert graph.load(path).graph.initializers["w"].const_value is not None


def test_a_pipe_as_external_data_does_not_block(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    os.mkfifo(tmp_path / "weights.bin")
    assert "no regular file" in refusal(path)


def test_two_weights_of_one_name_are_refused(tmp_path: Path) -> None:
    proto = models.dense(8)
    proto.graph.initializer.append(numpy_helper.from_array(models.floats(8, 8, seed=1), "w"))
    assert "two weights are called 'w'" in refusal(models.write(proto, tmp_path / "m.onnx"))


def test_nodes_that_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    proto = models.model(nodes, {"x": (TensorProto.FLOAT, [2])}, ["b"])
    assert "cycle" in refusal(models.write(proto, tmp_path / "m.onnx"))


def test_a_value_that_nothing_produces_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "ghost"], ["y"])]
    proto = models.model(nodes, {"x": (TensorProto.FLOAT, [2])}, ["y"])
    assert "nothing produces it" in refusal(models.write(proto, tmp_path / "m.onnx"))


def test_nodes_in_any_order_are_put_in_order(tmp_path: Path) -> None:
    proto = models.dense(8)
    first, second = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([second, first])
    model = graph.load(models.write(proto, tmp_path / "m.onnx"))
    assert [n.op_type for n in model.graph] == ["MatMul", "Relu"]


def test_the_long_name_of_the_default_operators_is_the_short_one(tmp_path: Path) -> None:
    proto = models.dense(8)
    proto.opset_import[0].domain = "ai.onnx"
    for node in proto.graph.node:
        node.domain = "ai.onnx"
    model = graph.load(models.write(proto, tmp_path / "m.onnx"))
    assert (model.opset, {n.domain for n in model.graph}) == (17, {""})
    assert len(models.run(graph.to_bytes(model), {"x": models.floats(1, 8)})) == 1


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    data = models.dense(8).SerializeToString().replace(b"MatMul", b"\xe8atMul")
    (tmp_path / "m.onnx").write_bytes(data)
    assert "is no text" in refusal(tmp_path / "m.onnx")


def test_a_weight_without_an_element_type_is_refused(tmp_path: Path) -> None:
    proto = models.dense(8)
    proto.graph.initializer[0].ClearField("data_type")
    assert "'w'" in refusal(models.write(proto, tmp_path / "m.onnx"))


def test_far_too_many_nodes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.engine.graph.read._MAX_NODES", 1)
    assert "2 nodes" in refusal(models.write(models.dense(8), tmp_path / "m.onnx"))


def test_a_damaged_weight_is_named(tmp_path: Path) -> None:
    proto = models.dense(32)
    proto.graph.initializer[0].dims[0] = 64
    assert "'w'" in refusal(models.write(proto, tmp_path / "m.onnx"))


def test_sparse_weights_are_read_as_dense_ones(tmp_path: Path) -> None:
    proto = models.dense(4)
    dense = np.zeros((4, 4), np.float32)
    dense[1, 2], dense[3, 0] = 5, -1
    del proto.graph.initializer[:]
    values = numpy_helper.from_array(np.array([5, -1], np.float32), "w")
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([6, 12])), [4, 4])
    )
    model = graph.load(models.write(proto, tmp_path / "m.onnx"))
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    assert np.array_equal(weight.numpy(), dense)


def test_functions_are_written_out(tmp_path: Path) -> None:
    body = [helper.make_node("MatMul", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    function = helper.make_function("own", "dense", ["a", "b"], ["d"], body, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("dense", ["x", "w"], ["y"], domain="own")]
    proto = models.model(
        nodes, {"x": (TensorProto.FLOAT, [2, 8])}, ["y"], {"w": models.floats(8, 8)}, domains=("own",)
    )
    proto.functions.append(function)
    model = graph.load(models.write(proto, tmp_path / "m.onnx"))
    assert [n.op_type for n in model.graph] == ["MatMul", "Relu"]
    feed = {"x": models.floats(2, 8, seed=3)}
    assert np.array_equal(models.run(graph.to_bytes(model), feed)[0], models.run(proto, feed)[0])


def test_functions_that_stand_for_a_huge_graph_stay_as_they_are(tmp_path: Path) -> None:
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function("own", "f0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opset)
    ]
    for level in range(1, 40):
        body = [
            helper.make_node(f"f{level - 1}", ["a"], ["c"], domain="own"),
            helper.make_node(f"f{level - 1}", ["c"], ["b"], domain="own"),
        ]
        functions.append(helper.make_function("own", f"f{level}", ["a"], ["b"], body, opset))
    nodes = [helper.make_node("f39", ["x"], ["y"], domain="own")]
    proto = models.model(nodes, {"x": (TensorProto.FLOAT, [2])}, ["y"], domains=("own",))
    proto.functions.extend(functions)
    assert len(graph.load(models.write(proto, tmp_path / "m.onnx")).ir.functions) == 40


def test_a_function_that_calls_itself_is_refused(tmp_path: Path) -> None:
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    body = [helper.make_node("f", ["a"], ["b"], domain="own")]
    nodes = [helper.make_node("f", ["x"], ["y"], domain="own")]
    proto = models.model(nodes, {"x": (TensorProto.FLOAT, [2])}, ["y"], domains=("own",))
    proto.functions.append(helper.make_function("own", "f", ["a"], ["b"], body, opset))
    assert "calls itself" in refusal(models.write(proto, tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    "kind",
    [
        "float32",
        "float64",
        "float16",
        "int8",
        "uint8",
        "int32",
        "int64",
        "bool",
        "bfloat16",
        "int4",
        "uint4",
        "float8_e4m3fn",
    ],
)
def test_mapped_weights_of_every_type_come_out_as_they_went_in(tmp_path: Path, kind: str) -> None:
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    values = np.random.default_rng(0).integers(0, 2 if kind == "bool" else 7, (65, 101)).astype(dtype)
    proto = models.model([helper.make_node("Identity", ["w"], ["y"])], {}, ["y"], ir_version=10, opset=21)
    import onnx_ir as ir

    proto.graph.initializer.append(ir.to_proto(ir.tensor(values, name="w")))
    model = graph.load(models.write(proto, tmp_path / "m.onnx"))
    held = model.graph.initializers["w"].const_value
    assert held is not None
    assert np.array_equal(held.numpy().astype(np.float32), values.astype(np.float32))
    assert held.tobytes() == ir.tensor(values).tobytes()


def test_weights_stored_number_by_number_are_mapped_too(tmp_path: Path) -> None:
    proto = models.dense(32)
    values = models.floats(32, 32)
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.float_data.extend(values.reshape(-1).tolist())
    model = graph.load(models.write(proto, tmp_path / "m.onnx"))
    held = model.graph.initializers["w"].const_value
    assert held is not None
    assert np.array_equal(held.numpy(), values)


def test_the_digest_tells_contents_apart_external_data_included(tmp_path: Path) -> None:
    path = external(tmp_path)
    before = graph.digest(path)
    assert before == graph.digest(path)
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert graph.digest(path) != before


def test_memory_of_read_weights_can_be_given_back(tmp_path: Path) -> None:
    model = graph.load(models.write(models.dense(64), tmp_path / "m.onnx"))
    held = model.graph.initializers["w"].const_value
    assert held is not None
    before = held.numpy().copy()
    model.release()
    assert np.array_equal(held.numpy(), before)


@pytest.mark.parametrize("levels", [60, 400, 5000])
def test_deeply_nested_graphs_end_in_a_sentence(tmp_path: Path, levels: int) -> None:
    inner = text_field(2, b"g")
    for _ in range(levels):
        attribute = text_field(1, b"then_branch") + text_field(6, inner)
        inner = text_field(2, b"g") + text_field(1, text_field(4, b"If") + text_field(5, attribute))
    padding = text_field(10, b"p" * 2000)  # large enough to be looked into
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08" + text_field(7, inner + padding))
    if levels > 60:
        assert "m.onnx" in refusal(path)
    else:
        with contextlib.suppress(StudioError):
            graph.load(path)
