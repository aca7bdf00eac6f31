"""Other ways to write a convolution as smaller ones, applied one after the other.

- *spatial*: kh×1 with r filters, then 1×kw. W as a matrix ((c, i), (j, o)) has rank r.
- *depthwise*: m filters of its own for every input channel, then 1×1. For every channel c the matrix
  ((i, j), o) has rank m.
- *tucker*: 1×1 to fewer channels, k×k between few channels, 1×1 back (Tucker-2 by higher-order singular value
  decomposition); the ranks of inputs and outputs shrink together.
- *cp*: 1×1, one k×k filter for every channel, 1×1. W(c, ij, o) = Σ_r a_r(c)·b_r(ij)·d_r(o), by alternating least
  squares at a few ranks.

All are solved in the metric M = L·Lᵀ of the outputs: W·L is decomposed, and L⁻¹ goes into the last factor.

Source: Jaderberg, Vedaldi, Zisserman 2014, *Speeding up Convolutional Neural Networks with Low Rank Expansions*,
scheme 2; Guo et al. 2018, *Network Decoupling*; Kim et al. 2016, *Compression of Deep Convolutional Neural Networks
for Fast and Low Power Mobile Applications* (Tucker-2); Lebedev et al. 2015, *Speeding-up Convolutional Neural
Networks Using Fine-tuned CP-Decomposition*; De Lathauwer et al. 2000, *A Multilinear SVD*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array: TypeAlias = npt.NDArray[Any]
Form: TypeAlias = Literal["channels", "spatial", "depthwise", "tucker", "cp"]
Shape: TypeAlias = tuple[int, ...]

_CP_RANKS = 8  # at which the alternating least squares are solved
_CP_ROUNDS = 25
_CP_RIDGE = 1e-6


@dataclass(frozen=True)
class Factors:
    """A convolution taken apart.

    Attributes:
        tail: squared error left at every rank, from 0 on.
        parts: factors at full rank; of a cp at the ranks in `ranked` only.
        ranked: factors by rank.
    """

    tail: Array
    parts: tuple[Array, ...] = ()
    ranked: Mapping[int, tuple[Array, ...]] = field(default_factory=dict)


def form_for(node: ir.Node, shape: Sequence[int], wanted: Form) -> Form:
    """The form that a layer gets: the wanted one where its kernel has it, else the plain one."""
    kernel = shape[2:]
    if node.op_type != "Conv" or wanted == "channels":
        return "channels"
    if wanted == "spatial":
        return "spatial" if len(kernel) == 2 and min(kernel) > 1 else "channels"
    return wanted if int(np.prod(kernel)) > 1 else "channels"


def factor_shapes(form: Form, shape: Sequence[int], rank: int) -> tuple[Shape, ...]:
    """Shapes of all weights at a rank, in the order in which they are applied; `shape` is (out, in, *kernel)."""
    out, channels, *kernel = shape
    ones = [1] * len(kernel)
    if form == "spatial":
        return (rank, channels, kernel[0], 1), (out, rank, 1, kernel[1])
    if form == "depthwise":
        return (channels * rank, 1, *kernel), (out, channels * rank, *ones)
    if form == "tucker":
        into, back = _tucker_ranks(shape, rank)
        return (into, channels, *ones), (back, into, *kernel), (out, back, *ones)
    return (rank, channels, *ones), (rank, 1, *kernel), (out, rank, *ones)


def sizes(form: Form, shape: Sequence[int], ranks: int) -> Array:
    """Weights that every rank from 0 to `ranks` costs."""
    found = [sum(int(np.prod(s)) for s in factor_shapes(form, shape, r)) for r in range(1, ranks + 1)]
    return np.array([0, *found])


def _tucker_ranks(shape: Sequence[int], rank: int) -> tuple[int, int]:
    """(channels after the first 1×1, channels before the last), in the proportion of inputs and outputs."""
    out, channels = shape[:2]
    widest = max(out, channels)
    return -(-channels * rank // widest), -(-out * rank // widest)


# ------------------------------------------------------------------ taking apart


def decompose(form: Form, weight: Array, metric: Array) -> Factors:
    """Errors by rank, and the factors.

    Args:
        form: any but 'channels'.
        weight: (out, in, *kernel).
        metric: L (out, out).
    """
    out, channels, *kernel = weight.shape
    inverse = np.linalg.inv(metric)
    taps = int(np.prod(kernel))
    if form == "spatial":
        moved = weight.transpose(1, 2, 3, 0) @ metric  # (in, kh, kw, out)
        u, s, vt = np.linalg.svd(moved.reshape(channels * kernel[0], -1), full_matrices=False)
        first = (u * np.sqrt(s)).T.reshape(-1, channels, kernel[0], 1)
        second = (np.sqrt(s)[:, None] * vt).reshape(-1, kernel[1], out) @ inverse
        return Factors(_left(s**2), (first, second.transpose(0, 2, 1)[:, :, None, :]))  # (r, out, 1, kw)
    moved = weight.reshape(out, channels, taps).transpose(1, 2, 0) @ metric  # (in, taps, out)
    if form == "depthwise":
        u, s, vt = np.linalg.svd(moved, full_matrices=False)  # (in, taps, m), (in, m), (in, m, out)
        root = np.sqrt(s)
        first = (u * root[:, None, :]).transpose(2, 0, 1).reshape(-1, channels, *kernel)  # (m, in, *kernel)
        second = ((root[:, :, None] * vt) @ inverse).transpose(1, 0, 2)  # (m, in, out)
        return Factors(_left((s**2).sum(0)), (first, second))
    if form == "tucker":
        return _tucker(moved, inverse, weight.shape)
    return _cp(moved, inverse, weight.shape)


def _left(energies: Array) -> Array:
    """What is left out at every rank."""
    total = np.concatenate(([0.0], np.cumsum(energies)))
    return np.asarray(np.maximum(total[-1] - total, 0.0))


def _leading(moved: Array, axis: int) -> Array:
    """Orthonormal directions of one axis, those with most energy first."""
    rows = np.moveaxis(moved, axis, 0).reshape(moved.shape[axis], -1)
    return np.asarray(np.linalg.eigh(rows @ rows.T)[1][:, ::-1])


def _tucker(moved: Array, inverse: Array, shape: Shape) -> Factors:
    into, back = _leading(moved, 0), _leading(moved, 2)
    core = np.einsum("cto,ca,ob->bat", moved, into, back, optimize=True)  # (back, into, taps)
    kept = np.square(core).sum(-1).cumsum(0).cumsum(1)
    ranks = (_tucker_ranks(shape, r) for r in range(1, max(shape[:2]) + 1))
    left = [kept[-1, -1] - kept[b - 1, a - 1] for a, b in ranks]
    tail = np.maximum([kept[-1, -1], *left], 0.0)
    return Factors(tail, (into.T, core.reshape(*core.shape[:2], *shape[2:]), inverse.T @ back))


def _cp(moved: Array, inverse: Array, shape: Shape) -> Factors:
    channels, taps, out = moved.shape
    edge = max(1, (moved.size - 1) // (channels + taps + out))  # the largest rank that saves anything
    grid = np.unique([1, *np.geomspace(max(1, edge // 16), edge, _CP_RANKS).astype(int)])
    total = float(np.square(moved).sum())
    tail = np.full(edge + 1, total)
    ranked = {}
    for rank in (int(r) for r in grid):
        a, b, d = _alternate(moved, rank)
        error = float(np.square(moved - np.einsum("cr,tr,or->cto", a, b, d, optimize=True)).sum())
        tail[rank:] = min(error, tail[rank])
        ranked[rank] = (a.T, b.T.reshape(rank, 1, *shape[2:]), inverse.T @ d)
    return Factors(tail, ranked=ranked)


def _alternate(moved: Array, rank: int) -> tuple[Array, Array, Array]:
    """Factors (in, r), (taps, r), (out, r) with the least squared error, from the leading directions."""
    random = np.random.default_rng(0)
    factors = []
    for axis, size in enumerate(moved.shape):
        start = random.normal(size=(size, rank)) / np.sqrt(size)
        known = min(rank, size)
        start[:, :known] = _leading(moved, axis)[:, :known]
        factors.append(start)
    flat = [np.moveaxis(moved, axis, 0).reshape(moved.shape[axis], -1) for axis in range(3)]
    for _ in range(_CP_ROUNDS):
        for axis in range(3):
            one, two = (factors[i] for i in range(3) if i != axis)
            products = (one[:, None] * two[None]).reshape(-1, rank)
            gram = (one.T @ one) * (two.T @ two)
            ridge = _CP_RIDGE * float(np.trace(gram)) / rank * np.eye(rank)
            factors[axis] = np.linalg.solve(gram + ridge, (flat[axis] @ products).T).T
    norms = [np.maximum(np.linalg.norm(f, axis=0), 1e-30) for f in factors]
    even = np.prod(norms, axis=0) ** (1 / 3)
    a, b, d = (f / n * even for f, n in zip(factors, norms, strict=True))
    return a, b, d


# ------------------------------------------------------------------ putting together


def cut(form: Form, factors: Factors, shape: Sequence[int], rank: int) -> tuple[Array, ...]:
    """The weights as the nodes take them."""
    wanted = factor_shapes(form, shape, rank)
    if form == "cp":
        return tuple(part.reshape(s) for part, s in zip(factors.ranked[rank], wanted, strict=True))
    if form == "tucker":
        into, back = _tucker_ranks(shape, rank)
        first, core, last = factors.parts
        parts = (first[:into], core[:back, :into], last[:, :back])
        return tuple(part.reshape(s) for part, s in zip(parts, wanted, strict=True))
    first, second = factors.parts
    if form == "spatial":
        return first[:rank], np.ascontiguousarray(second[:rank].swapaxes(0, 1))
    filters, mix = first[:rank].swapaxes(0, 1), second[:rank].swapaxes(0, 1)  # (in, m, *kernel), (in, m, out)
    return filters.reshape(wanted[0]), mix.reshape(-1, shape[0]).T.reshape(wanted[1])


def attributes(form: Form, node: ir.Node, shape: Sequence[int], rank: int) -> tuple[dict[str, Any], ...]:
    """Attributes of all convolutions, in the order in which they are applied."""
    own = {name: a.value for name, a in node.attributes.items()}
    ones = [1] * (len(shape) - 2)
    plain: dict[str, Any] = {"kernel_shape": ones}
    if form == "depthwise":
        return own | {"group": shape[1]}, plain
    if form == "tucker":
        return plain, own, plain
    if form == "cp":
        return plain, own | {"group": rank}, plain
    strides, dilations = (list(own.get(n) or ones) for n in ("strides", "dilations"))
    pads = list(own.get("pads") or [0, 0, 0, 0])
    auto = {"auto_pad": own["auto_pad"]} if own.get("auto_pad", "NOTSET") != "NOTSET" else {}
    down = {"kernel_shape": [shape[2], 1], "strides": [strides[0], 1], "dilations": [dilations[0], 1]}
    across = {"kernel_shape": [1, shape[3]], "strides": [1, strides[1]], "dilations": [1, dilations[1]]}
    if auto:
        return down | auto, across | auto
    return down | {"pads": [pads[0], 0, pads[2], 0]}, across | {"pads": [0, pads[1], 0, pads[3]]}


def between(
    form: Form, x: Sequence[int | str], y: Sequence[int | str], shape: Sequence[int], rank: int
) -> tuple[tuple[int | str, ...], ...]:
    """Shapes of the values between the convolutions; `x` and `y` are those of input and output."""
    widths = [s[0] for s in factor_shapes(form, shape, rank)[:-1]]
    if form == "spatial":
        return ((y[0], widths[0], y[2], x[3]),)
    if form == "depthwise":
        return ((y[0], widths[0], *y[2:]),)
    return (y[0], widths[0], *x[2:]), (y[0], widths[1], *y[2:])
