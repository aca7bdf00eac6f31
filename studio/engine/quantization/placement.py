"""Where quantized activations lie so that onnxruntime's integer kernels fuse around them.

A *site* is a value that is stored as 8-bit integers: QuantizeLinear behind its producer (and the activation fused to
it), DequantizeLinear before its users. A node runs on integers when every float input and its output are sites; found
by trying in onnxruntime 1.32: Conv, MatMul, Gemm, Add, Mul, Concat, AveragePool, GlobalAveragePool, LeakyRelu, Sigmoid
(a table of 256 entries), and whatever only moves values. MaxPool could, but is slower than in float, conversions included. Scale-keeping nodes get
the same grid on both sides, or they would not stay on integers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from studio.engine.graph import Model, constant
from studio.engine.quantization.simplify import array, sole_consumer

LAYERS = {"Conv", "MatMul", "Gemm"}
_BIASED = {"Conv", "Gemm"}
_JOINS = {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"}
MOVES = {
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "Resize",
    "DepthToSpace",
}
_ACTIVATIONS = {"Relu", "Clip"}
# Below, x · sigmoid(x) is a third of a percent at most, less than half a step of any grid that reaches so far.
_SILU_DEAD = -8.0
# Where sigmoid(x) is within half a step of 0 or 1, the steps being 1/255.
_GATE_SHUT = 6.24
_DATA_INPUTS = {"Reshape": 1, "Squeeze": 1, "Unsqueeze": 1, "Slice": 1, "Split": 1, "Resize": 1}


@dataclass(frozen=True, eq=False)
class Site:
    """One value stored as integers.

    Attributes:
        first: what QuantizeLinear reads.
        last: what DequantizeLinear stands for: factor · first + shift. Ranges are taken of it.
        factor / shift: scalar arithmetic between the two that the grids on both sides express for free.
        low / high: bounds that an activation function guarantees.
        absorbed: all readers are layers with biases, which can take in what the grid cannot hold of the shift.
    """

    first: ir.Value
    last: ir.Value
    factor: float = 1.0
    shift: float = 0.0
    low: float = -np.inf
    high: float = np.inf
    absorbed: bool = False


@dataclass
class Placement:
    """What runs on integers.

    Attributes:
        nodes: those that do, in graph order.
        sites: by the name of `last`.
        grids: name of a site -> name of the site whose grid it shares (itself, or the first it was carried from).
        reasons: why a wanted layer does not run on integers, by node.
    """

    nodes: list[ir.Node] = field(default_factory=list)
    sites: dict[str, Site] = field(default_factory=dict)
    grids: dict[str, str] = field(default_factory=dict)
    reasons: dict[ir.Node, str] = field(default_factory=dict)


def place(model: Model, wanted: set[ir.Node]) -> Placement:
    """Decide which nodes run on integers, given the layers that shall.

    Args:
        model: simplified; its main graph is looked at.
        wanted: Conv, MatMul and Gemm nodes with constant weights.
    """
    integer = _spread(model, wanted)
    placed = Placement(nodes=[n for n in model.graph if n in integer])
    for node in placed.nodes:
        if node.op_type in {"MatMul", "Gemm"} and not _feeds_integer(node, integer):
            continue  # their kernels write floats as well
        for value in node.outputs:
            site = site_of(value)
            absorbed = all(user in wanted and user.op_type in _BIASED for user, _ in site.last.uses())
            placed.sites[site.last.name or ""] = replace(site, absorbed=absorbed)
    for node in placed.nodes:
        for value in data_inputs(node):
            if constant(value) is None:
                placed.sites.setdefault(value.name or "", Site(value, value))
    _share_grids(placed)
    return placed


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs of an integer node that carry activations (or constants joined with them)."""
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type in LAYERS:
        return inputs[:1] if node.op_type != "MatMul" or constant(node.inputs[1]) is not None else inputs[:2]
    return inputs[: _DATA_INPUTS.get(node.op_type, len(inputs))]


def _spread(model: Model, wanted: set[ir.Node]) -> set[ir.Node]:
    """The wanted layers and every node between them that has an integer kernel."""
    read = {v for node in wanted for v in data_inputs(node)}
    made: set[ir.Value] = set()
    integer: set[ir.Node] = set()
    for node in model.graph:
        if node in wanted:
            integer.add(node)
            made.update(_through(v) for v in node.outputs)
        elif _has_kernel(node):
            inputs = data_inputs(node)
            computed = [v for v in inputs if constant(v) is None]
            if computed and all(v in made or v in read for v in computed):
                integer.add(node)
                made.update(_through(v) for v in node.outputs)
    for node in reversed(list(model.graph)):  # what only floats read stays in float
        if node in integer and node not in wanted and not _feeds_integer(node, integer):
            integer.discard(node)
    return integer


def _has_kernel(node: ir.Node) -> bool:
    if node.domain not in {"", "ai.onnx"}:
        return False
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    if node.op_type in {"Add", "Mul"}:
        return all(v is not None and v.dtype in {None, ir.DataType.FLOAT} for v in node.inputs) and not any(
            (a := array(v)) is not None and a.dtype != np.float32 for v in node.inputs
        )
    return node.op_type in _JOINS | MOVES


def _through(value: ir.Value) -> ir.Value:
    """The value behind the activation function and the scalar arithmetic that can be fused to `value`'s producer."""
    return site_of(value).last


def _feeds_integer(node: ir.Node, integer: set[ir.Node]) -> bool:
    return any(user in integer for v in node.outputs for user, _ in _through(v).uses())


def site_of(value: ir.Value) -> Site:
    """The site that begins at a node's output."""
    first, low, high = value, -np.inf, np.inf
    producer = value.producer()
    if producer is not None and producer.op_type not in MOVES:
        after = sole_consumer(value)
        if after is not None and after.op_type in _ACTIVATIONS and after.inputs[0] is value:
            clipped = limits(after)
            if clipped is not None:
                first, (low, high) = after.outputs[0], clipped
    last, factor, shift = first, 1.0, 0.0
    if producer is not None and producer.op_type not in MOVES:
        while (after := sole_consumer(last)) is not None:
            step = scalar_step(after, last)
            if step is None or factor * step[0] <= 0:
                break
            factor, shift = factor * step[0], shift * step[0] + step[1]
            last = after.outputs[0]
    dead_below, dead_above = _dead(last)
    bounds = (max(low * factor + shift, dead_below), min(high * factor + shift, dead_above))
    return Site(first, last, factor, shift, *bounds)


def _dead(value: ir.Value) -> tuple[float, float]:
    """The numbers below and above which all values do the same, or next to the same.

    x · clip(x + c, 0, …), as in hardswish, is zero below −c; x · sigmoid(x), or SiLU, is next to nothing below −8; a gate
    sigmoid(x), in 8 bits, is 0 or 1 out there.
    """
    users = [user for user, _ in value.uses()]
    nothing = (-np.inf, np.inf)
    if value.is_graph_output() or not 1 <= len(users) <= 2:
        return nothing
    if len(users) == 1:
        gate = users[0].op_type == "Sigmoid" and _only_multiplied(users[0].outputs[0])
        return (-_GATE_SHUT, _GATE_SHUT) if gate else nothing
    for first, second in (users, reversed(users)):
        if second.op_type == "Mul" and (zero := _zero_of_gate(first, second, value)) is not None:
            return zero, np.inf
    return nothing


def _only_multiplied(value: ir.Value) -> bool:
    return not value.is_graph_output() and all(user.op_type == "Mul" for user, _ in value.uses())


def _zero_of_gate(gate: ir.Node, product: ir.Node, value: ir.Value) -> float | None:
    """Below which number x · gate(x) is zero; None where `product` is no such product."""
    if gate.op_type == "Sigmoid":
        return _SILU_DEAD if set(product.inputs) == {value, gate.outputs[0]} else None
    step = scalar_step(gate, value)
    clip = sole_consumer(gate.outputs[0])
    if step is None or step[0] != 1 or step[1] < 0 or clip is None or clip.op_type not in _ACTIVATIONS:
        return None
    bounds = limits(clip)
    if bounds is None or bounds[0] != 0 or set(product.inputs) != {value, _through(clip.outputs[0])}:
        return None
    return -step[1]


def limits(node: ir.Node) -> tuple[float, float] | None:
    """Between which numbers a Relu or Clip keeps what it makes; None when they are computed."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    given = [array(v) if v is not None else np.asarray(np.nan) for v in (*node.inputs[1:], None, None)[:2]]
    if any(g is None for g in given):
        return None
    low, high = (float(np.asarray(g).ravel()[0]) for g in given)
    return (-np.inf if np.isnan(low) else low), (np.inf if np.isnan(high) else high)


def scalar_step(node: ir.Node, value: ir.Value) -> tuple[float, float] | None:
    """(a, b) when the node computes a · value + b with scalar constants."""
    if node.op_type not in {"Mul", "Add", "Div", "Sub"} or len(node.inputs) != 2:
        return None
    position = 0 if node.inputs[0] is value else 1
    other = array(node.inputs[1 - position])
    if (
        other is None
        or other.size != 1
        or other.ndim > 1
        or (position == 1 and node.op_type in {"Div", "Sub"})
    ):
        return None
    c = float(other.ravel()[0])
    match node.op_type:
        case "Mul":
            return c, 0.0
        case "Div":
            return (1 / c, 0.0) if c else None
        case "Add":
            return 1.0, c
        case _:
            return 1.0, -c


def _share_grids(placed: Placement) -> None:
    """Values that are only moved keep the grid they came with."""
    by_first = {site.first: name for name, site in placed.sites.items()}
    placed.grids = {name: name for name in placed.sites}
    for node in placed.nodes:
        if node.op_type in MOVES:
            source = data_inputs(node)[0].name or ""
            for output in node.outputs:
                if output in by_first and source in placed.grids:
                    placed.grids[by_first[output]] = placed.grids[source]
