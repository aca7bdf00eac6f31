"""Rows of CSV files, and samples that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from studio.base.errors import StudioError
from studio.engine.dataset import Dataset, open_data, open_for
from studio.engine.graph import Model
from studio.records.measure import DataSpec
from studio.records.model import TensorInfo

FEATURES = TensorInfo(name="x", dtype="float32", shape=("N", 3))


def table(tmp_path: Path, text: str, *inputs: TensorInfo, **settings: Any) -> Dataset:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    return open_data(DataSpec(path=str(path), **settings), inputs or (FEATURES,))


def test_numeric_columns_are_the_input_and_a_column_is_the_label(tmp_path: Path) -> None:
    data = table(tmp_path, "a,b,c,kind\n1,2,3,0\n4,5,6,1\n\n7,8,9,0\n", label_column="kind")
    batches = list(data.batches(2))
    assert np.concatenate([b.feed["x"] for b in batches]).tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert data.labels() is not None
    assert [b.labels.tolist() for b in batches if b.labels is not None] == [[0, 1], [0]]


def test_a_usual_name_is_taken_as_the_label(tmp_path: Path) -> None:
    assert table(tmp_path, "label,a,b,c\n3,1,1,1\n").summary().labelled == 1


def test_texts_become_classes_in_their_order(tmp_path: Path) -> None:
    data = table(tmp_path, "a;b;c;kind\n1;2;3;oak\n1;2;3;ash\n1;2;3;\n", label_column="kind")
    labels = data.labels()
    assert labels is not None
    assert labels.tolist() == [1, 0, -1]


def test_a_file_without_a_header_and_with_other_columns(tmp_path: Path) -> None:
    data = table(tmp_path, "x1,1,2,3,7\nx2,4,5,6,8\n", FEATURES, label_column="5")
    assert data.samples == 2
    assert "without numbers left out" in data.summary().cautions[0]


def test_columns_are_reshaped_to_a_picture(tmp_path: Path) -> None:
    picture = TensorInfo(name="x", dtype="float32", shape=("N", 1, 2, 2))
    data = table(tmp_path, "1,2,3,4\n5,6,7,8\n", picture)
    assert next(data.feeds(2))["x"].tolist() == [[[[1, 2], [3, 4]]], [[[5, 6], [7, 8]]]]


def test_many_inputs_take_the_columns_of_their_names(tmp_path: Path) -> None:
    age = TensorInfo(name="age", dtype="int64", shape=("N", 1))
    income = TensorInfo(name="income", dtype="float32", shape=("N",))
    feed = next(table(tmp_path, "income,age\n1.5,30\n2.5,40\n", age, income).feeds(2))
    assert feed["age"].tolist() == [[30], [40]]
    assert feed["income"].tolist() == [1.5, 2.5]


def test_a_draw_from_a_table_keeps_rows_and_labels_together(tmp_path: Path) -> None:
    text = "a,b,c,label\n" + "".join(f"{i},{i},{i},{i}\n" for i in range(50))
    data = table(tmp_path, text, shuffle=True, limit=9, seed=4)
    for batch in data.batches(4):
        assert batch.labels is not None
        assert batch.feed["x"][:, 0].tolist() == batch.labels.tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,c\n1,2,oops\n", "expected N×3, got 2 numeric columns"),
        ("a,b\n1,2\n", "expected N×3, got 2 numeric columns"),
        ("a,b,c\n1,2,3\n1,2,oops\n", "sample 2, column 3: expected a number, got 'oops'"),
        ("a,b,c\n1,2,3\n1,2\n", "sample 2, column 3: expected a number, got nothing"),
        ("a,b,c\n1,2,3\n1,2,nan\n", "values that are not numbers"),
        ("a,b,c\n", "holds no samples"),
        ("", "holds no samples"),
    ],
)
def test_a_table_that_does_not_fit_is_told(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(StudioError, match=words):
        list(table(tmp_path, text).feeds())


def test_a_label_column_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="has no column 'kind'"):
        table(tmp_path, "a,b,c\n1,2,3\n", label_column="kind")


def test_a_binary_file_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00\x81" * 9)
    with pytest.raises(StudioError, match="it is no text in UTF-8"):
        open_data(DataSpec(path=str(tmp_path / "t.csv")), (FEATURES,))


# ------------------------------------------------------------------ random data


def language_model() -> Model:
    """ids (N, T) into a table of 50 rows, a mask, positions, and a rate that is compared with 16000."""
    ints = TensorProto.INT64
    nodes = [
        helper.make_node("Cast", ["ids"], ["same"], to=ints),
        helper.make_node("Gather", ["table", "same"], ["e"]),
        helper.make_node("Equal", ["rate", "wanted"], ["is"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("ids", ints, ["N", "T"]),
            helper.make_tensor_value_info("attention_mask", ints, ["N", "T"]),
            helper.make_tensor_value_info("position_ids", ints, ["N", "T"]),
            helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("rate", ints, []),
        ],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
        [
            helper.make_tensor("table", TensorProto.FLOAT, [50, 2], np.zeros(100)),
            helper.make_tensor("wanted", ints, [], [16000]),
        ],
    )
    return Model(ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])))


def test_made_up_values_are_sensible_for_every_input() -> None:
    data = open_for(language_model(), DataSpec(kind="random", limit=4), {"T": 9})
    feed = data.first()
    assert feed["ids"].shape == (1, 9)
    assert (feed["attention_mask"] == 1).all()
    assert feed["position_ids"].tolist() == [list(range(9))]
    assert feed["rate"] == 16000
    ids = np.concatenate([f["ids"] for f in data.feeds()])
    assert 0 <= ids.min() < ids.max() < 50
    assert data.summary().random
    assert "random data" in data.summary().cautions[0]


def test_made_up_samples_are_the_same_whatever_the_batch() -> None:
    inputs = (TensorInfo(name="x", dtype="float32", shape=("N", 3)),)
    spec = DataSpec(kind="random", limit=5, seed=3)
    one = np.concatenate([f["x"] for f in open_data(spec, inputs).feeds(1)])
    many = np.concatenate([f["x"] for f in open_data(spec, inputs).feeds(4)])
    other = next(open_data(DataSpec(kind="random", limit=5, seed=4), inputs).feeds(5))["x"]
    assert np.array_equal(one, many)
    assert not np.array_equal(one, other)


def test_inputs_that_do_not_stack_are_made_up_one_a_run() -> None:
    inputs = (
        TensorInfo(name="x", dtype="float32", shape=("frames", 4)),
        TensorInfo(name="h", dtype="float32", shape=(1, 1, 2)),
    )
    feeds = list(open_data(DataSpec(kind="random", limit=3), inputs, {"frames": 7}).feeds(2))
    assert [f["x"].shape for f in feeds] == [(7, 4)] * 3


def test_texts_cannot_be_made_up() -> None:
    with pytest.raises(StudioError, match="its type is string"):
        open_data(DataSpec(kind="random"), (TensorInfo(name="x", dtype="string", shape=("N",)),)).first()
