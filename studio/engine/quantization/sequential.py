"""Weights rounded layer after layer, each making up for what the ones before have lost.

Equation: layer by layer in the order of the graph, min over codes Q of Σ_t m_t ‖W x_t − Ŵ(Q) x̂_t‖², where x is what
the layer reads in the original, x̂ what it reads behind the layers that are rounded already, and m_t is 0 for rows
that no answer depends on (padding). First without the grid, W* = W + W A (H + λI)⁻¹ with H = Σ m x̂ x̂ᵀ and
A = Σ m (x − x̂) x̂ᵀ, then W* is rounded with error feedback in the metric H. λ is the one of a few that serves the
other half of the samples best; "leave W as it is" is among them.

Source: Li et al. 2025, "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration"; Zhang et al. 2015,
"Accelerating Very Deep Convolutional Networks", §3.2 (the target of the original, the input of the approximation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.base.progress import Progress
from studio.engine import edit
from studio.engine.execute.stepper import Stepper
from studio.engine.graph import Model, constant, copy, holder, node_key
from studio.engine.quantization import storage, weight_only
from studio.engine.quantization.blocks import Blocks
from studio.engine.quantization.moments import CELLS, rows_of, weight_key
from studio.records.steps import QuantizeWeights

Array: TypeAlias = npt.NDArray[Any]

# λ as a share of the mean of H's diagonal.
_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
_PRODUCTS = {"Conv", "MatMul", "Gemm"}


@dataclass
class Sums:
    """H and A of one layer over one half of the samples, (groups, k, k) each."""

    h: Array
    a: Array

    def plus(self, other: Sums) -> Sums:
        """Over both halves."""
        return Sums(self.h + other.h, self.a + other.a)


@dataclass
class Samples:
    """What the layers are run on.

    Attributes:
        feeds: all of them.
        half: 0 or 1 for each; a made-up feed lies in the half of the one it was made from.
        rows: by node key, for every feed 1 for each row that answers depend on; layers without an entry use all.
    """

    feeds: Sequence[Mapping[str, Array]]
    half: Sequence[int]
    rows: Mapping[str, Sequence[Array]] = field(default_factory=dict)


class InOrder:
    """Fits the weights of a model's main graph one after the other.

    Args:
        model: left untouched.
        keys: of the nodes whose weights are to be rounded.
        settings: bits, block size, form.
        samples: what to fit to.
        threads: of the runtime.
        moments: by `weight_key`, of what recurrent layers read.
    """

    def __init__(
        self,
        model: Model,
        keys: Sequence[str],
        settings: QuantizeWeights,
        samples: Samples,
        threads: int,
        moments: Mapping[str, Array] | None = None,
    ) -> None:
        self._settings, self._samples, self._moments = settings, samples, moments or {}
        twin = copy(model)
        self._twins = {node_key(n): n for n in twin.graph}
        wanted = set(keys)
        self._nodes = [n for n in model.graph if node_key(n) in wanted]
        self._before = Stepper(model, samples.feeds, threads)
        self._after = Stepper(twin, samples.feeds, threads)

    def fit(self, progress: Progress) -> dict[str, Blocks]:
        """Codes and grids by the name of the constant; weights that are computed in the graph are left out."""
        found: dict[str, Blocks] = {}
        for node in self._nodes:  # tables and recurrent layers first: what they lose can be made up for
            if node.op_type not in _PRODUCTS:
                self._fit(node, None, found)
        products = [n for n in self._nodes if n.op_type in _PRODUCTS]
        for done, node in enumerate(progress.over(products, _words)):
            here = done / len(products)
            self._fit(node, self._sums(node, progress.part(here, here)), found)
        return found

    def _fit(self, node: ir.Node, halves: list[Sums] | None, found: dict[str, Blocks]) -> None:
        twin, settings = self._twins[node_key(node)], self._settings
        kind = weight_only.form(node, settings)
        for position in weight_only.positions(node):
            value, tensor = node.inputs[position], constant(node.inputs[position])
            stored = value is not None and holder(value) is value and value.name not in found
            if not stored or tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
                continue
            if tensor.size < weight_only.SMALLEST:
                continue
            shape = tuple(int(d) for d in tensor.shape.numpy())
            matrix = storage.matrix_view(node, position)
            _n, _k, size, symmetric = weight_only.layout(node, shape, kind, matrix, settings)
            w = weight_only.as_matrix(tensor.numpy(), shape, node, matrix)
            known = self._moments.get(weight_key("", node, position)) if node.op_type in CELLS else None
            if halves is not None:
                w, known = corrected(w, halves), halves[0].plus(halves[1]).h
            fitted = weight_only.fit(w, size, kind, settings, known, symmetric=symmetric)
            real = fitted.real()
            plain = real.T if matrix is not None and matrix[2] else real
            edit.set_constant(twin.inputs[position], ir.tensor(np.ascontiguousarray(plain).reshape(shape)))  # type: ignore[arg-type]
            found[value.name or ""] = fitted  # type: ignore[union-attr]

    def _sums(self, node: ir.Node, progress: Progress) -> list[Sums] | None:
        """H and A of both halves of the samples; None where the layer has no rows or too long ones."""
        source, twin = node.inputs[0], self._twins[node_key(node)].inputs[0]
        assert source is not None
        assert twin is not None
        weights = self._samples.rows.get(node_key(node))
        halves: dict[int, Sums] = {}
        befores, afters = self._before.get(source, progress), self._after.get(twin, progress)
        pairs = zip(befores, afters, self._samples.half, strict=True)
        for number, (before, after, half) in enumerate(pairs):
            x, seen = rows_of(node, before), rows_of(node, after)
            if not seen.size:
                return None
            if weights is not None:
                chosen = weights[number] > 0
                x, seen = x[:, chosen], seen[:, chosen]
            turned = seen.transpose(0, 2, 1)
            new = Sums(np.matmul(turned, seen), np.matmul((x - seen).transpose(0, 2, 1), seen))
            halves[half] = new if half not in halves else halves[half].plus(new)
        if len(halves) < 2:
            return None
        return [halves[0], halves[1]]


def corrected(w: Array, halves: Sequence[Sums]) -> Array:
    """W* for (n, k) weights, with the λ that a fit to one half shows to serve the other best."""
    groups = len(halves[0].h)
    parts = w.reshape(groups, -1, w.shape[1]).astype(np.float32)
    gain = np.zeros(len(_RIDGES))
    for index, ridge in enumerate(_RIDGES):
        for fitted, held in (halves, halves[::-1]):
            change = _change(parts, fitted, ridge)
            # Σ ‖W x − W* x̂‖² on the held half, less what it is for W* = W.
            gain[index] += np.sum(np.matmul(change, held.h) * change) - 2 * np.sum(
                np.matmul(parts, held.a) * change
            )
    best = int(gain.argmin())
    if gain[best] >= 0:
        return w
    both = halves[0].plus(halves[1])
    return np.asarray((parts + _change(parts, both, _RIDGES[best])).reshape(w.shape), np.float32)


def _change(w: Array, sums: Sums, ridge: float) -> Array:
    """W A (H + λI)⁻¹ for (groups, n, k) weights."""
    from scipy import linalg  # takes a while to load

    result = np.empty_like(w)
    for group, (h, a) in enumerate(zip(sums.h, sums.a, strict=True)):
        damped = h + np.eye(len(h), dtype=h.dtype) * max(ridge * float(np.trace(h)) / len(h), 1e-12)
        result[group] = linalg.solve(damped, (w[group] @ a).T, assume_a="pos").T
    return result


def _words(node: ir.Node) -> str:
    return f"Rounding {node_key(node)}"
