"""Fused attention operators: heads × dimensions on the last axis."""

from __future__ import annotations

import math

import onnx_ir as ir

from studio.engine.graph import constant
from studio.engine.groups.atoms import Axis
from studio.engine.groups.folding import integer
from studio.engine.groups.repairs import Counted, Scaled
from studio.engine.groups.rules.movement import regroup
from studio.engine.groups.trace import Reading, Trace, rule, unknown, where


@rule("MultiHeadAttention", domain="com.microsoft")
def multi_head(t: Trace, node: ir.Node) -> None:
    """Q, K (B, T, heads·d), V (B, T, heads·e) → (B, T, heads·e); biases and packed forms are left alone."""
    extras = any(v is not None for v in node.inputs[3:5]) or any(v is not None for v in node.inputs[6:])
    if extras or any(len(t.dims(v) or ()) != 3 for v in node.inputs[:3]):
        unknown(t, node)
        return
    _attend(t, node, "num_heads", "num_heads")


@rule("Attention")
def standard(t: Trace, node: ir.Node) -> None:
    """Opset 23: Q (B, T, q_heads·d) or (B, heads, T, d); only equal head counts and no cache are narrowed."""
    extras = any(v is not None for v in node.inputs[4:]) or len(node.outputs) > 1
    ranks = {len(t.dims(v) or ()) for v in node.inputs[:3]}
    if extras or len(ranks) != 1:
        unknown(t, node)
        return
    if ranks == {3}:
        if integer(node, "q_num_heads", 1) != integer(node, "kv_num_heads", 1):
            unknown(t, node)
            return
        _attend(t, node, "q_num_heads", "kv_num_heads")
        return
    q, k, v = (t.get(node, i) for i in range(3))
    if (
        q is None
        or k is None
        or v is None
        or ranks != {4}
        or len({(t.dims(x) or (0, 0))[1] for x in node.inputs[:3]}) > 1
    ):
        unknown(t, node)
        return
    heads = t.same(t.same(q[1], k[1], node), v[1], node)
    t.put(node.outputs[0], [None, heads, None, v[3]])
    _inner(t, node, t.same(q[3], k[3], node), (t.dims(node.inputs[0]) or (1,))[-1], None)


def _attend(t: Trace, node: ir.Node, name: str, other: str) -> None:
    heads = integer(node, name, 1)
    divided = []
    for position in range(3):
        labels, dims = t.get(node, position), t.dims(node.inputs[position])
        if labels is None or dims is None:
            unknown(t, node)
            return
        divided.append(regroup(t, (labels[-1],), (dims[-1],), (heads, dims[-1] // heads), where(node)))
        for axis in labels[:-1]:
            t.fix(axis, f"is no channel at {where(node)}")
    group = t.same(t.same(divided[0][0], divided[1][0], node), divided[2][0], node)
    inner = t.same(divided[0][1], divided[1][1], node)
    for attribute in {name, other}:
        if group is not None:
            t.repair(Counted(node, attribute, group))
    v = t.get(node, 2)
    t.put(node.outputs[0], [None, None, v[-1] if v else None])
    q = t.get(node, 0)
    _inner(t, node, inner, (t.dims(node.inputs[0]) or (1,))[-1] // heads, q[-1] if q else None)


def _inner(t: Trace, node: ir.Node, inner: Axis | None, size: int, whole: Axis | None) -> None:
    """The axis that queries and keys are multiplied along; the default factor 1/√d stays the original's."""
    if inner is None:
        return
    if "scale" not in node.attributes:
        t.repair(Scaled(node, "scale", inner, 1 / math.sqrt(size)))
    if constant(node.inputs[0]) is None:
        rank = len(t.dims(node.inputs[0]) or ())
        t.readings.append(Reading(node, 0, rank - 1, inner if whole is None else whole))


@rule("RotaryEmbedding", domain="com.microsoft")
@rule("RotaryEmbedding")
def rotary(t: Trace, node: ir.Node) -> None:
    """Turns pairs of dimensions: nothing within a head may go."""
    unknown(t, node)
