"""Normalizations: over channels nothing may go, beside them everything may."""

from __future__ import annotations

import onnx_ir as ir

from studio.engine.groups.folding import integer
from studio.engine.groups.repairs import Counted
from studio.engine.groups.rules.movement import regroup
from studio.engine.groups.trace import Trace, rule, unknown, where


@rule("BatchNormalization", "InstanceNormalization")
def per_channel(t: Trace, node: ir.Node) -> None:
    """Scale, shift and statistics lie along axis 1."""
    x = t.get(node, 0)
    if x is None or len(x) < 2:
        unknown(t, node)
        return
    channels = x[1]
    if node.op_type == "InstanceNormalization":
        for axis in x[2:]:
            t.fix(axis, f"is normalized over at {where(node)}")
    for position in range(1, len(node.inputs)):
        other = t.get(node, position)
        if other and other[0] is not None:
            channels = t.same(channels, other[0], node)
    t.put(node.outputs[0], [x[0], channels, *x[2:]])


@rule("LayerNormalization", "RMSNormalization")
@rule("SimplifiedLayerNormalization", domain="com.microsoft")
@rule("SimplifiedLayerNormalization")
def over_tail(t: Trace, node: ir.Node) -> None:
    """All axes from `axis` on are normalized together."""
    x = t.get(node, 0)
    if x is None:
        unknown(t, node)
        return
    first = integer(node, "axis", -1) % max(1, len(x))
    why = f"is normalized over all channels at {where(node)}"
    for axis in x[first:]:
        t.fix(axis, why)
    for position in range(1, len(node.inputs)):
        t.fix_all(t.get(node, position), why)
    t.put(node.outputs[0], x)


@rule(
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "EmbedLayerNormalization",
    domain="com.microsoft",
)
def skip_norm(t: Trace, node: ir.Node) -> None:
    """A sum and a layer normalization in one."""
    unknown(t, node)


@rule("GroupNormalization")
def group_norm(t: Trace, node: ir.Node) -> None:
    """Whole groups may go: channels are (groups, per group), and a group's channels are normalized together."""
    x, dims = t.get(node, 0), t.dims(node.inputs[0])
    if x is None or dims is None or len(dims) < 2:
        unknown(t, node)
        return
    groups = integer(node, "num_groups", 1)
    words = where(node)
    divided = regroup(t, (x[1],), (dims[1],), (groups, dims[1] // groups), words)
    t.fix(divided[1], f"is normalized within its group at {words}")
    for position in (1, 2):
        other, size = t.get(node, position), t.dims(node.inputs[position])
        if other and size and other[0] is not None:
            t.same(divided[0] if size[0] == groups and groups != dims[1] else x[1], other[0], node)
    if divided[0] is not None:
        t.repair(Counted(node, "num_groups", divided[0]))
    t.put(node.outputs[0], x)


@rule("LRN")
def local_response(t: Trace, node: ir.Node) -> None:
    """Neighbouring channels count."""
    x = t.get(node, 0) or ()
    t.fix(x[1] if len(x) > 1 else None, f"is normalized with its neighbours at {where(node)}")
    t.put(node.outputs[0], x)


@rule("LpNormalization")
def lp_norm(t: Trace, node: ir.Node) -> None:
    """Normalized along one axis."""
    x = t.get(node, 0) or ()
    if x:
        t.fix(x[integer(node, "axis", -1)], f"is normalized over all channels at {where(node)}")
    t.put(node.outputs[0], x)


@rule("MeanVarianceNormalization")
def mean_variance(t: Trace, node: ir.Node) -> None:
    """Normalized over the axes named."""
    x = t.get(node, 0) or ()
    attr = node.attributes.get("axes")
    for axis in (0, 2, 3) if attr is None else attr.as_ints():
        if -len(x) <= axis < len(x):
            t.fix(x[axis], f"is normalized at {where(node)}")
    t.put(node.outputs[0], x)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(t: Trace, node: ir.Node) -> None:
    """Competing values stay together: one axis, before opset 13 all from `axis` on."""
    x = t.get(node, 0) or ()
    old = t.model.opset < 13
    axis = integer(node, "axis", 1 if old else -1)
    axes = x[axis % len(x) :] if old and x else x[axis : axis + 1 or None]
    for labels in axes:
        t.fix(labels, f"competes with all others at {where(node)}")
    t.put(node.outputs[0], x)
