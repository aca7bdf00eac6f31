"""If, Loop and Scan: what goes in, round and out is labelled alike."""

from __future__ import annotations

import onnx_ir as ir

from studio.engine.graph import constant, subgraphs
from studio.engine.groups.folding import integer, integers
from studio.engine.groups.trace import Labels, Trace, rule, unknown, walk, where


def leaving(t: Trace, value: ir.Value) -> Labels | None:
    """Labels of a subgraph's output; a constant one stays as it is."""
    if value in t.labels:
        return t.labels[value]
    for known in t.constants.values():
        if known.value is value:
            t.fix_all(known.labels, "leaves a branch as it is")
            return known.labels
    tensor = constant(value)
    dims = t.dims(value) if tensor is None else tuple(int(d) for d in tensor.shape.numpy())
    return None if dims is None else (None,) * len(dims)


@rule("If")
def branch(t: Trace, node: ir.Node) -> None:
    """Both branches give the same outputs."""
    bodies = [graph for _name, graph in subgraphs(node)]
    for body in bodies:
        walk(t, body)
    for index, value in enumerate(node.outputs):
        inner = [leaving(t, body.outputs[index]) for body in bodies]
        shapes = [t.dims(body.outputs[index]) for body in bodies]
        first = inner[0]
        if any(x is None or first is None or len(x) != len(first) for x in inner):
            for x in inner:
                t.fix_all(x, f"leaves {where(node)} in different shapes")
            t.put(value, (None,) * len(t.dims(value) or ()))
            continue
        for other, dims in zip(inner[1:], shapes[1:], strict=True):
            if dims != shapes[0]:
                t.fix_all(first, f"leaves {where(node)} in different shapes")
                t.fix_all(other, f"leaves {where(node)} in different shapes")
            else:
                t.same_all(first, other, node)
        t.put(value, first or ())


@rule("Loop")
def loop(t: Trace, node: ir.Node) -> None:
    """Carried values are one over all rounds; scanned outputs get an axis of rounds in front."""
    body = dict(subgraphs(node))["body"]
    carried = len(node.inputs) - 2
    for k in range(carried):
        t.put(body.inputs[k + 2], t.get(node, k + 2) or ())
    walk(t, body)
    for k in range(carried):
        start, end = t.get(node, k + 2), leaving(t, body.outputs[k + 1])
        t.same_all(start, end, node)
        t.put(node.outputs[k], start or ())
    for k in range(carried, len(node.outputs)):
        t.put(node.outputs[k], (None, *(leaving(t, body.outputs[k + 1]) or ())))


@rule("Scan")
def scan(t: Trace, node: ir.Node) -> None:
    """Like Loop, over one axis of every scanned input (forward along axis 0 only)."""
    body = dict(subgraphs(node))["body"]
    scanned = integer(node, "num_scan_inputs", 0)
    states = len(node.inputs) - scanned
    if t.model.opset < 9 or any(
        any(integers(node, name) or ()) for name in ("scan_input_axes", "scan_output_axes")
    ):
        unknown(t, node)
        return
    for k in range(len(node.inputs)):
        labels = t.get(node, k) or ()
        if k >= states:
            t.fix(labels[0] if labels else None, f"is scanned at {where(node)}")
            labels = labels[1:]
        t.put(body.inputs[k], labels)
    walk(t, body)
    for k in range(states):
        t.same_all(t.get(node, k), leaving(t, body.outputs[k]), node)
        t.put(node.outputs[k], t.get(node, k) or ())
    for k in range(states, len(node.outputs)):
        t.put(node.outputs[k], (None, *(leaving(t, body.outputs[k]) or ())))
