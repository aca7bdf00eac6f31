"""Moving outliers from activations into weights, where one scale a channel can take them.

Equation: x W = (x / s) (diag(s) W), exactly. s_k = max|x_k|^α / max|w_k|^(1−α), with α searched for the least error of the
integer product on sampled rows; α = none leaves the layer as it is.

Source: Xiao et al. 2023, "SmoothQuant", eq. 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.base.progress import Progress
from studio.engine import edit, execute
from studio.engine.graph import Model, Shapes, constant, node_key
from studio.engine.quantization import grids
from studio.engine.quantization.calibrate import Feed
from studio.engine.quantization.storage import matrix_view

Array: TypeAlias = npt.NDArray[Any]

_STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_ROWS_A_FEED = 64
_ROWS = 512
_TINY = 1e-5
# Share of the mean peak that a channel is thought to reach if it was silent in the samples.
_SILENT = 0.05


@dataclass
class Rows:
    """What a layer reads: the largest magnitude by channel; some rows, and the range of each channel in their run."""

    peak: Array | None = None
    _parts: list[tuple[Array, Array, Array]] = field(default_factory=list)

    def add(self, rows: Array) -> None:
        """Take in the rows (n, k) of one run."""
        low, high = rows.min(axis=0), rows.max(axis=0)
        peak = np.maximum(-low, high)
        self.peak = peak if self.peak is None else np.maximum(self.peak, peak)
        step = max(1, len(rows) // _ROWS_A_FEED) | 1
        self._parts.append((rows[::step].copy(), low, high))

    @property
    def sample(self) -> Sample:
        """At most a few hundred rows, evenly spread."""
        step = max(1, -(-sum(len(rows) for rows, _, _ in self._parts) // _ROWS))
        run = np.concatenate([np.full(len(rows), i) for i, (rows, _, _) in enumerate(self._parts)])
        rows = np.concatenate([rows for rows, _, _ in self._parts])
        low, high = (np.stack([part[i] for part in self._parts]) for i in (1, 2))
        return Sample(rows[::step].astype(np.float32), run[::step], low, high)


@dataclass(frozen=True)
class Sample:
    """Rows (n, k), the run (n,) of each, and what each channel reaches in every run, (runs, k)."""

    rows: Array
    run: Array
    low: Array
    high: Array

    def rounded(self, s: Array) -> Array:
        """The rows divided by factors, on the grid that dynamic quantization gives them: one for all of a run."""
        low, high = (self.low / s).min(axis=1), (self.high / s).max(axis=1)
        grid = grids.affine(low[self.run][:, None], high[self.run][:, None])
        return grid.snap(self.rows / s)


def watch_rows(
    model: Model,
    names: Sequence[str],
    feeds: Iterable[Feed],
    progress: Progress | None = None,
    *,
    total: int = 0,
    threads: int = 0,
) -> Mapping[str, Rows]:
    """Rows (along the last axis) of float values of the main graph, by name."""
    found = {name: Rows() for name in names}
    for values in execute.stream(model, list(names), feeds, progress, threads, total=total):
        for name, value in values.items():
            if value.size:
                found[name].add(value.reshape(-1, value.shape[-1]))
    return found


def migration(rows: Rows, weights: Sequence[Array]) -> Array:
    """The factor s by input channel (k,) for layers that read the same rows; ones where nothing helps.

    Args:
        rows: what they read.
        weights: (k, n) of each.
    """
    assert rows.peak is not None
    sample, w = rows.sample, np.concatenate(weights, axis=1)
    wanted = sample.rows @ w
    reach = np.maximum(np.abs(w).max(axis=1), _TINY)
    peak = np.maximum(rows.peak, max(_TINY, _SILENT * float(rows.peak.mean())))
    best, least = np.ones_like(peak), _noise(sample, w, np.ones_like(peak), wanted)
    for strength in _STRENGTHS:
        s = peak**strength / reach ** (1 - strength)
        s = (s / np.exp(np.log(s).mean())).astype(np.float32)
        noise = _noise(sample, w, s, wanted)
        if noise < least:
            best, least = s, noise
    return best.astype(np.float32)


def _noise(sample: Sample, w: Array, s: Array, wanted: Array) -> float:
    scaled = w * s[:, None]
    return float(np.square(sample.rounded(s) @ grids.symmetric(scaled, (0,), 8).snap(scaled) - wanted).sum())


_NONLINEAR = {
    "Relu", "Gelu", "FastGelu", "QuickGelu", "Erf", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu",
    "Selu", "Softplus", "Mish", "Swish", "Clip", "PRelu", "Celu", "ThresholdedRelu", "BiasGelu",
}  # fmt: skip
_PASSED = {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast"}


def behind_nonlinearity(node: ir.Node, shapes: Shapes) -> bool:
    """Whether what a layer reads comes out of an activation function or a gate, not of a norm or a sum."""
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None:
        computed = [v for v in producer.inputs if v is not None and constant(v) is None]
        if producer.op_type in _NONLINEAR:
            return True
        if producer.op_type == "Mul" and len(computed) == 2:
            # A norm multiplies by one number a row; a gate by as many numbers as there are.
            sizes = [dims[-1] if (dims := shapes.of(v)) else None for v in computed]
            return 1 not in sizes
        if producer.op_type in _PASSED or (producer.op_type in {"Mul", "Add", "Div"} and len(computed) == 1):
            value = computed[0] if computed else None
            continue
        return False
    return False


def several_rows(node: ir.Node, shapes: Shapes, model: Model) -> bool:
    """Whether a layer reads more rows than there are samples, as far as shapes tell: rows of tokens, say."""
    dims = shapes.of(node.inputs[0])
    given = [d for value in model.graph.inputs if (d := shapes.of(value))]
    if dims is None or not given or not all(isinstance(d, int) for d in (*dims, *(d[0] for d in given))):
        return True
    return math.prod(int(d) for d in dims[:-1]) > max(int(d[0]) for d in given)


def write(model: Model, keys: Sequence[str], rows: Mapping[str, Rows] | None) -> None:
    """Divide what matrix products read by factors and multiply their weights by them.

    A norm whose result nobody else reads takes the division into its gain and shift, at no cost.

    Args:
        model: changed in place.
        keys: of MatMul and plain Gemm nodes of the main graph with constant 2-D weights.
        rows: what they read, by value name; None writes factors of one (for plans).
    """
    nodes = {node_key(n): n for n in model.graph}
    groups: dict[ir.Value, list[ir.Node]] = {}
    for key in keys:
        source = nodes[key].inputs[0]
        assert source is not None
        groups.setdefault(source, []).append(nodes[key])
    for source, readers in groups.items():
        views = [matrix_view(node, 1) for node in readers]
        width = views[0][1] if views[0] is not None else 0
        flips = [view is not None and not view[2] for view in views]
        factors = np.ones(width, np.float32)
        if rows is not None:
            matrices = [
                _numbers(n).T if flip else _numbers(n) for n, flip in zip(readers, flips, strict=True)
            ]
            factors = migration(rows[source.name or ""], matrices)
        norm = _norm_before(source, readers, width)
        if norm is None:
            _divide(model, source, readers, factors)
        else:
            for owner, position in norm:
                _rescale(model, owner, position, 1 / factors)
        for node, flip in zip(readers, flips, strict=True):
            if rows is not None:
                _scale_rows(model, node, factors if flip else factors[:, None])


def _divide(model: Model, source: ir.Value, readers: Sequence[ir.Node], factors: Array) -> None:
    """Put a product with 1 / factors between a value and its readers."""
    inverse = edit.add_constant(
        model, model.graph, f"{source.name}_smoothing", (1 / factors).astype(np.float32)
    )
    new = edit.make_node(
        model, "Mul", [source, inverse], name=f"{source.name}_smoothed", dtype=ir.DataType.FLOAT
    )
    new.outputs[0].shape = source.shape
    model.graph.insert_before(readers[0], new)
    for node in readers:
        node.replace_input_with(0, new.outputs[0])


_NORMS = {"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"}


def _norm_before(
    source: ir.Value, readers: Sequence[ir.Node], width: int
) -> list[tuple[ir.Node, int]] | None:
    """(node, input) of the gain and shift that can take the factors, where nobody else reads what they make."""
    found: list[tuple[ir.Node, int]] = []
    value, users = source, set(readers)
    while not value.is_graph_output() and {use.node for use in value.uses()} == users:
        node = value.producer()
        if node is None or node.op_type not in {*_NORMS, "Mul", "Add"}:
            return None
        if node.op_type in _NORMS:
            own = [i for i in (1, 2) if i < len(node.inputs) and node.inputs[i] is not None]
            fits = all(_is_vector(node.inputs[i], width) for i in own) and 1 in own
            return [*found, *((node, i) for i in own)] if fits and node.outputs[0] is value else None
        positions = [i for i, v in enumerate(node.inputs) if _is_vector(v, width)]
        if len(positions) != 1:
            return None
        found.append((node, positions[0]))
        other = node.inputs[1 - positions[0]]
        if node.op_type == "Mul" or other is None:
            return found if other is not None else None
        value, users = other, {node}
    return None


def _is_vector(value: ir.Value | None, width: int) -> bool:
    """Whether a value is a stored number for every feature."""
    tensor = constant(value)
    return tensor is not None and tensor.size == width == int(tensor.shape.numpy()[-1] if tensor.shape else 1)


def _rescale(model: Model, node: ir.Node, position: int, factors: Array) -> None:
    """Multiply a stored vector that a node reads, for that node alone."""
    value, tensor = node.inputs[position], constant(node.inputs[position])
    assert value is not None
    assert tensor is not None
    scaled = (tensor.numpy() * factors).astype(np.float32)
    node.replace_input_with(position, edit.add_constant(model, model.graph, value.name or "gain", scaled))


def _numbers(node: ir.Node) -> Array:
    tensor = constant(node.inputs[1])
    assert tensor is not None
    return tensor.numpy()


def _scale_rows(model: Model, node: ir.Node, factors: Array) -> None:
    """Multiply a layer's own weights; weights that others use too are copied first."""
    scaled = (_numbers(node) * factors).astype(np.float32)
    name = node.inputs[1].name or "weight"  # type: ignore[union-attr]
    node.replace_input_with(1, edit.add_constant(model, model.graph, name, scaled))
