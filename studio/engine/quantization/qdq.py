"""Writing Q/DQ nodes: weights, biases and sites of a placement as integers, in standard ONNX.

Equation: a layer computes y = Σ w·x + b on integers when x = s_x (q_x − z_x), w = s_w q_w and b = s_x s_w q_b.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Model, constant
from studio.engine.quantization import grids
from studio.engine.quantization.placement import LAYERS, Placement, Site, data_inputs
from studio.engine.quantization.simplify import array

Array: TypeAlias = npt.NDArray[Any]

_CODES: dict[int, type[np.generic]] = {8: np.uint8, 16: np.uint16}
# Half of what 32 bits hold, so that sums of products fit beside the bias.
_LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class SiteGrid:
    """The two grids of a site: Q writes q = first / q_scale + q_zero, DQ reads last = (q − dq_zero) · dq_scale + rest.

    `rest` is what the grid cannot hold of a shift; the layers that read the site take it into their biases.
    """

    q_scale: float
    q_zero: int
    dq_scale: float
    dq_zero: int
    rest: float = 0.0


def site_grid(site: Site, low: float, high: float, bits: int = 8) -> SiteGrid:
    """Grids of so many bits on which zero is exact behind the site, and its factor and shift are exact between them.

    A shift is a whole number of steps. Where it is not, the readers make up for the rest of it; where they cannot, the
    step is widened until it is.
    """
    low, high = min(max(low, site.low), 0.0), max(min(high, site.high), 0.0)
    if site.shift:  # first = 0 stands for last = shift, which must be on the grid
        low, high = min(low, site.shift), max(high, site.shift)
    grid = grids.affine(np.asarray(low), np.asarray(high), bits)
    scale, zero, last = float(grid.scale), int(grid.zero), grid.high
    steps = int(np.rint(site.shift / scale) if site.absorbed else np.trunc(site.shift / scale))
    if steps and not site.absorbed:
        scale = site.shift / steps
        zero = int(np.clip(np.rint(-low / scale), 0, last))
    rest = site.shift - steps * scale if site.absorbed else 0.0
    return SiteGrid(scale / site.factor, int(np.clip(zero + steps, 0, last)), scale, zero, rest)


def write_sites(
    model: Model, placed: Placement, ranges: Mapping[str, tuple[float, float]], bits: int = 8
) -> dict[str, SiteGrid]:
    """Put Q and DQ around every site; the grid of each by the site's name.

    Args:
        model: changed in place; the placement was made on it.
        placed: which sites.
        ranges: (low, high) by site; what is missing gets (0, 1).
        bits: of the integers, 8 or 16.
    """
    chosen: dict[str, SiteGrid] = {}
    written: dict[ir.Value, ir.Value] = {}
    for name, site in placed.sites.items():
        leader = placed.grids[name]
        if leader in chosen and name != leader:  # moved: what the leader's DQ reads is written again
            scale, zero = chosen[leader].dq_scale, chosen[leader].dq_zero
            grid = SiteGrid(scale, zero, scale, zero)
        else:
            grid = site_grid(site, *ranges.get(name, (0.0, 1.0)), bits)
        chosen[name] = grid
        written[site.last] = _write_site(model, site, grid, bits)
    for node in placed.nodes:
        if node.op_type not in LAYERS:
            for position, value in enumerate(node.inputs):
                if value is not None and value in data_inputs(node) and (a := array(value)) is not None:
                    node.replace_input_with(position, _integer_constant(model, node, value, a, bits))
    edit.remove_dead(model)
    return chosen


def _number(model: Model, graph: ir.Graph, name: str, x: float, dtype: type[np.generic]) -> ir.Value:
    return edit.add_constant(model, graph, name, np.asarray(x, dtype))


def _write_site(model: Model, site: Site, grid: SiteGrid, bits: int) -> ir.Value:
    graph, code = model.graph, _CODES[bits]
    name = site.last.name or "site"
    scale, zero = (
        _number(model, graph, f"{name}_scale", grid.q_scale, np.float32),
        _number(model, graph, f"{name}_zero", grid.q_zero, code),
    )
    scale_out, zero_out = scale, zero
    if (np.float32(grid.dq_scale), grid.dq_zero) != (np.float32(grid.q_scale), grid.q_zero):
        scale_out = _number(model, graph, f"{name}_scale_out", grid.dq_scale, np.float32)
        zero_out = _number(model, graph, f"{name}_zero_out", grid.dq_zero, code)
    quantize = edit.make_node(
        model,
        "QuantizeLinear",
        [site.first, scale, zero],
        name=f"{name}_quantize",
        dtype=ir.DataType.from_numpy(np.dtype(code)),
    )
    restore = edit.make_node(
        model,
        "DequantizeLinear",
        [quantize.outputs[0], scale_out, zero_out],
        name=f"{name}_restore",
        dtype=ir.DataType.FLOAT,
    )
    result = restore.outputs[0]
    result.shape = site.last.shape
    edit.replace_uses(site.last, result, keep=(quantize,))
    producer = site.last.producer()
    if producer is None:
        first = graph[0]
        graph.insert_before(first, [quantize, restore])
    else:
        graph.insert_after(producer, [quantize, restore])
    return result


def _integer_constant(model: Model, node: ir.Node, value: ir.Value, numbers: Array, bits: int) -> ir.Value:
    """A constant that is added or multiplied, stored in the type of the activations."""
    grid, code = grids.affine(numbers.min(), numbers.max(), bits), _CODES[bits]
    name = value.name or "constant"
    q = grid.quantize(numbers).astype(code)
    inputs = [
        edit.add_constant(model, model.graph, f"{name}_quantized", q),
        _number(model, model.graph, f"{name}_scale", float(grid.scale), np.float32),
        _number(model, model.graph, f"{name}_zero", int(grid.zero), code),
    ]
    restore = edit.make_node(
        model, "DequantizeLinear", inputs, name=f"{name}_restore", dtype=ir.DataType.FLOAT
    )
    model.graph.insert_before(node, restore)
    return restore.outputs[0]


@dataclass(frozen=True)
class LayerWeights:
    """Integer weights of one layer.

    Attributes:
        q: int32 integers in the weight's shape.
        scale: float32, one a channel along `axis`, or a scalar with axis None.
        axis: of the output channels.
        zero: int32 zero points, one a scale; None where they are all zero.
    """

    q: Array
    scale: Array
    axis: int | None
    zero: Array | None = None

    def real(self) -> Array:
        """The numbers the integers stand for."""
        q = self.q if self.zero is None else self.q - self._spread(self.zero)
        return (q * self._spread(self.scale)).astype(np.float32)

    def broadcast(self) -> Array:
        """The scale, shaped like the weight with size 1 where it is shared."""
        return self._spread(self.scale)

    def holding(self, bias: Array, input_scale: float) -> LayerWeights:
        """The same with wider steps where the bias would not fit its 32 bits: in channels of next to no weight."""
        least = np.abs(bias).astype(np.float64) / (input_scale * _LARGEST_BIAS)
        wider = np.maximum(np.asarray(least if self.scale.ndim else least.max()) / self.scale, 1.0)
        if (wider == 1.0).all():
            return self
        zero = 0 if self.zero is None else self._spread(self.zero)
        q = np.rint((self.q - zero) / self._spread(wider)).astype(np.int32) + zero
        return replace(self, q=q, scale=np.asarray(self.scale * wider, np.float32))

    def _spread(self, numbers: Array) -> Array:
        if self.axis is None:
            return numbers
        shape = [1] * self.q.ndim
        shape[self.axis] = -1
        return numbers.reshape(shape)


def out_axis(node: ir.Node) -> int:
    """The axis of a layer's weight that counts its output channels."""
    weight = constant(node.inputs[1])
    assert weight is not None
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        return 0 if transposed is not None and transposed.as_int() else 1
    return len(weight.shape) - 1


Stored: TypeAlias = dict[str, list[ir.Value]]


def write_layer(
    model: Model,
    node: ir.Node,
    weights: LayerWeights,
    bias: Array | None,
    input_scale: float,
    stored_before: Stored,
) -> None:
    """Replace a layer's weight and bias by integers behind DequantizeLinear.

    Args:
        model: changed in place.
        node: Conv, MatMul or Gemm.
        weights: its integers.
        bias: float, stored as int32; None for a MatMul.
        input_scale: of the site that the layer reads.
        stored_before: integers, scales and zero points by the name of the float weight, which layers may share; added to.
    """
    name = node.inputs[1].name or "weight"  # type: ignore[union-attr]
    if bias is not None:
        weights = weights.holding(bias, input_scale)
    stored = grids.stored(weights.q, 8, signed=True)
    arrays = {"quantized": stored, "scale": weights.scale}
    # onnxruntime fuses Gemm only where the zero point is there, even if it is zero.
    if weights.zero is not None or node.op_type != "Conv":
        zero = np.zeros(weights.scale.shape, np.int32) if weights.zero is None else weights.zero
        arrays["zero"] = zero.reshape(weights.scale.shape).astype(stored.dtype)
    kept = stored_before.get(name, [])
    if not _hold(kept, list(arrays.values())):
        kept = _constants(model, node, name, arrays)
        stored_before[name] = kept
    node.replace_input_with(1, _dequantized(model, node, name, kept, weights.axis))
    if bias is not None:
        scale = np.asarray(np.float32(input_scale) * weights.scale, np.float32)
        q = np.clip(np.rint(bias / scale.astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        name = f"{node.name or name}_bias"
        kept = _constants(model, node, name, {"quantized": q, "scale": scale})
        node.replace_input_with(2, _dequantized(model, node, name, kept, None if weights.axis is None else 0))


def _constants(model: Model, node: ir.Node, name: str, arrays: Mapping[str, Array]) -> list[ir.Value]:
    return [
        edit.add_constant(model, edit.owner(node), f"{name}_{what}", numbers)
        for what, numbers in arrays.items()
    ]


def _hold(values: list[ir.Value], arrays: list[Array]) -> bool:
    """Whether constants are these numbers."""
    return len(values) == len(arrays) and all(
        np.array_equal(np.asarray(array(v)), a) for v, a in zip(values, arrays, strict=True)
    )


def _dequantized(
    model: Model, node: ir.Node, name: str, inputs: Sequence[ir.Value], axis: int | None
) -> ir.Value:
    """What integers with their scale and zero point stand for, in front of a node."""
    attributes = {} if axis is None else {"axis": axis}
    restore = edit.make_node(
        model, "DequantizeLinear", inputs, attributes, name=f"{name}_restore", dtype=ir.DataType.FLOAT
    )
    restore.outputs[0].shape = inputs[0].shape
    edit.owner(node).insert_before(node, restore)
    return restore.outputs[0]
