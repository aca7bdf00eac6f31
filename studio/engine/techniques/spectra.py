"""What each direction of a layer's output is worth: eigenvalues and the factors that keep the leading ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.base.progress import Progress
from studio.engine import execute
from studio.engine.dataset import Dataset
from studio.engine.graph import constant, holder
from studio.engine.layers import LayerNode, Listing
from studio.engine.techniques.conv_forms import Factors, Form, decompose, form_for
from studio.engine.techniques.conv_forms import sizes as sizes_of

Array: TypeAlias = npt.NDArray[Any]

_GRADIENT_BATCH = 8  # samples whose activations and gradients are held at a time
_METRIC_RIDGE = 1e-3  # share of an even metric: directions that no sampled answer felt still count a little


@dataclass(frozen=True)
class Spectrum:
    """One layer as a matrix (rows, columns) = (in, out).

    Attributes:
        tail: error left at every rank, from 0 to the full one; the last is 0.
        form: how the layer is written as two, or three.
        sizes: weights that every rank costs, as long as `tail`.
        measured: the error is one of outputs on data, not of weights.
        bias: name of the constant that can take the mean; '' where there is none.
        adds_bias: the node can get a bias of its own for it.
        left / right: P and R at full rank.
        taken_apart: of a convolution in another form.
        mean: of x·W, where a bias can take it.
    """

    rows: int
    columns: int
    tail: Array
    measured: bool
    bias: str = ""
    adds_bias: bool = False
    left: Array = field(default_factory=lambda: np.empty((0, 0)), repr=False)
    right: Array = field(default_factory=lambda: np.empty((0, 0)), repr=False)
    mean: Array | None = None
    form: Form = "channels"
    sizes: Array = field(default_factory=lambda: np.empty(0), repr=False)
    taken_apart: Factors | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not len(self.sizes):
            object.__setattr__(self, "sizes", (self.rows + self.columns) * np.arange(len(self.tail)))

    @property
    def size(self) -> int:
        """Weights of the whole matrix."""
        return self.rows * self.columns

    @property
    def break_even(self) -> int:
        """The smallest rank that saves nothing."""
        saving = np.flatnonzero(self.sizes < self.size)
        return int(saving[-1]) + 1

    def factors(self, rank: int, matrix: Array) -> tuple[Array, Array, Array | None]:
        """(rows, rank), (rank, columns), and what the bias must gain (columns,) or None.

        Args:
            rank: how many directions stay.
            matrix: the weights W (rows, columns).
        """
        project, restore = self.left[:, :rank], self.right[:rank]
        offset = None if self.mean is None else self.mean - (self.mean @ project) @ restore
        left = matrix @ project
        balance = np.sqrt(np.linalg.norm(restore, axis=1) / np.maximum(np.linalg.norm(left, axis=0), 1e-30))
        return left * balance, restore / balance[:, None], offset


def matrix_of(layer: LayerNode) -> Array:
    """The weights as (in, out) in float64."""
    tensor = constant(layer.weight)
    assert tensor is not None
    weight = np.asarray(tensor.numpy(), np.float64)
    if layer.node.op_type == "Conv":
        return weight.reshape(weight.shape[0], -1).T
    attr = layer.node.attributes.get("transB")
    return weight.T if attr is not None and attr.as_int() else weight


def spectra(
    listing: Listing,
    layers: Mapping[str, LayerNode],
    data: Dataset | None,
    progress: Progress,
    seed: int,
    threads: int,
    wanted: Form = "channels",
) -> dict[str, Spectrum]:
    """Spectra of layers, on data where it is given and the layer lies in the main graph."""
    moments = {} if data is None else _moments(listing, layers, data, progress.part(0, 0.7), seed, threads)
    result = {}
    for done, (name, layer) in enumerate(layers.items()):
        progress.tick(0.7 + 0.3 * done / len(layers), f"{name}: spectrum")
        matrix = matrix_of(layer)
        form = form_for(layer.node, layer.record.weight_shape, wanted)
        if form != "channels":
            result[name] = _in_form(layer, form, moments.get(name))
        elif name in moments and moments[name].count:
            result[name] = _on_data(layer, matrix, moments[name])
        else:
            result[name] = _of_weights(matrix)
    return result


def _of_weights(matrix: Array) -> Spectrum:
    """Plain singular values, as shares of the whole."""
    _u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    rows, columns = matrix.shape
    shares = s**2 / max(float((s**2).sum()), 1e-30)
    return Spectrum(rows, columns, _tail(shares), measured=False, left=vt.T, right=vt)


def _in_form(layer: LayerNode, form: Form, moments: _Moments | None) -> Spectrum:
    """A convolution in another form: the metric of its outputs where known, inputs taken as all alike."""
    tensor = constant(layer.weight)
    assert tensor is not None
    weight = np.asarray(tensor.numpy(), np.float64)
    out, power = weight.shape[0], 1 / max(float(np.square(weight).sum()), 1e-30)
    metric = np.eye(out)
    known = moments is not None and moments.count > 0 and moments.basis is None
    if moments is not None and known:
        mean = moments.total / moments.count
        cov = moments.square / moments.count - np.outer(mean, mean)
        metric = _metric_factor(moments, cov, out / (out + moments.count))
        power *= float(np.trace(cov))
    found = decompose(form, weight, metric)
    matrix = matrix_of(layer)
    return Spectrum(
        matrix.shape[0], matrix.shape[1], found.tail * power, measured=known, form=form,
        sizes=sizes_of(form, weight.shape, len(found.tail) - 1), taken_apart=found,
    )  # fmt: skip


def _tail(energies: Array) -> Array:
    """What is left out at every rank."""
    total = np.concatenate(([0.0], np.cumsum(energies)))
    left: Array = np.maximum(total[-1] - total, 0.0)
    return left


@dataclass
class _Moments:
    """Sums over rows of z and z·zᵀ, z being the layer's output y in `basis`, and g·gᵀ of its gradients.

    Attributes:
        basis: (columns, size), orthonormal; where a layer widens, y − bias lies in the few directions that W
            reaches, and everything is done in those.
    """

    basis: Array | None
    size: int
    count: int = 0
    total: Array = field(init=False)
    square: Array = field(init=False)
    metric: Array | None = None

    def __post_init__(self) -> None:
        self.total = np.zeros(self.size)
        self.square = np.zeros((self.size, self.size))

    @classmethod
    def of(cls, matrix: Array) -> _Moments:
        """For a layer with weights `matrix` (rows, columns)."""
        rows, columns = matrix.shape
        if rows >= columns:
            return cls(None, columns)
        basis = np.linalg.svd(matrix, full_matrices=False)[2].T
        return cls(basis.astype(np.float32), rows)

    def add(self, rows: Array, grads: Array | None) -> None:
        """More rows (n, columns)."""
        z = self._within(rows)
        self.count += len(z)
        self.total += z.sum(0, dtype=np.float64)
        self.square += z.T @ z
        if grads is not None:
            g = self._within(grads)
            self.metric = (0.0 if self.metric is None else self.metric) + (g.T @ g).astype(np.float64)

    def _within(self, rows: Array) -> Array:
        return rows if self.basis is None else np.asarray(rows @ self.basis)


def _moments(
    listing: Listing,
    layers: Mapping[str, LayerNode],
    data: Dataset,
    progress: Progress,
    seed: int,
    threads: int,
) -> dict[str, _Moments]:
    inside = {n: layer for n, layer in layers.items() if not layer.path}
    if not inside:
        return {}
    found = {n: _Moments.of(matrix_of(layer)) for n, layer in inside.items()}
    names = {n: layer.node.outputs[0].name or "" for n, layer in inside.items()}
    for values, grads in _activations(listing, sorted(set(names.values())), data, progress, seed, threads):
        for name, value in names.items():
            axis = 1 if inside[name].node.op_type == "Conv" else -1
            found[name].add(_rows(values[value], axis), _rows(grads[value], axis) if grads else None)
    return found


def _rows(value: Array, axis: int) -> Array:
    rows: Array = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
    return rows


def _activations(
    listing: Listing, names: list[str], data: Dataset, progress: Progress, seed: int, threads: int
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Values and gradients where the model can be differentiated, else values alone."""
    from studio.engine.trainable import gradients, unsupported

    total = data.runs(_GRADIENT_BATCH)
    feeds = data.feeds(_GRADIENT_BATCH)
    if unsupported(listing.model):
        for values in execute.stream(listing.model, names, feeds, progress, threads, total=total):
            yield values, {}
    else:
        yield from gradients(listing.model, names, feeds, seed, progress, total)


def _on_data(layer: LayerNode, matrix: Array, moments: _Moments) -> Spectrum:
    """Eigenvalues of LᵀCL; see the technique."""
    bias, adds = _bias_of(layer)
    mean = moments.total / moments.count
    cov = moments.square / moments.count
    if bias or adds:
        cov = cov - np.outer(mean, mean)
    doubt = len(cov) / (len(cov) + moments.count)
    cov = (1 - doubt) * cov + doubt * _expected(matrix, moments.basis, float(np.trace(cov)))
    scale = _metric_factor(moments, cov, doubt)
    energies, vectors = np.linalg.eigh(scale.T @ cov @ scale)
    order = np.argsort(energies)[::-1][: min(matrix.shape)]
    energies, vectors = np.maximum(energies[order], 0.0), vectors[:, order]
    left, right = scale @ vectors, np.linalg.solve(scale.T, vectors).T
    pure = None  # the mean of x·W, without the bias
    if bias or adds:
        offset = _bias_values(layer, bias, matrix.shape[1])
        pure = mean - (offset if moments.basis is None else moments.basis.T @ offset)
    if moments.basis is not None:
        left, right = moments.basis @ left, right @ moments.basis.T
        pure = None if pure is None else moments.basis @ pure
    return Spectrum(
        matrix.shape[0],
        matrix.shape[1],
        _tail(energies),
        True,
        bias,
        adds,
        left=left,
        right=right,
        mean=pure,
    )


def _expected(matrix: Array, basis: Array | None, trace: float) -> Array:
    """The covariance of z for inputs that are all alike, which is what few samples are mixed with."""
    reached = matrix if basis is None else matrix @ basis
    plain: Array = reached.T @ reached
    expected: Array = plain * (trace / max(float(np.trace(plain)), 1e-30))
    return expected


def _metric_factor(moments: _Moments, cov: Array, doubt: float) -> Array:
    """L of the metric M = L·Lᵀ: the answer's Fisher information, or the inverse of the total variance."""
    size = len(cov)
    if moments.metric is None:
        even: Array = np.eye(size) / np.sqrt(max(float(np.trace(cov)), 1e-30))
        return even
    metric = moments.metric
    mean = float(np.trace(metric)) / size
    if not np.isfinite(mean) or mean <= 0:
        return np.eye(size) * 1e-15  # the answer does not depend on this layer
    share = max(doubt, _METRIC_RIDGE)
    factor: Array = np.linalg.cholesky((1 - share) * metric + share * mean * np.eye(size))
    return factor


def _bias_of(layer: LayerNode) -> tuple[str, bool]:
    """The constant that can take the mean, and whether the node can get a new one."""
    node = layer.node
    if node.op_type in ("Conv", "Gemm"):
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return "", True
        return _only_here(node.inputs[2], layer), False
    users = list(node.outputs[0].uses())
    if len(users) == 1 and users[0][0].op_type == "Add" and not node.outputs[0].is_graph_output():
        other = users[0][0].inputs[1 - users[0][1]]
        return _only_here(other, layer), False
    return "", False


def _only_here(value: ir.Value | None, layer: LayerNode) -> str:
    held, tensor = holder(value), constant(value)
    columns = matrix_of(layer).shape[1]
    if held is None or tensor is None or len(held.uses()) != 1 or tuple(tensor.shape.numpy()) != (columns,):
        return ""
    return held.name or ""


def _bias_values(layer: LayerNode, bias: str, columns: int) -> Array:
    """What the node itself adds to x·W."""
    if not bias or layer.node.op_type == "MatMul":
        return np.zeros(columns)
    tensor = constant(layer.node.inputs[2])
    assert tensor is not None
    values: Array = np.asarray(tensor.numpy(), np.float64).reshape(columns)
    return values
