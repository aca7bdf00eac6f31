"""A model stepped through: its main graph, and the bodies in it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from studio.engine.execute.stepper import Stepper, captured
from studio.engine.graph import Model, subgraphs

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[2] x, int64 n) => (float[2] y)
{
  one = Constant <value = float {1}> ()
  h = Neg (x)
  y = Loop (n, , x) <body = b (int64 i, bool go, float[2] a) => (bool on, float[2] c)
    { on = Identity (go) twice = Add (a, h) c = Add (twice, one) }>
}"""


def stepper() -> tuple[Stepper, ir.Node, ir.Graph]:
    model = Model(ir.from_proto(onnx.parser.parse_model(TEXT)))
    feeds = [{"x": np.array([1, 4], np.float32) * k, "n": np.array(k)} for k in (1, 2)]
    loop = next(node for node in model.graph if node.op_type == "Loop")
    return Stepper(model, feeds, threads=1), loop, next(body for _name, body in subgraphs(loop))


def test_a_body_captures_values_but_no_constants() -> None:
    _walk, _loop, body = stepper()
    assert [value.name for value in captured(body)] == ["h"]


def test_the_rounds_of_a_loop_are_what_its_body_is_given_every_time() -> None:
    walk, loop, body = stepper()
    first, second = walk.rounds(loop, body)
    assert first["a"].tolist() == [[1, 4]]
    assert second["a"].tolist() == [[2, 8], [1, 1]]


def test_a_body_is_stepped_through_with_what_it_reads_around_it() -> None:
    walk, loop, body = stepper()
    feeds = [
        read | {name: stack[0] for name, stack in given.items()}
        for read, given in zip(walk.read_by(body), walk.rounds(loop, body), strict=True)
    ]
    inside = walk.inside(body, feeds)
    twice = next(node for node in body if node.op_type == "Add").outputs[0]
    assert [array.tolist() for array in inside.get(twice)] == [[0, 0], [0, 0]]
    assert [array.tolist() for array in inside.get(body.outputs[1])] == [[1, 1], [1, 1]]


def test_a_constant_is_the_same_for_every_feed() -> None:
    walk, loop, _body = stepper()
    one = next(node for node in loop.graph if node.op_type == "Constant").outputs[0]
    assert [float(array) for array in walk.get(one)] == [1, 1]
