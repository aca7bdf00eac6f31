"""Repair after a cut: every layer behind it is fitted anew to what the original layer gave.

In graph order, each layer with weights gets the input that the narrower, already repaired model feeds
it, and the original's output (before the activation) as the target; ridge least squares does the rest.
Where the output is added to a branch that is already computed, the target makes up for that branch too.
Unlabelled calibration data suffice.

Sources: He, Zhang & Sun, Channel Pruning for Accelerating Very Deep Neural Networks, 2017, section 3.1
(reconstruction); Zhang et al., Accelerating Very Deep Convolutional Networks, 2015 (sequential, asymmetric);
residual targets as in He et al., section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from studio.engine.edit import set_constant
from studio.engine.execute import Array
from studio.engine.execute.stepper import Stepper
from studio.engine.graph import constant, graphs, holder, subgraphs
from studio.engine.groups.cut import Twins
from studio.engine.groups.grouping import kept
from studio.engine.groups.trace import Trace
from studio.engine.pruning.bodies import Bodies, changed, in_order
from studio.engine.pruning.least_squares import Bounds, Fit, Problem, Rows, at_once
from studio.engine.pruning.linear import Linear, linear
from studio.engine.pruning.moments import fit_budget, sample
from studio.engine.pruning.recurrent import Cell, is_cell, refit_cell


@dataclass(frozen=True)
class Target:
    """One layer to refit.

    Attributes:
        old, new: its node in the original and in the cut model.
        before, after: its linear maps there.
        bias: the value in the cut model that takes the intercept; None = no intercept.
        added: the bias is added by a node of its own, the layer's output is without it.
        affine: (scale, shift) per output channel between the layer and the sum; None = none.
        total: the sum (in the original) that the output ends in, and the other operand; None = no sum.
    """

    old: ir.Node
    new: ir.Node
    before: Linear
    after: Linear
    bias: ir.Value | None
    added: bool
    affine: tuple[Array, Array] | None
    total: tuple[ir.Value, ir.Value] | None

    @property
    def joins(self) -> bool:
        """Whether it can be fitted together with another layer whose output is added to its own."""
        return self.after.groups == 1 and self.bias is not None and not self.added and self.plain

    @property
    def plain(self) -> bool:
        """Whether nothing scales or shifts the output on its way to the sum."""
        return self.affine is not None and bool((self.affine[0] == 1).all() and (self.affine[1] == 0).all())


@dataclass(frozen=True)
class _Read:
    """Rows (1, n, cols) of one feed that a layer read, and at which positions."""

    at: Array
    x: Array


@dataclass(frozen=True)
class _Wanted:
    """What a layer's output should be, for every feed, at the channels that stay.

    Attributes:
        ys: the targets.
        aware: they make up for the branch that the output is added to.
        beside: that branch, where an activation looks at the bare sum of both; empty elsewhere.
    """

    ys: list[Array]
    aware: bool = False
    beside: list[Array] = field(default_factory=list)


@dataclass(frozen=True)
class Refitted:
    """What refit did to one layer: relative squared error of its output before and after."""

    key: str
    before: float
    after: float


class Refit:
    """Sequential refit of a cut model against its original.

    Args:
        trace: of the original.
        gone: mask over all atoms.
        twins: the cut model as the twin of the original.
        feeds: calibration samples, all of them.
        seed: of the choice of rows.
        threads: of onnxruntime.
    """

    def __init__(
        self,
        trace: Trace,
        gone: Array,
        twins: Twins,
        feeds: Sequence[dict[str, Array]],
        seed: int,
        threads: int = 0,
    ) -> None:
        self._trace, self._gone, self._twins = trace, gone, twins
        every = (node for _path, graph in graphs(trace.model) for node in graph)
        self._order = {node: index for index, node in enumerate(every)}
        self._rng = np.random.default_rng(seed)
        self._bodies = Bodies(trace, gone, twins, feeds, threads)
        self._original: Stepper
        self._cut: Stepper
        self._waiting: dict[ir.Value, tuple[Target, list[_Read]]] = {}

    def targets(self) -> list[Target | Cell]:
        """The layers to fit anew, in order."""
        found: list[Target | Cell] = []
        for node in behind(self._trace, self._gone):
            twin = self._twins.nodes[node]
            if twin.graph is not None and is_cell(node):
                found.append(Cell(node, twin))
            elif twin.graph is not None and (target := self._target(node, twin)) is not None:
                found.append(target)
        return found

    def run(self, target: Target | Cell) -> Refitted | None:
        """Fit one layer; call in the order of `targets`. None where no sample comes by: it stays as it was cut."""
        here = self._bodies.around(target.old)
        if here is None:
            return None
        self._original, self._cut = here.original, here.cut
        if isinstance(target, Cell):
            errors = refit_cell(target, self._trace, self._gone, self._original, self._cut, self._rng)
            return Refitted(target.old.outputs[0].name or "", *errors)
        xs = self._cut.get(_value(target.new.inputs[0]))
        wanted = self._wanted(target)
        partner = self._waiting.pop(target.total[0], None) if target.total is not None else None
        together = partner is not None and wanted.aware
        problem = self._problem(target, wanted, partner[0] if partner is not None and wanted.aware else None)
        share = -(-fit_budget(target.after) // max(1, len(xs)))
        if partner is not None:
            places = [read.at for read in partner[1]]
        else:
            places = [sample(self._rng, target.after.positions(y.shape), share) for y in wanted.ys]

        def teach(feeds: range) -> list[Array]:
            """Add the rows of some feeds to the problem; what the layer read."""
            found = []
            for number in feeds:
                rows = _rows(target, wanted, number, xs[number], places[number])
                found.append(rows.x)
                if partner is not None and together:
                    other = partner[1][number].x
                    rows = Rows(
                        np.concatenate([other, rows.x], axis=2), rows.y + self._now(partner[0], other)
                    )
                problem.add(rows, number if len(xs) > 1 else None)
            return found

        turns = [range(first, len(xs), 2) for first in range(min(2, len(xs)))]
        read = at_once(teach, turns)
        if not wanted.aware and target.total is not None and target.joins:
            kept_rows = [_Read(at, read[n % 2][n // 2]) for n, at in enumerate(places)]
            self._waiting[target.total[0]] = (target, kept_rows)
            self._cut.keep(_value(target.new.inputs[0]))
        if partner is not None:
            self._cut.release(_value(partner[0].new.inputs[0]))
        if partner is not None and together:
            result = self._store_pair(partner[0], target, problem)
            self._cut.redo(partner[0].new)
            return result
        return self._store(target, problem)

    # ------------------------------------------------------------------ choosing

    def _target(self, node: ir.Node, twin: ir.Node) -> Target | None:
        old, new = constant(node.inputs[1]), constant(twin.inputs[1])
        if old is None or new is None:
            return None
        before = linear(node, tuple(int(d) for d in old.shape.numpy()))
        after = linear(twin, tuple(int(d) for d in new.shape.numpy()))
        if before is None or after is None:
            return None
        bias = holder(twin.inputs[2]) if len(twin.inputs) > 2 else None
        added = bias is None and node.op_type == "MatMul"
        if added:
            bias = _added_bias(twin)
        if bias is not None and len(bias.uses()) > 1:
            bias = None
        affine, total = _following(node, self._trace)
        return Target(node, twin, before, after, bias, added, affine, total)

    # ------------------------------------------------------------------ fitting

    def _wanted(self, target: Target) -> _Wanted:
        output = target.old.outputs[0]
        axis = -1 if target.before.kind == "matrix" else 1
        mask = self._mask(output, axis)
        ys = self._original.get(output)
        bias = constant(target.bias) if target.added else None
        offset = np.float32(0) if bias is None else bias.numpy()
        if target.total is not None:
            whole, branch = target.total
            twin = self._twins.values[branch]
            if self._cut.known(twin) or not self._depends(branch, target.old):
                sums, others = self._original.get(whole), self._cut.get(twin)
                branch_mask = self._mask(whole, axis)
                if branch_mask.sum() == others[0].shape[axis]:
                    rest = [_compress(s, branch_mask, axis) - o for s, o in zip(sums, others, strict=True)]
                    bare = target.plain and not target.added and _bounds(whole) is not None
                    return _Wanted(
                        [_inverted(w, target.affine, mask, axis) + offset for w in rest],
                        aware=True,
                        beside=[np.broadcast_to(o, s.shape) for o, s in zip(others, rest, strict=True)]
                        if bare
                        else [],
                    )
        return _Wanted([_compress(y, mask, axis) + offset for y in ys])

    def _depends(self, value: ir.Value, node: ir.Node) -> bool:
        """Whether computing a value in the cut model would run `node` or a layer that comes after it."""
        limit = self._order[node]
        pending, seen = [value], {value}
        while pending:
            producer = pending.pop().producer()
            if producer is None:
                continue
            later = self._order[producer] > limit
            if producer is node or (
                later and (linear_weight(producer) or any(True for _ in subgraphs(producer)))
            ):
                return True
            for v in producer.inputs:
                if v is not None and v not in seen:
                    seen.add(v)
                    pending.append(v)
        return False

    def _mask(self, value: ir.Value, axis: int) -> Array:
        labels = self._trace.labels.get(value)
        if labels is None or labels[axis] is None:
            dims = self._trace.dims(value)
            return np.ones(dims[axis] if dims else 0, bool)
        return kept(self._trace, self._gone, np.asarray(labels[axis]))

    def _problem(self, target: Target, wanted: _Wanted, partner: Target | None) -> Problem:
        """What will be solved: for one layer, or for two side by side whose outputs are added."""
        groups, rows, cols = _matrix(target).shape
        if partner is not None:
            cols += _matrix(partner).shape[2]
        summed = target.total is not None and (partner is not None or bool(wanted.beside))
        seen = target.total[0] if summed and target.total is not None else target.old.outputs[0]
        return Problem((groups, rows, cols), _bounds(seen) if groups == 1 else None)

    def _store(self, target: Target, problem: Problem) -> Refitted:
        w0 = _matrix(target).astype(np.float64)
        bias = constant(target.bias)
        old = (
            np.zeros(w0.shape[:2]) if bias is None else bias.numpy().astype(np.float64).reshape(w0.shape[:2])
        )
        found = problem.solve(w0, old, intercept=bias is not None)
        _set(target, found.w, found.b)
        return _refitted(target, found)

    def _now(self, target: Target, x: Array) -> Array:
        """What a layer that was fitted gives for rows (1, n, cols) of its input."""
        return np.asarray(x @ _matrix(target).transpose(0, 2, 1) + _offset(target).astype(np.float32))

    def _store_pair(self, first: Target, second: Target, problem: Problem) -> Refitted:
        """Fit two layers together whose outputs are added: their inputs side by side, one bias for both."""
        weights = [_matrix(target).astype(np.float64) for target in (first, second)]
        biases = [_offset(target).astype(np.float64) for target in (first, second)]
        found = problem.solve(np.concatenate(weights, axis=2), (biases[0] + biases[1])[None], intercept=True)
        border = weights[0].shape[2]
        _set(first, found.w[:, :, :border], biases[0])
        _set(second, found.w[:, :, border:], found.b - biases[0])
        return _refitted(second, found)


def _rows(target: Target, wanted: _Wanted, number: int, x: Array, at: Array) -> Rows:
    """Rows of one feed: what the layer reads at some positions, and what it should give there."""
    y = wanted.ys[number]
    return Rows(
        target.after.rows(x, y.shape, at),
        target.after.targets(y, at),
        target.after.targets(wanted.beside[number], at) if wanted.beside else 0.0,
    )


def _refitted(target: Target, found: Fit) -> Refitted:
    return Refitted(target.old.outputs[0].name or "", float(found.before.mean()), float(found.error.mean()))


def _matrix(target: Target) -> Array:
    """The present weight in the cut model (groups, rows, cols)."""
    weight = constant(target.new.inputs[1])
    if weight is None:
        raise ValueError("a layer without weights")
    return target.after.matrix(weight.numpy())


def _offset(target: Target) -> Array:
    """The present bias in the cut model (rows,)."""
    bias = constant(target.bias)
    if bias is None:
        raise ValueError("a layer without a bias")
    return bias.numpy().reshape(-1)


def linear_weight(node: ir.Node) -> bool:
    """Whether a node multiplies by stored weights."""
    return node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"} and any(
        constant(v) is not None for v in node.inputs[1:2]
    )


def _following(
    node: ir.Node, trace: Trace
) -> tuple[tuple[Array, Array] | None, tuple[ir.Value, ir.Value] | None]:
    """What lies between a layer and the sum that its output is an operand of: scale and shift per channel."""
    scale: Array | float = 1.0
    shift: Array | float = 0.0
    value = node.outputs[0]
    for _ in range(4):
        users = tuple(value.uses())
        if len(users) != 1 or value.is_graph_output():
            break
        user = users[0].node
        if user.op_type == "BatchNormalization" and users[0].idx == 0:
            tensors = [constant(v) for v in user.inputs[1:5]]
            if any(tensor is None for tensor in tensors):
                break
            gain, offset, mean, var = (t.numpy().astype(np.float64) for t in tensors if t is not None)
            epsilon = user.attributes["epsilon"].as_float() if "epsilon" in user.attributes else 1e-5
            factor = gain / np.sqrt(var + epsilon)
            scale, shift = scale * factor, shift * factor + offset - mean * factor
        elif user.op_type == "Add":
            other = user.inputs[1 - users[0].idx]
            tensor = constant(other)
            if tensor is None:
                if other is None or trace.dims(other) != trace.dims(value):
                    break
                length = (trace.dims(node.outputs[0]) or (0,))[
                    -1 if node.op_type in {"MatMul", "Gemm"} else 1
                ]
                return (np.broadcast_to(scale, length), np.broadcast_to(shift, length)), (
                    user.outputs[0],
                    other,
                )
            vector = tensor.numpy().astype(np.float64)
            if vector.size != max(vector.shape, default=1):
                break
            shift = shift + vector.reshape(-1)
        else:
            break
        value = user.outputs[0]
    return None, None


def _added_bias(node: ir.Node) -> ir.Value | None:
    """The constant vector that the only user of a MatMul adds."""
    users = tuple(node.outputs[0].uses())
    if len(users) != 1 or users[0].node.op_type != "Add":
        return None
    held = holder(users[0].node.inputs[1 - users[0].idx])
    tensor = constant(held)
    return held if tensor is not None and len(tensor.shape) == 1 and tensor.size > 1 else None


def _inverted(y: Array, affine: tuple[Array, Array] | None, mask: Array, axis: int) -> Array:
    """The layer's output from what scale and shift make of it."""
    if affine is None:
        return y
    shape = [-1 if k == axis % y.ndim else 1 for k in range(y.ndim)]
    scale, shift = (part[mask].reshape(shape) for part in affine)
    safe = np.where(np.abs(scale) < 1e-6, 1.0, scale)
    return np.asarray((y - shift) / safe, np.float32)


def _compress(y: Array, mask: Array, axis: int) -> Array:
    return y if mask.all() else np.compress(mask, y, axis=axis)


def _value(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise ValueError("a missing input")
    return value


def _set(target: Target, matrices: Array, bias: Array) -> None:
    """Store matrices (groups, rows, cols) and a bias."""
    value = _value(target.new.inputs[1])
    old, held = constant(value), constant(target.bias)
    if old is not None:
        data = target.after.weight(matrices).astype(old.dtype.numpy())
        set_constant(value, ir.tensor(data, name=old.name))
    if held is not None and target.bias is not None:
        data = bias.reshape(held.shape.numpy()).astype(held.dtype.numpy())
        set_constant(target.bias, ir.tensor(data, name=held.name))


def _bounds(value: ir.Value) -> Bounds | None:
    """Between which values the only user of a value lets it through; None where that is no simple activation."""
    users = tuple(value.uses())
    if len(users) != 1 or value.is_graph_output():
        return None
    node = users[0].node
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    low, high = _limit(node, 1, "min", -np.inf), _limit(node, 2, "max", np.inf)
    return None if low is None or high is None else (low, high)


def _limit(node: ir.Node, position: int, name: str, default: float) -> float | None:
    """A bound of a Clip: input, attribute (before opset 11) or default; None where it is computed."""
    value = node.inputs[position] if position < len(node.inputs) else None
    tensor = constant(value)
    if tensor is not None:
        return float(tensor.numpy().reshape(-1)[0])
    if value is not None:
        return None
    return node.attributes[name].as_float() if name in node.attributes else default


def behind(trace: Trace, gone: Array) -> list[ir.Node]:
    """Layers whose input a cut changes, in order, those in bodies too; shared weights are left out."""
    cut = {r.node for r in trace.readings if not kept(trace, gone, r.labels).all()}
    dirty = changed(trace.model, cut)
    found: list[ir.Node] = []
    for node in in_order(trace.model.graph):
        if node not in cut and not any(v in dirty for v in node.inputs):
            continue
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        tensor = constant(weight)
        if tensor is None or weight is None or tensor.dtype not in {ir.DataType.FLOAT, ir.DataType.FLOAT16}:
            continue
        alone = holder(weight) is weight and len(weight.uses()) == 1
        if is_cell(node) or (alone and linear(node, tuple(int(d) for d in tensor.shape.numpy())) is not None):
            found.append(node)
    return found
