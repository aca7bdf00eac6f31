"""A model on integers from end to end: simplify, place, observe, write, repair.

Everything between the float model and the finished one goes through `Workshop`: the simplified float model, its
placement, the ranges observed, and `build`, which writes a quantized copy for any choice of weights, ranges and biases.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Model, Shapes, constant, copy, node_key
from studio.engine.quantization import repair
from studio.engine.quantization import weights as integers
from studio.engine.quantization.calibrate import Feed, Observed, Watch
from studio.engine.quantization.hard import contract_hard_swish
from studio.engine.quantization.placement import LAYERS, Placement, place
from studio.engine.quantization.qdq import LayerWeights, Stored, out_axis, write_layer, write_sites
from studio.engine.quantization.simplify import array, simplify
from studio.engine.quantization.widen import widen

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Choice:
    """Numbers for one build.

    Attributes:
        weights: integers by layer key; what is missing is left in float.
        ranges: (low, high) by site.
        biases: float biases by layer key where they differ from the model's.
    """

    weights: Mapping[str, LayerWeights]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    biases: Mapping[str, Array] = field(default_factory=dict)

    def of(self, keys: Collection[str]) -> Choice:
        """The same for fewer layers."""
        biases = {key: bias for key, bias in self.biases.items() if key in keys}
        return Choice({key: self.weights[key] for key in keys}, self.ranges, biases)


@dataclass(frozen=True)
class Integers:
    """What kind of integers a model gets.

    Attributes:
        per_channel: one weight scale an output channel.
        symmetric: weights have no zero points.
        activation_bits: 8, or 16, which onnxruntime's CPU only converts: layers then compute in float.
    """

    per_channel: bool = True
    symmetric: bool = True
    activation_bits: int = 8

    @property
    def opset(self) -> int:
        """The first that has all it takes: one scale a channel, 16-bit Q/DQ."""
        return 13 if self.activation_bits == 8 else 21


class Workshop:
    """The float model, simplified, with the places of its integers.

    Args:
        model: left untouched.
        shapes: of its values.
        keys: first output names of the layers to run on integers.
        grid: what integers the layers get.
    """

    def __init__(
        self, model: Model, shapes: Shapes, keys: Iterable[str], grid: Integers = Integers()
    ) -> None:
        simple, keys = simplify(model, grid.opset, shapes), set(keys)
        if grid.activation_bits == 8:
            widen(simple, keys)
            edit.remove_dead(simple)
        self._settle(simple, shapes, keys, grid)

    def _settle(self, simple: Model, shapes: Shapes, keys: Iterable[str], grid: Integers) -> None:
        self.model, self.shapes, self.grid = simple, shapes, grid
        wanted = set(keys)
        self.layers = {node_key(n): n for n in simple.graph if node_key(n) in wanted and fits(n)}
        self.placed = place(simple, set(self.layers.values()))

    def without(self, keys: Iterable[str]) -> Workshop:
        """The same model with fewer layers on integers."""
        left = Workshop.__new__(Workshop)
        left._settle(self.model, self.shapes, set(self.layers) - set(keys), self.grid)
        return left

    def on(self, model: Model) -> Workshop:
        """The same layers on a model of the same structure with other numbers."""
        other = Workshop.__new__(Workshop)
        other._settle(model, self.shapes, set(self.layers), self.grid)
        return other

    def watches(self) -> list[Watch]:
        """The sites, as values to be watched."""
        found = []
        for name, site in self.placed.sites.items():
            dims = self.shapes.of(name)
            floor = site.low if np.isfinite(site.low) and site.low <= 0 else None
            found.append(Watch(name, 4 if dims is None else len(dims), floor))
        return found

    def source(self, key: str) -> str:
        """The site that a layer reads."""
        return self.layers[key].inputs[0].name or ""  # type: ignore[union-attr]

    def axis(self, key: str) -> int | None:
        """The axis of a layer's weight scales."""
        return out_axis(self.layers[key]) if self.grid.per_channel else None

    def rounded(self, key: str, bits: int) -> LayerWeights:
        """The nearest integers of so many bits for a layer's weights."""
        fit = integers.per_channel if self.grid.symmetric else integers.shifted
        return fit(self.weight(key), self.axis(key), bits)

    def weight(self, key: str) -> Array:
        """The float weights of a layer."""
        return np.asarray(array(self.layers[key].inputs[1]))

    def out_channels(self, key: str) -> int:
        """How many channels a layer makes."""
        shape = constant_shape(self.layers[key])
        return int(shape[out_axis(self.layers[key])])

    def bias(self, key: str) -> Array | None:
        """The float bias of a layer."""
        node = self.layers[key]
        return array(node.inputs[2]) if len(node.inputs) > 2 else None

    def spatial(self, key: str) -> tuple[int, ...] | None:
        """The spatial size of what a convolution reads; None where it is not known."""
        dims = self.shapes.of(self.source(key))
        return tuple(int(d) for d in dims[2:]) if dims and all(isinstance(d, int) for d in dims[2:]) else None

    def _bias(self, choice: Choice, key: str, rest: float) -> Array | None:
        """The bias to write: every Conv and Gemm gets one, so that a repair never changes the structure.

        Args:
            choice: of numbers.
            key: of the layer.
            rest: constant part of all inputs that the grid before the layer leaves out.
        """
        node = self.layers[key]
        if node.op_type == "MatMul":
            return None
        bias = choice.biases.get(key, self.bias(key))
        if bias is None:
            bias = np.zeros(self.out_channels(key), np.float32)
        if not rest:
            return bias
        weight = choice.weights[key].real()
        inputs = np.full(in_channels(node, weight), rest)
        return np.asarray(bias + repair.mean_output(node, weight, inputs, self.spatial(key)), np.float32)

    def blank(self) -> Choice:
        """A choice of the right structure and no values."""
        found: dict[str, LayerWeights] = {}
        for key, node in self.layers.items():
            shape = constant_shape(node)
            found[key] = integers.zeros(shape, self.axis(key), symmetric=self.grid.symmetric)
        return Choice(found)

    def build(self, choice: Choice, *, share: bool = True) -> Model:
        """A copy with Q/DQ nodes and integer weights; `share`: layers that share weights share their integers."""
        result = copy(self.model)
        placed, nodes = _on_copy(self.placed, self.model, result)
        by_key = {node_key(n): n for n in nodes}
        sources = {key: by_key[key].inputs[0].name or "" for key in choice.weights}  # type: ignore[union-attr]
        grids = write_sites(result, placed, choice.ranges, self.grid.activation_bits)
        stored: Stored = {}
        for key, weights in choice.weights.items():
            grid = grids[sources[key]]
            bias = self._bias(choice, key, grid.rest)
            write_layer(result, by_key[key], weights, bias, grid.dq_scale, stored if share else {})
        edit.remove_dead(result)
        return contract_hard_swish(result)


def fits(node: ir.Node) -> bool:
    """Whether a node is a layer with an integer kernel: constant float weights, a bias that is constant if any."""
    if node.op_type not in LAYERS or node.domain not in {"", "ai.onnx"}:
        return False
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype != ir.DataType.FLOAT or constant(node.inputs[0]) is not None:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and constant(bias) is None:
        return False
    if node.op_type == "Gemm":
        return _plain_gemm(node)
    return node.op_type == "Conv" or len(weight.shape) == 2


def constant_shape(node: ir.Node) -> tuple[int, ...]:
    """The shape of a layer's weight."""
    tensor = constant(node.inputs[1])
    assert tensor is not None
    return tuple(int(d) for d in tensor.shape.numpy())


def counterpart(value: ir.Value, nodes: Mapping[ir.Node, ir.Node], after: Model) -> ir.Value:
    """The value of a copy of a model that stands for one of the original.

    Args:
        value: of the original's main graph.
        nodes: node of the original -> node of the copy.
        after: the copy.
    """
    producer = value.producer()
    if producer is None:
        return next(v for v in after.graph.inputs if v.name == value.name)
    return nodes[producer].outputs[producer.outputs.index(value)]


def in_channels(node: ir.Node, weight: Array) -> int:
    """How many channels (or columns) a layer reads."""
    if node.op_type == "Conv":
        group = node.attributes.get("group")
        return int(weight.shape[1]) * (1 if group is None else group.as_int())
    return int(weight.shape[1 - out_axis(node)])


def _plain_gemm(node: ir.Node) -> bool:
    attributes = {name: a.value for name, a in node.attributes.items()}
    return (
        attributes.get("alpha", 1.0) == 1.0
        and attributes.get("beta", 1.0) == 1.0
        and not attributes.get("transA")
    )


def _on_copy(placed: Placement, before: Model, after: Model) -> tuple[Placement, list[ir.Node]]:
    """The same placement on a copy of the model it was made on."""
    nodes = dict(zip(before.graph, after.graph, strict=True))
    values = {v: w for a, b in nodes.items() for v, w in zip(a.outputs, b.outputs, strict=True)}
    values.update(zip(before.graph.inputs, after.graph.inputs, strict=True))
    sites = {name: replace(s, first=values[s.first], last=values[s.last]) for name, s in placed.sites.items()}
    moved = Placement([nodes[n] for n in placed.nodes], sites, dict(placed.grids))
    return moved, [nodes[n] for n in before.graph]


def ranges_of(
    seen: Mapping[str, Observed], choose: Callable[[Observed], tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """A range for every site."""
    return {name: choose(observed) for name, observed in seen.items()}


__all__ = ["Choice", "Feed", "Workshop", "fits", "ranges_of"]
