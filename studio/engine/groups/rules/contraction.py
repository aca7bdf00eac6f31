"""Convolutions and matrix products: where channels are summed over, and where new ones begin."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from studio.engine.graph import constant
from studio.engine.groups.atoms import Axis
from studio.engine.groups.folding import integer, text
from studio.engine.groups.repairs import Counted
from studio.engine.groups.rules.movement import regroup
from studio.engine.groups.trace import Labels, Reading, Trace, rule, unknown, where


@rule("Conv")
@rule("FusedConv", domain="com.microsoft")
def conv(t: Trace, node: ir.Node) -> None:
    """W (out, in/groups, k…); see `_convolution`."""
    _convolution(t, node, weight=1, bias=2, transposed=False)


@rule("ConvTranspose")
def conv_transpose(t: Trace, node: ir.Node) -> None:
    """W (in, out/groups, k…); see `_convolution`."""
    _convolution(t, node, weight=1, bias=2, transposed=True)


@rule("ConvInteger")
def conv_integer(t: Trace, node: ir.Node) -> None:
    """W (out, in/groups, k…), zero points as inputs 2 and 3."""
    _convolution(t, node, weight=1, bias=None, transposed=False)
    zero = t.get(node, 3)
    if zero and len(zero) == 1 and zero[0] is not None:
        t.same(t.labels[node.outputs[0]][1], zero[0], node)


def _convolution(t: Trace, node: ir.Node, weight: int, bias: int | None, *, transposed: bool) -> None:
    x, w = t.get(node, 0), t.get(node, weight)
    xd, wd = t.dims(node.inputs[0]), t.dims(node.inputs[weight])
    if x is None or w is None or xd is None or wd is None or len(wd) < 3:
        unknown(t, node)
        return
    for axis in (x[0], *x[2:], *w[2:]):
        t.fix(axis, f"is no channel at {where(node)}")
    groups = integer(node, "group", 1)
    total_out = wd[1] * groups if transposed else wd[0]
    if groups == 1:
        entering = t.same(x[1], w[0] if transposed else w[1], node)
        out = w[1] if transposed else w[0]
        t.read(node, 0, 1, entering)
        inner = entering
    else:
        entering, out, inner = _grouped(t, node, x, w, xd, wd, groups, transposed)
    t.role(node, "in", entering)
    t.role(node, "out", out)
    b = t.get(node, bias) if bias is not None else None
    if b is not None and total_out > 1:
        out = t.same(out, b[0], node)
    result = t.dims(node.outputs[0])
    rank = len(result) if result is not None else len(xd)
    t.put(node.outputs[0], [None, out, *(None,) * (rank - 2)])
    t.works(node, *((entering, w[1]) if transposed else (out, inner if groups == 1 else w[1])))


def _grouped(
    t: Trace,
    node: ir.Node,
    x: Labels,
    w: Labels,
    xd: tuple[int, ...],
    wd: tuple[int, ...],
    groups: int,
    transposed: bool,
) -> tuple[Axis | None, Axis | None, Axis | None]:
    """Channels (groups, per group) on both sides share their groups; within a group every group keeps the same.

    Returns:
        Labels of all input channels, of all output channels, and of the input channels of one group.
    """
    words = where(node)
    per_in = xd[1] // groups
    per_out = wd[1] if transposed else wd[0] // groups
    xs = _divided(t, x[1], (groups, per_in), words)
    side = _divided(t, w[0], (groups, per_in if transposed else per_out), words)
    inner = w[1]
    group = t.same(xs[0], side[0], node)
    leaving: Axis | None
    if transposed:
        t.same(xs[1], side[1], node) if per_in > 1 else None
        leaving = _merged(t, group, inner, (groups, per_out))
    else:
        t.same(xs[1], inner, node) if per_in > 1 else None
        leaving = w[0]
    if group is not None:
        t.repair(Counted(node, "group", group))
    if per_in > 1 and xs[1] is not None:
        t.read(node, 0, 1, np.tile(xs[1], groups))
    return x[1], leaving, inner


def _divided(t: Trace, axis: Axis | None, sizes: tuple[int, int], words: str) -> Labels:
    return regroup(t, (axis,), (prod(sizes),), sizes, words)


def _merged(t: Trace, outer: Axis | None, inner: Axis | None, sizes: tuple[int, int]) -> Axis | None:
    return regroup(
        t, (outer if sizes[0] > 1 else None, inner if sizes[1] > 1 else None), sizes, (prod(sizes),), ""
    )[0]


@rule("MatMul", "MatMulInteger")
@rule("FusedMatMul", domain="com.microsoft")
def matmul(t: Trace, node: ir.Node) -> None:
    """Sums over A's last and B's last but one axis; leading axes are broadcast."""
    a, b = t.get(node, 0), t.get(node, 1)
    ad, bd = t.dims(node.inputs[0]), t.dims(node.inputs[1])
    if (
        a is None
        or b is None
        or ad is None
        or bd is None
        or not ad
        or not bd
        or any(integer(node, name, 0) for name in ("transBatchA", "transBatchB"))
    ):
        unknown(t, node)
        return
    ka, kb = len(ad) - 1, max(0, len(bd) - 2)
    ma, nb = len(ad) - 2, len(bd) - 1
    if integer(node, "transA", 0) and len(ad) > 1:
        ka, ma = ma, ka
    if integer(node, "transB", 0) and len(bd) > 1:
        kb, nb = nb, kb
    inner = t.reads(node, (0, ka), (1, kb))
    batch = _batch(t, node, a[:-2], ad[:-2], b[:-2], bd[:-2])
    rows = [a[ma]] if len(ad) > 1 else []
    columns = [b[nb]] if len(bd) > 1 else []
    _zero_points(t, node, columns)
    out = (*batch, *rows, *columns)
    t.put(node.outputs[0], out)
    t.works(node, inner, *out)
    t.role(node, "in", inner)
    for axis in (*columns, *rows):
        t.role(node, "out", axis)


def _zero_points(t: Trace, node: ir.Node, columns: list[Axis | None]) -> None:
    if node.op_type == "MatMulInteger" and columns:
        zero = t.get(node, 3)
        if zero and zero[0] is not None:
            columns[0] = t.same(columns[0], zero[0], node)


def _batch(
    t: Trace, node: ir.Node, a: Labels, ad: tuple[int, ...], b: Labels, bd: tuple[int, ...]
) -> list[Axis | None]:
    rank = max(len(a), len(b))
    found: list[Axis | None] = []
    for j in range(rank):
        here = [
            (labels[k], dims[k])
            for labels, dims in ((a, ad), (b, bd))
            if (k := j - rank + len(dims)) >= 0 and dims[k] != 1
        ]
        axis = here[0][0] if here else None
        for other, _ in here[1:]:
            axis = t.same(axis, other, node)
        found.append(axis)
    return found


@rule("Gemm")
def gemm(t: Trace, node: ir.Node) -> None:
    """A·B + C with optional transposes."""
    a, b = t.get(node, 0), t.get(node, 1)
    if a is None or b is None:
        unknown(t, node)
        return
    ka, ma = (0, 1) if integer(node, "transA", 0) else (1, 0)
    kb, nb = (1, 0) if integer(node, "transB", 0) else (0, 1)
    inner = t.reads(node, (0, ka), (1, kb))
    rows, out = a[ma], b[nb]
    t.role(node, "in", inner)
    t.role(node, "out", out)
    c, cd = t.get(node, 2), t.dims(node.inputs[2]) if len(node.inputs) > 2 else None
    if c and cd:
        if cd[-1] != 1:
            out = t.same(out, c[-1], node)
        if len(cd) > 1 and cd[0] != 1:
            rows = t.same(rows, c[0], node)
    t.put(node.outputs[0], [rows, out])
    t.works(node, inner, rows, out)


@rule("Einsum")
def einsum(t: Trace, node: ir.Node) -> None:
    """One letter, one axis; letters that the result lacks are summed over."""
    equation = text(node, "equation", "").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    operands = terms.split(",")
    labels = [t.get(node, i) for i in range(len(node.inputs))]
    sizes = [t.dims(v) for v in node.inputs]
    if not arrow or any(
        x is None or d is None or len(x) != len(d) for x, d in zip(labels, sizes, strict=True)
    ):
        unknown(t, node)
        return
    named: dict[str, Axis | None] = {}
    summed: list[tuple[int, int, str]] = []
    for position, (term, x, d) in enumerate(zip(operands, labels, sizes, strict=True)):
        letters = _letters(term, len(d or ()))
        if len(letters) != len(d or ()) or len(set(letters)) != len(letters):
            unknown(t, node)
            return
        for k, (letter, axis, size) in enumerate(zip(letters, x or (), d or (), strict=True)):
            if size == 1:
                continue
            named[letter] = t.same(named[letter], axis, node) if letter in named else axis
            if letter not in result and not letter.startswith("…"):
                summed.append((position, k, letter))
    out_rank = len(t.dims(node.outputs[0]) or result.replace("...", ""))
    out = [named.get(letter) for letter in _letters(result, out_rank)]
    masked: set[str] = set()
    for position, k, letter in summed:
        axis = named[letter]
        several = sum(letter in term for term in operands) > 1
        if axis is None or letter in masked:
            continue
        if not several:
            t.fix(axis, f"is summed up at {where(node)}")
            continue
        if constant(node.inputs[position]) is None:
            t.readings.append(Reading(node, position, k, axis))
            masked.add(letter)
    t.put(node.outputs[0], out)
    t.works(node, *named.values())
    for position, (term, d) in enumerate(zip(operands, sizes, strict=True)):
        if constant(node.inputs[position]) is not None:
            for letter in _letters(term, len(d or ())):
                t.role(node, "out" if letter in result else "in", named.get(letter))


def _letters(term: str, rank: int) -> list[str]:
    """Letters of a term; the dimensions of '...' are named from the right, as they align."""
    head, dots, tail = term.partition("...")
    spread = rank - len(head) - len(tail) if dots else 0
    return [*head, *(f"…{i}" for i in range(spread, 0, -1)), *tail]


@rule("MatMulNBits", domain="com.microsoft")
def matmul_nbits(t: Trace, node: ir.Node) -> None:
    """Packed weights: nothing of them can be cut. Both sides are still channels of a layer, which cannot go."""
    why = f"is bound to weights packed in blocks at {where(node)}; prune first, quantize after"
    t.fix_all(t.get(node, 0), why)
    dims = t.dims(node.outputs[0])
    if dims is not None:
        made = t.atoms.fixed(dims[-1], why)
        t.put(node.outputs[0], (*(None for _ in dims[:-1]), made))
        t.role(node, "out", made)
