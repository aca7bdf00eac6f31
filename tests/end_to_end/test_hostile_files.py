"""Files that were made to hang, crash or fill a reader: each ends in an answer or in one sentence, in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import models

from studio.app.jobs.drive import Limits, run_task
from studio.base.errors import StudioError
from studio.engine import graph
from studio.records.task import Inspect, Inspected

FLOAT = TensorProto.FLOAT
LIMITS = Limits(seconds=15, bytes=1_500_000_000)


def inspect(path: Path, limits: Limits = LIMITS) -> Inspected | StudioError:
    result: Inspected | StudioError
    try:
        result = run_task(Inspect(model=str(path)), Inspected, limits=limits, subject=f"Reading {path.name}")
    except StudioError as error:
        result = error
    sentence = result.sentence if isinstance(result, StudioError) else "."
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    return result


def einsum_of_dots() -> onnx.ModelProto:
    """An equation on which shape inference never ends, holding the interpreter's lock."""
    return models.model(
        [helper.make_node("Einsum", ["x"], ["y"], equation="....")], {"x": (FLOAT, [2])}, ["y"]
    )


def nested_functions() -> onnx.ModelProto:
    """Functions that call each other twice, forty levels deep: 2^40 nodes in 2 KB."""
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
    proto = models.model(
        [helper.make_node("f39", ["x"], ["y"], domain="own")], {"x": (FLOAT, [2])}, ["y"], domains=("own",)
    )
    proto.functions.extend(functions)
    return proto


def endless_loop() -> onnx.ModelProto:
    """2^63 − 1 trips around a body whose shapes only a run would tell."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go2"]),
            helper.make_node("Concat", ["h", "h"], ["h2"], axis=0),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h2", FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("Constant", [], ["n"], value=numpy_helper.from_array(np.array(2**63 - 1))),
        helper.make_node("Constant", [], ["t"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("Loop", ["n", "t", "x"], ["y"], body=body),
    ]
    return models.model(nodes, {"x": (FLOAT, [2])}, ["y"])


def huge_outputs() -> onnx.ModelProto:
    """A few bytes that ask for a tensor of 4 TB."""
    nodes = [helper.make_node("Expand", ["x", "s"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["y"])]
    weights = {"s": np.array([10**6, 10**6, 1]), "w": models.floats(1, 4)}
    return models.model(nodes, {"x": (FLOAT, [1, 1, 1])}, ["y"], weights)


def huge_sparse_weight() -> onnx.ModelProto:
    """One number that claims to be a matrix of 4 TB."""
    proto = models.dense(4)
    del proto.graph.initializer[:]
    values = numpy_helper.from_array(np.array([1], np.float32), "w")
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([5])), [10**6, 10**6])
    )
    return proto


def huge_dims() -> onnx.ModelProto:
    """A weight whose dimensions do not belong to its bytes."""
    proto = models.dense(32)
    proto.graph.initializer[0].dims[:] = [2**40, 2**22]
    return proto


def negative_dims() -> onnx.ModelProto:
    """A weight of less than nothing."""
    proto = models.dense(32)
    proto.graph.initializer[0].dims[:] = [-32, -32]
    return proto


def unknown_type() -> onnx.ModelProto:
    """A weight of an element type that nobody knows."""
    proto = models.dense(4)
    proto.graph.initializer[0].data_type = 99
    return proto


def unknown_operator() -> onnx.ModelProto:
    """An operator that does not exist."""
    return models.model([helper.make_node("Nonsense", ["x"], ["y"])], {"x": (FLOAT, [2])}, ["y"])


def nan_weights() -> onnx.ModelProto:
    """A weight of NaN."""
    proto = models.dense(32)
    proto.graph.initializer[0].raw_data = np.full((32, 32), np.nan, np.float32).tobytes()
    return proto


def no_names() -> onnx.ModelProto:
    """Nodes without names, one without outputs."""
    nodes = [
        helper.make_node("Relu", ["x"], [""]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Abs", ["x"], []),
    ]
    return models.model(nodes, {"x": (FLOAT, [2])}, ["y"])


def bytes_as_text() -> onnx.ModelProto:
    """An attribute whose text is no text."""
    proto = models.dense(4)
    proto.graph.node[0].attribute.add(name="odd", type=onnx.AttributeProto.STRINGS, strings=[b"\xff\xfe"])
    return proto


def odd_inputs() -> onnx.ModelProto:
    """Inputs that are no tensors, without type, of negative size."""
    proto = models.model([helper.make_node("Identity", ["x"], ["y"])], {"x": (FLOAT, [-5, 2])}, ["y"])
    proto.graph.input.add(name="untyped")
    sequence = proto.graph.input.add(name="sequence")
    sequence.type.sequence_type.elem_type.tensor_type.elem_type = FLOAT
    return proto


MADE = [
    einsum_of_dots, nested_functions, endless_loop, huge_outputs, huge_sparse_weight, huge_dims, negative_dims,
    unknown_type, unknown_operator, nan_weights, no_names, bytes_as_text, odd_inputs,
]  # fmt: skip


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_a_hostile_model_ends_in_an_answer_or_a_sentence(
    make: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    path = models.write(make(), tmp_path / "m.onnx")
    result = inspect(path, Limits(seconds=6, bytes=1_500_000_000))
    if isinstance(result, StudioError):
        assert "m.onnx" in result.sentence


def test_what_is_known_to_hang_the_libraries_is_refused_at_once(tmp_path: Path) -> None:
    result = inspect(models.write(einsum_of_dots(), tmp_path / "m.onnx"))
    assert isinstance(result, StudioError)
    assert "'....'" in result.sentence


def test_functions_that_stand_for_too_much_are_listed_without_them(tmp_path: Path) -> None:
    result = inspect(models.write(nested_functions(), tmp_path / "m.onnx"))
    assert isinstance(result, Inspected)
    assert any(f.subject == "functions" for f in result.info.findings)


def test_what_hangs_all_the_same_is_ended_by_the_limits_and_said_so(tmp_path: Path) -> None:
    result = inspect(models.write(endless_loop(), tmp_path / "m.onnx"), Limits(seconds=2.5))
    assert isinstance(result, StudioError)
    assert "Reading m.onnx" in result.sentence


def test_megabytes_of_empty_nodes_are_refused_at_once(tmp_path: Path) -> None:
    proto = models.model([], {"x": (FLOAT, [2])}, ["x"])
    data = proto.graph.SerializeToString() + b"\x0a\x00" * 500_000  # empty NodeProtos
    whole = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)]).SerializeToString()
    length = len(data)
    varint = bytearray()
    while length > 127:
        varint.append(length & 127 | 128)
        length >>= 7
    varint.append(length)
    (tmp_path / "m.onnx").write_bytes(whole + b"\x3a" + bytes(varint) + data)
    result = inspect(tmp_path / "m.onnx", Limits(seconds=10, bytes=1_000_000_000))
    assert isinstance(result, StudioError)
    assert "500,000 nodes" in result.sentence


def test_random_damage_never_ends_a_worker(tmp_path: Path) -> None:
    """Single flipped, dropped and doubled bytes all over a model; one worker reads them all."""
    from studio.app.jobs.drive import Driver
    from studio.records.task import Failed

    rng = np.random.default_rng(5)
    whole = np.frombuffer(models.dense(8).SerializeToString(), np.uint8)
    driver = Driver()
    try:
        for number in range(150):
            data, at = whole.copy(), int(rng.integers(len(whole)))
            if number % 3 == 0:
                data[at] ^= np.uint8(1 << rng.integers(8))
            elif number % 3 == 1:
                data = np.delete(data, slice(at, at + int(rng.integers(1, 9))))
            else:
                data = np.insert(data, at, data[at : at + int(rng.integers(1, 9))])
            path = tmp_path / f"{number}.onnx"
            path.write_bytes(data.tobytes())
            answer = driver.ask(Inspect(model=str(path)), limits=LIMITS)
            assert isinstance(answer, Inspected | Failed)
            if isinstance(answer, Failed):
                assert not answer.bug, answer.details
    finally:
        driver.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_the_place_of_a_model_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    result = inspect(tmp_path / "m.onnx")
    assert isinstance(result, StudioError)
    assert "no regular file" in result.sentence


def test_a_saver_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    """Five kills at random moments of saving over the same file again and again."""
    source = models.write(models.dense(256), tmp_path / "in.onnx")
    target = tmp_path / "out.onnx"
    code = (
        "import sys; from pathlib import Path; from studio.engine import graph\n"
        "model = graph.load(Path(sys.argv[1]))\n"
        "graph.save(model, Path(sys.argv[2])); print('once', flush=True)\n"
        "while True: graph.save(model, Path(sys.argv[2]))"
    )
    rng = np.random.default_rng(0)
    for _ in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(source), str(target)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"once\n"
        time.sleep(float(rng.uniform(0, 0.2)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert graph.to_bytes(graph.load(target)) == graph.to_bytes(graph.load(source))
