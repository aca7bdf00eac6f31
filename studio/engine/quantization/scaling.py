"""Activation-aware scaling: weights that meet large inputs get a finer part of their block's grid.

Equation: x W = (x / s) (diag(s) W), exactly. s_k = (E x_k²)^(α/2), α searched for the least error
tr((W − Ŵ) E[x xᵀ] (W − Ŵ)ᵀ) of the rounded weights of all layers that share x, error feedback included. The division is
folded into what makes x: the gain and shift of a norm, or the weights of a product with nothing but a shift, a Relu or a
gate in between; where x comes from elsewhere, nothing is scaled. So the model keeps its structure.

Source: Lin et al. 2024, "AWQ: Activation-aware Weight Quantization", §3.2, eqs. 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.base.progress import Progress
from studio.engine import edit
from studio.engine.graph import Model, constant, copy, holder, node_key
from studio.engine.quantization import rounding, storage, weight_only
from studio.records.steps import QuantizeWeights

Array: TypeAlias = npt.NDArray[Any]

_STRENGTHS = (0.2, 0.4, 0.6)
# Rows of a weight that strengths are compared on.
_ROWS = 64
# A scaling must do this much better: with error feedback little is left to gain, and the data are few.
_BETTER = 0.9
# No input counts for less than this share of the mean.
_FAINT = 1e-3
_NORMS = {"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"}


@dataclass(frozen=True)
class Scaled:
    """A model that answers alike, with other weights.

    Attributes:
        model: with the inputs of some layers scaled.
        moments: of what the layers read now, by node key.
        layers: how many read scaled inputs.
    """

    model: Model
    moments: Mapping[str, Array]
    layers: int


def scale_inputs(
    model: Model,
    keys: Sequence[str],
    moments: Mapping[str, Array],
    settings: QuantizeWeights,
    progress: Progress | None = None,
) -> Scaled:
    """Scale what the layers read wherever that pays and costs nothing.

    Args:
        model: left untouched.
        keys: of nodes of the main graph whose weights are to be rounded.
        moments: (1, k, k) second moments of what they read, by key; a layer without is left alone.
        settings: of the rounding.
        progress: ticked once a group.
    """
    result, found, count = copy(model), dict(moments), 0
    wanted = set(keys)
    groups: dict[ir.Value, list[ir.Node]] = {}
    for node in result.graph:
        if node_key(node) in wanted and node.op_type in {"MatMul", "Gemm"} and node.inputs[0] is not None:
            groups.setdefault(node.inputs[0], []).append(node)
    together = groups.items()
    for source, readers in together if progress is None else progress.over(list(together), _words):
        if not all(_own(node, 1) and node_key(node) in found for node in readers):
            continue
        width = found[node_key(readers[0])].shape[-1]
        makers = _makers(source, set(readers), width)
        s = None if makers is None else _factors(readers, found, settings)
        if makers is None or s is None:
            continue
        for node, position, axis in makers:
            _multiply(node, position, axis, 1 / s)
        for node in readers:
            _multiply(node, 1, 0 if _turned(node) else 1, s)
            found[node_key(node)] = (found[node_key(node)] / np.outer(s, s)).astype(np.float32)
        count += len(readers)
    return Scaled(result, found, count)


def _factors(
    readers: Sequence[ir.Node], moments: Mapping[str, Array], settings: QuantizeWeights
) -> Array | None:
    """The factor by input (k,) that loses least; None where no scaling is clearly better."""
    hessian = moments[node_key(readers[0])][0]
    size = np.sqrt(np.maximum(np.diag(hessian), 0))
    size = np.maximum(size, max(_FAINT * float(size.mean()), 1e-20))
    weights = [_rows(node) for node in readers]
    best, least = None, _BETTER * _lost(readers, weights, hessian, np.ones_like(size), settings)
    for strength in _STRENGTHS:
        s = size**strength
        s = (s / np.exp(np.log(s).mean())).astype(np.float32)
        if (lost := _lost(readers, weights, hessian, s, settings)) < least:
            best, least = s, lost
    return best


def _lost(
    readers: Sequence[ir.Node], weights: Sequence[Array], hessian: Array, s: Array, settings: QuantizeWeights
) -> float:
    """What rounding loses of the layers' outputs when their inputs are divided by s."""
    metric, total = (hessian / np.outer(s, s)).astype(np.float32), 0.0
    for node, w in zip(readers, weights, strict=True):
        kind = weight_only.form(node, settings)
        fitted = weight_only.fit(
            w * s, settings.block, kind, settings, metric[None], symmetric=settings.symmetric
        )
        total += rounding.loss(w * s, fitted.real(), metric)
    return total


def _rows(node: ir.Node) -> Array:
    """Some evenly spread rows (n, k) of a layer's weights, an output a row."""
    tensor = constant(node.inputs[1])
    assert tensor is not None
    w = tensor.numpy().T if _turned(node) else tensor.numpy()
    return np.ascontiguousarray(w[:: max(1, len(w) // _ROWS)], np.float32)


def _turned(node: ir.Node) -> bool:
    """Whether a layer's weights are stored as (k, n)."""
    view = storage.matrix_view(node, 1)
    return view is not None and view[2]


def _own(node: ir.Node, position: int) -> bool:
    """Whether a node reads a stored float matrix that nobody else reads."""
    value, tensor = node.inputs[position], constant(node.inputs[position])
    return (
        value is not None
        and tensor is not None
        and _alone(value)
        and tensor.dtype == ir.DataType.FLOAT
        and storage.matrix_view(node, position) is not None
    )


def _alone(value: ir.Value) -> bool:
    """Whether a value holds a constant itself, for one reader."""
    return holder(value) is value and len(list(value.uses())) == 1 and not value.is_graph_output()


def _makers(value: ir.Value, readers: set[ir.Node], width: int) -> list[tuple[ir.Node, int, int]] | None:
    """(node, input, axis) of all constants that a value is proportional to; None where there is no such set of its own."""
    node = value.producer()
    if node is None or value.is_graph_output() or {use.node for use in value.uses()} != readers:
        return None
    if node.op_type in _NORMS:
        own = [i for i in (1, 2) if i < len(node.inputs) and node.inputs[i] is not None]
        fits = value is node.outputs[0] and 1 in own and all(_vector(node, i, width) for i in own)
        return [(node, i, -1) for i in own] if fits else None
    if node.op_type == "Relu":
        return _makers(node.inputs[0], {node}, width) if node.inputs[0] is not None else None
    if node.op_type in {"MatMul", "Gemm"}:
        return _product(node, width)
    if node.op_type not in {"Add", "Mul"}:
        return None
    vectors = [i for i in (0, 1) if _vector(node, i, width)]
    others = [v for i, v in enumerate(node.inputs) if i not in vectors and v is not None]
    if node.op_type == "Mul":
        if vectors:
            return [(node, vectors[0], -1)]
        gated = (_makers(v, {node}, width) for v in others if len(others) == 2 and others[0] is not others[1])
        return next((found for found in gated if found is not None), None)
    if len(vectors) != 1 or len(others) != 1:
        return None
    before = _makers(others[0], {node}, width)
    return None if before is None else [*before, (node, vectors[0], -1)]


def _product(node: ir.Node, width: int) -> list[tuple[ir.Node, int, int]] | None:
    """A product's own outputs: its weights, and its bias if it has one."""
    view = storage.matrix_view(node, 1)
    if view is None or view[0] != width or not _own(node, 1):
        return None
    found = [(node, 1, 1 if view[2] else 0)]
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return found
    return [*found, (node, 2, -1)] if _vector(node, 2, width) else None


def _vector(node: ir.Node, position: int, width: int) -> bool:
    """Whether an input is a stored float for every feature that nobody else reads."""
    value, tensor = node.inputs[position], constant(node.inputs[position])
    if value is None or tensor is None or not _alone(value):
        return False
    shape = tuple(tensor.shape.numpy())
    return (
        tensor.dtype == ir.DataType.FLOAT and tensor.size == width and bool(shape) and int(shape[-1]) == width
    )


def _multiply(node: ir.Node, position: int, axis: int, factors: Array) -> None:
    value, tensor = node.inputs[position], constant(node.inputs[position])
    assert value is not None
    assert tensor is not None
    numbers = tensor.numpy()
    shape = [1] * numbers.ndim
    shape[axis] = -1
    edit.set_constant(value, ir.tensor((numbers * factors.reshape(shape)).astype(np.float32)))


def _words(group: tuple[ir.Value, list[ir.Node]]) -> str:
    return f"Scaling what {node_key(group[1][0])} reads"
