"""Operators that move elements without computing: where every position goes, its atom goes."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from studio.engine.graph import constant
from studio.engine.groups.atoms import Array, Axis
from studio.engine.groups.folding import integer, integers, slicing, text
from studio.engine.groups.repairs import Measured, Padded, Parted, Picked, Rescaled
from studio.engine.groups.trace import Labels, Trace, rule, unknown, where


@rule("Transpose")
def transpose(t: Trace, node: ir.Node) -> None:
    """Axes change places."""
    x = t.get(node, 0) or ()
    perm = integers(node, "perm") or tuple(reversed(range(len(x))))
    t.put(node.outputs[0], [x[p] for p in perm])


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(t: Trace, node: ir.Node) -> None:
    """Row-major regrouping of the axes."""
    x, dims, out = t.get(node, 0), t.dims(node.inputs[0]), t.dims(node.outputs[0])
    if x is None or dims is None or out is None or prod(dims) != prod(out) or 0 in dims:
        unknown(t, node)
        return
    labels = regroup(t, x, dims, out, where(node))
    t.put(node.outputs[0], labels)
    if node.op_type == "Reshape" and any(a is not None for a in labels):
        t.repair(Rescaled(node, 1, labels))


def regroup(t: Trace, x: Labels, dims: tuple[int, ...], out: tuple[int, ...], words: str) -> Labels:
    """Labels after a row-major reshape from `dims` to `out`, block by block of axes with equal products."""
    found: list[Axis | None] = []
    i = j = 0
    while i < len(dims) or j < len(out):
        a, b = i, j
        left = right = 1
        while a == i or b == j or left != right:
            if a < len(dims) and (left <= right or b == len(out)):
                left *= dims[a]
                a += 1
            elif b < len(out):
                right *= out[b]
                b += 1
            else:
                break
        found.extend(_block(t, x[i:a], dims[i:a], out[j:b], words))
        i, j = a, b
    return tuple(found)


def _block(t: Trace, x: Labels, dims: tuple[int, ...], out: tuple[int, ...], words: str) -> list[Axis | None]:
    """Labels of the axes `out` made of the elements of the axes `dims`."""
    tracked = [axis for axis in x if axis is not None]
    if not tracked:
        return [None] * len(out)
    large = [d for d in out if d > 1]
    if large == [d for d in dims if d > 1]:  # only axes of size 1 come or go
        kept = iter([a for a, d in zip(x, dims, strict=True) if d > 1])
        return [next(kept) if d > 1 else None for d in out]
    columns = _columns(t, x, dims)
    reason = next((r for a in tracked if (r := t.atoms.reason(int(a[0])))), f"is regrouped at {words}")
    if not columns:  # nothing here is ever removed
        return [t.atoms.fixed(d, reason) if d > 1 else None for d in out]
    if len(large) == 1:
        merged = columns[0] if len(columns) == 1 else t.atoms.product(np.stack(columns, axis=1))
        return [merged if d > 1 else None for d in out]
    factors: list[list[Array]] = [[] for _ in out]
    for column in columns:
        grid = column.reshape(out)
        varies = [k for k, d in enumerate(out) if d > 1 and (grid != grid.take([0], axis=k)).any()]
        if len(varies) <= 1:
            axis = varies[0] if varies else out.index(large[0])
            index = tuple(slice(None) if k == axis else 0 for k in range(len(out)))
            factors[axis].append(grid[index])
            continue
        made = {k: t.atoms.fresh(out[k]) for k in varies}
        rows = np.stack([_spread(made[k], k, out).reshape(-1) for k in varies], axis=1)
        unique, first = np.unique(column, return_index=True)
        if len(unique) == len(column):
            t.atoms.unify(column, t.atoms.product(rows))
        else:  # an atom serves several positions: its products must agree
            leaders = first[np.searchsorted(unique, column)]
            for k in range(rows.shape[1]):
                t.atoms.unify(rows[:, k], rows[leaders, k])
            t.atoms.unify(unique, t.atoms.product(rows[first]))
        for k in varies:
            factors[k].append(made[k])
    labels: list[Axis | None] = []
    for d, parts in zip(out, factors, strict=True):
        if d == 1:
            labels.append(None)
        elif not parts:
            labels.append(t.atoms.fixed(d, reason))
        else:
            labels.append(parts[0] if len(parts) == 1 else t.atoms.product(np.stack(parts, axis=1)))
    return labels


def _columns(t: Trace, x: Labels, dims: tuple[int, ...]) -> list[Array]:
    """The atoms of every element of a block, one column an atom (products taken apart): [(n,), …]."""
    columns: list[Array] = []
    for k, axis in enumerate(x):
        if axis is None:
            continue
        parts = t.atoms.parts(axis)
        if parts.shape[1] == 1:  # keep the atoms themselves: fixed ones know their reason
            parts = t.atoms.roots(axis)[:, None]
        columns.extend(_spread(column, k, dims).reshape(-1) for column in parts.T if column.any())
    return columns


def _spread(axis: Array, k: int, dims: tuple[int, ...]) -> Array:
    return np.broadcast_to(axis.reshape([-1 if i == k else 1 for i in range(len(dims))]), dims)


@rule("Shape", "Size")
def shape(t: Trace, node: ir.Node) -> None:
    """Sizes are not channels, but what is said of a narrower axis must not change."""
    x = t.get(node, 0)
    if x is not None and any(a is not None for a in x):
        t.repair(Measured(node, x))


@rule("Concat")
def concat(t: Trace, node: ir.Node) -> None:
    """The atoms of all inputs one after the other; their other axes are one."""
    inputs = [t.get(node, i) for i in range(len(node.inputs))]
    sizes = [t.dims(v) for v in node.inputs]
    if any(x is None or d is None for x, d in zip(inputs, sizes, strict=True)):
        unknown(t, node)
        return
    rank = len(sizes[0] or ())
    along = integer(node, "axis", 1) % max(1, rank)
    pairs = [
        (x, d) for x, d in zip(inputs, sizes, strict=True) if x is not None and d is not None and 0 not in d
    ]
    labels: list[Axis | None] = list(pairs[0][0]) if pairs else [None] * rank
    for x, _dims in pairs[1:]:
        for k in range(rank):
            if k != along:
                labels[k] = t.same(labels[k], x[k], node)
    if any(x[along] is not None for x, _ in pairs):
        reason = f"is joined with values that cannot be narrowed at {where(node)}"
        labels[along] = np.concatenate(
            [t.atoms.fixed(d[along], reason) if (axis := x[along]) is None else axis for x, d in pairs]
        )
    else:
        labels[along] = None
    t.put(node.outputs[0], labels)


@rule("Split")
def split(t: Trace, node: ir.Node) -> None:
    """Runs of atoms along one axis."""
    x = t.get(node, 0)
    if x is None:
        unknown(t, node)
        return
    along = integer(node, "axis", 0) % max(1, len(x))
    axis = x[along]
    if axis is None:
        for value in node.outputs:
            t.put(value, x)
        return
    sizes = [(t.dims(v) or (0,) * len(x))[along] for v in node.outputs]
    if sum(sizes) != len(axis):
        unknown(t, node)
        return
    parts = tuple(np.split(axis, np.cumsum(sizes)[:-1]))
    for value, part in zip(node.outputs, parts, strict=True):
        if len(part) == 1:
            t.fix(part, f"is taken out alone at {where(node)}")
        t.put(value, [*x[:along], part, *x[along + 1 :]])
    t.repair(Parted(node, along, parts))


@rule("Slice")
def slice_(t: Trace, node: ir.Node) -> None:
    """Some positions of some axes."""
    x, dims = t.get(node, 0), t.dims(node.inputs[0])
    if x is None or dims is None:
        unknown(t, node)
        return
    given = [t.fold(v) for v in node.inputs[1:]]
    unknown_bounds = any(v is not None and g is None for v, g in zip(node.inputs[1:], given, strict=True))
    axes = given[2] if len(given) > 2 else None
    cut_axes = set() if axes is None else {int(a) % len(x) for a in axes.reshape(-1)}
    slices = [slice(None)] * len(x) if unknown_bounds else slicing(node, len(x), *given)
    out = t.dims(node.outputs[0])
    labels: list[Axis | None] = []
    for k, (axis, size) in enumerate(zip(x, dims, strict=True)):
        if unknown_bounds:
            moved = given[2] is None if len(given) > 2 else True
            touched = moved or k in cut_axes or out is None or out[k] != size
            if touched:
                t.fix(axis, f"is cut at a computed place at {where(node)}")
            labels.append(None if touched else axis)
            continue
        if axis is None or slices[k] == slice(None):
            labels.append(axis)
            continue
        computed = any(constant(v) is None for v in node.inputs[1:] if v is not None)
        if computed and (len(node.inputs) < 4 or sum(s != slice(None) for s in slices) > 1):
            t.fix(axis, f"is cut at a computed place at {where(node)}")
            labels.append(None)
            continue
        indices = np.arange(size)[slices[k]]
        labels.append(picked(t, node, k, axis, indices))
    t.put(node.outputs[0], labels)


def picked(t: Trace, node: ir.Node, k: int, axis: Axis, indices: Array) -> Axis | None:
    """The labels of some positions of an axis."""
    if len(indices) == len(axis) and np.array_equal(indices, np.arange(len(axis))):
        return axis
    found = axis[indices]
    if len(found) <= 1:
        t.fix(axis, f"has a single position taken out at {where(node)}")
        return None
    t.repair(Picked(node, k, axis, tuple(indices.tolist())))
    return found


@rule("Gather")
def gather(t: Trace, node: ir.Node) -> None:
    """Positions by constant index, or rows of a table by computed index (the table's rows stay)."""
    x, index = t.get(node, 0), t.dims(node.inputs[1])
    if x is None or index is None or not x:
        unknown(t, node)
        return
    along = integer(node, "axis", 0) % len(x)
    axis, indices = x[along], t.fold(node.inputs[1])
    middle: list[Axis | None] = [None] * len(index)
    if axis is not None:
        if indices is not None and len(index) == 1 and constant(node.inputs[1]) is not None:
            middle = [picked(t, node, along, axis, indices % len(axis))]
        else:
            t.fix(axis, f"is looked up by index at {where(node)}")
    t.put(node.outputs[0], [*x[:along], *middle, *x[along + 1 :]])
    if axis is not None and indices is None:
        for k, labels in enumerate(x):
            if k != along:
                t.role(node, "out", labels)


@rule("Expand", "Tile")
def expand(t: Trace, node: ir.Node) -> None:
    """Axes of size 1 become free axes; others keep their labels, repeated by Tile."""
    x, dims, out = t.get(node, 0), t.dims(node.inputs[0]), t.dims(node.outputs[0])
    if x is None or dims is None or out is None:
        unknown(t, node)
        return
    lead = len(out) - len(dims)
    labels: list[Axis | None] = [None] * lead
    for axis, size, wide in zip(x, dims, out[lead:], strict=True):
        if axis is not None:
            labels.append(np.tile(axis, wide // size))
        else:
            labels.append(None)
    if node.op_type == "Expand":
        target = t.fold(node.inputs[1])
        for k, wide in enumerate(out):
            narrow = k < lead or dims[k - lead] == 1
            if narrow and wide > 1 and target is not None and len(target) == len(out):
                labels[k] = t.atoms.fresh(wide)
        t.repair(Rescaled(node, 1, tuple(labels)))
    t.put(node.outputs[0], labels)


@rule("ConstantOfShape")
def filled(t: Trace, node: ir.Node) -> None:
    """All elements are alike: every axis is free."""
    out = t.dims(node.outputs[0])
    if out is None:
        return
    labels = tuple(t.atoms.fresh(d) if d > 1 else None for d in out)
    t.put(node.outputs[0], labels)
    t.repair(Rescaled(node, 0, labels))


@rule("Pad")
def pad(t: Trace, node: ir.Node) -> None:
    """What is added is free (zeros fit anything); mirrored or repeated borders are not."""
    x, dims, out = t.get(node, 0), t.dims(node.inputs[0]), t.dims(node.outputs[0])
    amounts = integers(node, "pads") or integers(node, "paddings")
    if amounts is None and len(node.inputs) > 1:
        folded = t.fold(node.inputs[1])
        amounts = None if folded is None else tuple(int(p) for p in folded)
    if x is None or dims is None or out is None:
        unknown(t, node)
        return
    axes = t.fold(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    begin, end = _amounts(amounts, axes, len(x), dims, out)
    labels = list(x)
    before: list[Axis | None] = []
    after: list[Axis | None] = []
    for k, axis in enumerate(x):
        first = last = None
        if axis is not None and dims[k] != out[k]:
            if (
                begin is None
                or end is None
                or text(node, "mode", "constant") != "constant"
                or min(begin[k], end[k]) < 0
            ):
                t.fix(axis, f"is padded at {where(node)}")
                labels[k] = t.atoms.fixed(out[k], f"is padded at {where(node)}")
            else:
                first, last = t.atoms.fresh(begin[k]), t.atoms.fresh(end[k])
                labels[k] = np.concatenate([first, axis, last])
        before.append(first)
        after.append(last)
    t.put(node.outputs[0], labels)
    if any(a is not None for a in before):
        t.repair(Padded(node, tuple(before), tuple(after)))


def _amounts(
    amounts: tuple[int, ...] | None,
    axes: Array | None,
    rank: int,
    dims: tuple[int, ...],
    out: tuple[int, ...],
) -> tuple[list[int] | None, list[int] | None]:
    if amounts is None:
        return None, None
    where_ = list(range(rank)) if axes is None else [int(a) % rank for a in axes]
    begin, end = [0] * rank, [0] * rank
    for i, k in enumerate(where_):
        begin[k], end[k] = amounts[i], amounts[i + len(where_)]
    matches = all(d + b + e == o for d, b, e, o in zip(dims, begin, end, out, strict=True))
    return (begin, end) if matches else (None, None)


@rule("DepthToSpace", "SpaceToDepth")
def shuffle(t: Trace, node: ir.Node) -> None:
    """Channels and space in blocks: a reshape, a transpose, a reshape; the block's own channels stay together."""
    x, dims = t.get(node, 0), t.dims(node.inputs[0])
    if x is None or dims is None or len(dims) != 4:
        unknown(t, node)
        return
    n, c, h, w = dims
    b = integer(node, "blocksize", 1)
    words = where(node)
    if node.op_type == "SpaceToDepth":
        wide = regroup(t, x, dims, (n, c, h // b, b, w // b, b), words)
        moved = tuple(wide[p] for p in (0, 3, 5, 1, 2, 4))
        t.put(
            node.outputs[0],
            regroup(t, moved, (n, b, b, c, h // b, w // b), (n, c * b * b, h // b, w // b), words),
        )
        return
    crd = text(node, "mode", "DCR") == "CRD"
    split_dims: tuple[int, ...] = (n, c // (b * b), b, b, h, w) if crd else (n, b, b, c // (b * b), h, w)
    perm: tuple[int, ...] = (0, 1, 4, 2, 5, 3) if crd else (0, 3, 4, 1, 5, 2)
    wide = regroup(t, x, dims, split_dims, words)
    for k in (2, 3) if crd else (1, 2):
        t.fix(wide[k], f"becomes space at {words}")
    moved = tuple(wide[p] for p in perm)
    order = tuple(split_dims[p] for p in perm)
    t.put(node.outputs[0], regroup(t, moved, order, (n, c // (b * b), h * b, w * b), words))


@rule("Resize", "Upsample")
def resize(t: Trace, node: ir.Node) -> None:
    """Axes that keep their size keep their labels."""
    x, dims, out = t.get(node, 0), t.dims(node.inputs[0]), t.dims(node.outputs[0])
    if x is None or dims is None or out is None:
        unknown(t, node)
        return
    for axis, size, new in zip(x, dims, out, strict=True):
        if size != new:
            t.fix(axis, f"is interpolated at {where(node)}")
    labels = tuple(axis if size == new else None for axis, size, new in zip(x, dims, out, strict=True))
    t.put(node.outputs[0], labels)
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    if sizes is not None and "axes" not in node.attributes:
        t.repair(Rescaled(node, 3, labels))
