"""What the small integer values of a graph are at the chosen input sizes: shapes, axes, indices, paddings.

Exporters compute them with nodes (Shape → Gather → Concat → Reshape). Nothing here runs a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine.graph import Shapes, constant

Array: TypeAlias = npt.NDArray[Any]

_LARGEST = 4096  # elements; anything larger is no shape


class Folder:
    """Evaluates values on demand, each once."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._known: dict[ir.Value, Array | None] = {}

    def __call__(self, value: ir.Value | None) -> Array | None:
        """The value as an array; None when it depends on more than shapes."""
        if value is None:
            return None
        pending = [value]
        while pending:
            top = pending[-1]
            if top in self._known:
                pending.pop()
                continue
            needed = [v for v in self._needs(top) if v not in self._known]
            if needed:
                pending.extend(needed)
                continue
            self._known[top] = self._evaluate(top)
            pending.pop()
        return self._known[value]

    def _needs(self, value: ir.Value) -> list[ir.Value]:
        node = value.producer()
        if node is None or node.op_type not in _RULES or constant(value) is not None:
            return []
        return [v for v in node.inputs if v is not None]

    def _evaluate(self, value: ir.Value) -> Array | None:
        tensor = constant(value)
        if tensor is not None:
            small = tensor.size <= _LARGEST and tensor.dtype != ir.DataType.STRING
            return np.asarray(tensor.numpy()) if small else None
        node = value.producer()
        if node is None:
            return None
        if node.op_type in {"Shape", "Size"}:
            return self._shape(node)
        rule = _RULES.get(node.op_type)
        if rule is None or node.domain not in {"", "ai.onnx"}:
            return None
        inputs = [None if v is None else self._known[v] for v in node.inputs]
        if any(v is not None and got is None for v, got in zip(node.inputs, inputs, strict=True)):
            return None
        try:
            found = np.asarray(rule(node, *inputs))
        except (ValueError, IndexError, TypeError, ZeroDivisionError):
            return None  # malformed or of an old form: then it is simply not known
        return found if found.size <= _LARGEST else None

    def _shape(self, node: ir.Node) -> Array | None:
        dims = self._shapes.of(node.inputs[0])
        tensor = constant(node.inputs[0])
        if tensor is not None:
            dims = tuple(int(d) for d in tensor.shape.numpy())
        if dims is None or not all(isinstance(d, int) for d in dims):
            return None
        sizes = np.array(dims, np.int64)
        if node.op_type == "Size":
            return np.array(sizes.prod(), np.int64)
        return sizes[integer(node, "start", 0) : integer(node, "end", len(sizes))]


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    attr = node.attributes.get(name)
    return default if attr is None or attr.is_ref() else attr.as_int()


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """A list attribute; None when missing."""
    attr = node.attributes.get(name)
    return None if attr is None or attr.is_ref() else tuple(attr.as_ints())


def text(node: ir.Node, name: str, default: str) -> str:
    """A text attribute."""
    attr = node.attributes.get(name)
    return default if attr is None or attr.is_ref() else attr.as_string()


def _divide(_node: ir.Node, a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.integer):
        return np.asarray(np.trunc(a / b).astype(a.dtype))  # ONNX divides integers toward zero
    return np.asarray(a / b)


def _axes(node: ir.Node, given: Array | None) -> tuple[int, ...] | None:
    return integers(node, "axes") if given is None else tuple(int(a) for a in given.reshape(-1))


def _squeeze(node: ir.Node, x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, _axes(node, axes))


def _unsqueeze(node: ir.Node, x: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(x, _axes(node, axes) or ())


def _slice(node: ir.Node, x: Array, *given: Array | None) -> Array:
    return x[tuple(slicing(node, x.ndim, *given))]


def slicing(
    node: ir.Node,
    rank: int,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> list[slice]:
    """The Python slices of a Slice node (any opset) with its inputs' values."""
    first = integers(node, "starts") if starts is None else starts.tolist()
    last = integers(node, "ends") if ends is None else ends.tolist()
    if first is None or last is None:
        raise ValueError("a Slice without bounds")
    where = _axes(node, axes) or tuple(range(len(first)))
    stride = [1] * len(first) if steps is None else steps.tolist()
    found = [slice(None)] * rank
    for start, end, axis, step in zip(first, last, where, stride, strict=True):
        stop = None if step < 0 and end < -(1 << 30) else int(end)
        found[axis] = slice(int(start), stop, int(step))
    return found


def _cast(node: ir.Node, x: Array) -> Array:
    return x.astype(ir.DataType(integer(node, "to", 1)).numpy())


def _filled(node: ir.Node, shape: Array) -> Array:
    attr = node.attributes.get("value")
    value = np.zeros(1, np.float32) if attr is None else attr.as_tensor().numpy()
    return np.full(shape.tolist(), value.reshape(-1)[0], value.dtype)


def _reshape(_node: ir.Node, x: Array, shape: Array) -> Array:
    return x.reshape([x.shape[i] if d == 0 else int(d) for i, d in enumerate(shape.tolist())])


_RULES: dict[str, Callable[..., Any]] = {
    "Shape": lambda *_: None,
    "Size": lambda *_: None,
    "Identity": lambda _n, x: x,
    "Gather": lambda n, x, i: np.take(x, i, axis=integer(n, "axis", 0)),
    "Concat": lambda n, *xs: np.concatenate(xs, axis=integer(n, "axis", 0)),
    "Cast": _cast,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Reshape": _reshape,
    "Transpose": lambda n, x: np.transpose(x, integers(n, "perm")),
    "ConstantOfShape": _filled,
    "Expand": lambda _n, x, s: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(s.tolist()))),
    "Range": lambda _n, a, b, c: np.arange(a.item(), b.item(), c.item(), dtype=a.dtype),
    "Add": lambda _n, a, b: a + b,
    "Sub": lambda _n, a, b: a - b,
    "Mul": lambda _n, a, b: a * b,
    "Div": _divide,
    "Mod": lambda _n, a, b: np.mod(a, b),
    "Neg": lambda _n, x: -x,
    "Floor": lambda _n, x: np.floor(x),
    "Ceil": lambda _n, x: np.ceil(x),
    "Sqrt": lambda _n, x: np.sqrt(x),
    "Pow": lambda _n, a, b: np.power(a, b),
    "Min": lambda _n, *xs: np.minimum.reduce(np.broadcast_arrays(*xs)),
    "Max": lambda _n, *xs: np.maximum.reduce(np.broadcast_arrays(*xs)),
    "Equal": lambda _n, a, b: a == b,
    "Less": lambda _n, a, b: a < b,
    "Greater": lambda _n, a, b: a > b,
    "LessOrEqual": lambda _n, a, b: a <= b,
    "GreaterOrEqual": lambda _n, a, b: a >= b,
    "Not": lambda _n, x: ~x,
    "And": lambda _n, a, b: a & b,
    "Or": lambda _n, a, b: a | b,
    "Where": lambda _n, c, a, b: np.where(c, a, b),
    "ReduceProd": lambda n, x, *_: np.prod(x, keepdims=bool(integer(n, "keepdims", 1))),
}
