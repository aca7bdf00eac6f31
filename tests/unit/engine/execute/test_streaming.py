"""Intermediate values, those of subgraphs included."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from studio.base.errors import Cancelled, StudioError
from studio.base.progress import Progress
from studio.engine.execute import stream
from studio.engine.graph import Model, to_bytes

CHAIN = """<ir_version: 8, opset_import: ["": 17]>
g (float[N] x) => (float[N] y) { a = Neg (x) b = Exp (a) y = Relu (b) }"""
BRANCHES = """<ir_version: 8, opset_import: ["": 17]>
g (float[2] x, bool up, bool far) => (float[2] y)
{
  h = Neg (x)
  y = If (up) <
    then_branch = t () => (float[2] r) { inner = Exp (h) r = If (far) <
        then_branch = tt () => (float[2] rr) { deep = Sqrt (inner) rr = Identity (deep) },
        else_branch = te () => (float[2] rr) { shallow = Abs (inner) rr = Identity (shallow) }> },
    else_branch = e () => (float[2] r) { inner = Abs (h) r = Identity (inner) }
  >
}"""
LOOP = """<ir_version: 8, opset_import: ["": 17]>
g (float[2] x, int64 n) => (float[2] y)
{
  y = Loop (n, , x) <body = b (int64 i, bool go, float[2] a) => (bool on, float[2] c)
    { on = Identity (go) twice = Add (a, a) c = Identity (twice) }>
}"""
SCAN = """<ir_version: 8, opset_import: ["": 17]>
g (float[3, 2] x) => (float[3, 2] y)
{
  y = Scan <num_scan_inputs = 1, scan_output_axes = [0],
    body = b (float[2] a) => (float[2] c) { half = Neg (a) c = Exp (half) }> (x)
}"""


def model(text: str) -> Model:
    return Model(ir.from_proto(onnx.parser.parse_model(text)))


def two() -> np.ndarray:
    return np.array([1, 4], np.float32)


def test_inputs_inner_values_and_outputs_of_every_feed() -> None:
    feeds = [{"x": two()}, {"x": -two()}]
    found = list(stream(model(CHAIN), ["x", "a", "y", "a"], feeds))
    assert [list(values) for values in found] == [["x", "a", "y"]] * 2
    assert found[0]["a"].tolist() == [-1, -4]
    assert found[1]["x"].tolist() == [-1, -4]


def test_the_model_itself_is_left_as_it_is() -> None:
    watched = model(BRANCHES)
    before = to_bytes(watched)
    feed = {"x": two(), "up": np.array(True), "far": np.array(True)}
    list(stream(watched, ["h"], [feed]))
    list(stream(watched, [path for path in _paths(watched) if path.endswith("deep")], [feed]))
    assert to_bytes(watched) == before


def _paths(watched: Model) -> list[str]:
    from studio.engine.graph import graphs

    return [
        f"{path}/{v.name}" if path else str(v.name)
        for path, g in graphs(watched)
        for n in g
        for v in n.outputs
    ]


def test_feeds_are_taken_one_at_a_time() -> None:
    taken = []

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        for number in range(3):
            taken.append(number)
            yield {"x": two()}

    values = stream(model(CHAIN), ["b"], feeds())
    next(values)
    assert taken == [0]


@pytest.mark.parametrize(("up", "far"), [(True, True), (True, False), (False, True)])
def test_of_an_if_the_branch_that_ran_is_given(up: bool, far: bool) -> None:
    watched = model(BRANCHES)
    feed = {"x": -two(), "up": np.array(up), "far": np.array(far)}
    (found,) = stream(watched, _paths(watched), [feed])
    then = {
        path.split("/")[-1]: value
        for path, value in found.items()
        if "then_branch" in path and path.endswith(("inner", "deep", "shallow"))
    }
    otherwise = [path for path in found if "else_branch" in path and path.endswith("inner")]
    assert ("inner" in then) == up
    assert bool(otherwise) != up
    assert ("deep" in then) == (up and far)
    assert ("shallow" in then) == (up and not far)
    if up and far:
        assert then["deep"] == pytest.approx(np.sqrt(np.exp(two())))


def test_a_value_of_a_subgraph_is_found_by_its_name_alone() -> None:
    feed = {"x": -two(), "up": np.array(True), "far": np.array(True)}
    (found,) = stream(model(BRANCHES), ["deep"], [feed])
    assert found["deep"] == pytest.approx(np.sqrt(np.exp(two())))


def test_a_loop_stacks_its_iterations() -> None:
    (found,) = stream(model(LOOP), ["twice", "y"], [{"x": two(), "n": np.array(3)}])
    assert found["twice"].tolist() == [[2, 8], [4, 16], [8, 32]]
    assert found["y"].tolist() == [8, 32]


def test_a_scan_stacks_its_slices() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    (found,) = stream(model(SCAN), ["half"], [{"x": x}])
    assert np.array_equal(found["half"], -x)


def test_what_a_body_is_given_and_hands_out_already_can_be_watched_too() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2] start, float[3, 2] x) => (float[2] end)
    {
      end = Scan <num_scan_inputs = 1,
        body = b (float[2] sum, float[2] a) => (float[2] next) { next = Add (sum, a) }> (start, x)
    }"""
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    feed = {"start": np.zeros(2, np.float32), "x": x}
    (found,) = stream(model(text), ["next", "sum", "a"], [feed])
    assert np.array_equal(found["a"], x)
    assert np.array_equal(found["next"], np.cumsum(x, axis=0))
    assert np.array_equal(found["sum"], np.cumsum(x, axis=0) - x)


def test_an_unknown_value_is_told() -> None:
    with pytest.raises(StudioError, match="'nobody' is no value of this model"):
        next(stream(model(CHAIN), ["nobody"], [{"x": two()}]))


def test_a_stream_can_be_cancelled() -> None:
    with pytest.raises(Cancelled):
        next(stream(model(CHAIN), ["a"], [{"x": two()}], Progress(cancelled=lambda: True)))
