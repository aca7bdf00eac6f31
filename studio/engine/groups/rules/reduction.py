"""Pooling, sums and means, orders: an axis that is reduced stays whole, the others pass."""

from __future__ import annotations

import onnx_ir as ir

from studio.engine.groups.atoms import Axis
from studio.engine.groups.folding import integer, integers
from studio.engine.groups.trace import Trace, rule, unknown, where


@rule(
    "AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "MaxUnpool", "RoiAlign",
    "GridSample", "MaxRoiPool",
)  # fmt: skip
def pool(t: Trace, node: ir.Node) -> None:
    """Channels pass, space does not."""
    x = t.get(node, 0)
    out = t.dims(node.outputs[0])
    if x is None or len(x) < 2:
        unknown(t, node)
        return
    for axis in (x[0], *x[2:]):
        t.fix(axis, f"is pooled at {where(node)}")
    for position in range(1, len(node.inputs)):
        t.fix_all(t.get(node, position), f"is no channel at {where(node)}")
    for value in node.outputs:
        t.put(value, [None, x[1], *(None,) * ((len(out) if out else len(x)) - 2)])


@rule(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
def reduce(t: Trace, node: ir.Node) -> None:
    """Axes by attribute or input; none = all."""
    x = t.get(node, 0)
    if not x:
        unknown(t, node)
        return
    axes = integers(node, "axes")
    given = len(node.inputs) > 1 and node.inputs[1] is not None
    if axes is None and given:
        folded = t.fold(node.inputs[1])
        if folded is None:
            unknown(t, node)
            return
        axes = tuple(int(a) for a in folded.reshape(-1))
    if not axes and integer(node, "noop_with_empty_axes", 0):
        t.put(node.outputs[0], x)
        return
    reduced = {a % len(x) for a in axes} if axes else set(range(len(x)))
    keep = integer(node, "keepdims", 1)
    out: list[Axis | None] = []
    for k, axis in enumerate(x):
        if k in reduced:
            t.fix(axis, f"is reduced to one value at {where(node)}")
            out.extend([None] if keep else [])
        else:
            out.append(axis)
    t.put(node.outputs[0], out)


@rule("ArgMax", "ArgMin", "TopK", "CumSum", "ReverseSequence")
def ordered(t: Trace, node: ir.Node) -> None:
    """Positions along one axis count; ArgMax and ArgMin drop or shrink it."""
    x = t.get(node, 0)
    if x is None or node.op_type == "ReverseSequence":
        unknown(t, node)
        return
    axis = integer(node, "axis", -1 if node.op_type == "TopK" else 0)
    if node.op_type == "CumSum":
        folded = t.fold(node.inputs[1])
        if folded is None:
            unknown(t, node)
            return
        axis = int(folded.reshape(-1)[0])
    axis %= max(1, len(x))
    t.fix(x[axis], f"is ordered by position at {where(node)}")
    drops = node.op_type.startswith("Arg") and not integer(node, "keepdims", 1)
    rest = [*x[:axis], *([] if drops else [None]), *x[axis + 1 :]]
    for value in node.outputs:
        t.put(value, rest)
