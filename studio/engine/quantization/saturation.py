"""What a processor without VNNI makes of 8-bit products: sums of two saturate at 16 bits.

Equation: with K the inputs of a product in the order the kernel reads them, Σ_k a_k w_k becomes
Σ_{k even} clip(a_k w_k + a_{k+1} w_{k+1}, −2¹⁵, 2¹⁵ − 1) for codes a in 0..255 and w in −128..127. Zero points are
subtracted behind the sum, so the codes themselves count.

What is emulated: onnxruntime's AVX2 and AVX-512 kernels for uint8 activations and int8 weights (instruction VPMADDUBSW):
QLinearConv, QGemm, QLinearMatMul and MatMulInteger with its fused forms, which a Q/DQ or dynamic int8 model becomes. A
convolution reads its inputs tap after tap, the channels of a tap side by side. Depthwise kernels, uint8 × uint8 and
int8 × int8 widen first and never saturate. MatMulNBits and recurrent kernels are left as they are.

Source: onnxruntime, mlas/lib/amd64/QgemmU8S8KernelAvx2.asm and ConvSymKernelAvx2.asm; ReorderFilter in qlinearconv.cc;
"Quantize ONNX models", section "When and why do I need to try U8U8 data type?".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit, execute
from studio.engine.graph import Model, constant, copy, node_key, raise_opset
from studio.engine.quantization.simplify import ints

Array: TypeAlias = npt.NDArray[Any]
Feed: TypeAlias = Mapping[str, Array]

LOWEST, HIGHEST = -(2**15), 2**15 - 1
_OPSET = 13  # the first in which all that is written here takes the inputs it is given
# Pairs whose sums are looked at together: bounds the memory that the twin takes.
_TOGETHER = 512
# The twin's values wander from those that were seen: so much is added to the largest codes.
_SLACK = 8


@dataclass(frozen=True)
class Product:
    """A layer that multiplies uint8 by int8.

    Attributes:
        node: Conv, MatMul, Gemm or MatMulInteger.
        codes: the uint8 value that it reads.
        zero: code of the zero that a convolution pads with.
        factor: what one unit of the integer sum is worth in the layer's output, by output channel.
        weights: (outputs, K) int32 in the order of the kernel.
        kernel: spatial size of a convolution's kernel.
    """

    node: ir.Node
    codes: ir.Value
    zero: int
    factor: Array
    weights: Array
    kernel: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Of the layer's node."""
        return node_key(self.node)

    @property
    def conv(self) -> bool:
        """Whether inputs are images, channels on axis 1."""
        return self.node.op_type == "Conv"


def products(model: Model, keys: Iterable[str]) -> list[Product]:
    """The layers among `keys` (of nodes of the main graph) whose sums of two products may leave 16 bits."""
    wanted = set(keys)
    found = (_product(node) for node in model.graph if node_key(node) in wanted)
    return [p for p in found if p is not None and _pairs(p, np.full(p.weights.shape[1], 255))[0].size]


def _product(node: ir.Node) -> Product | None:
    if node.op_type == "MatMulInteger":
        codes, weight = node.inputs[0], constant(node.inputs[1])
        assert codes is not None
        if weight is None or weight.dtype != ir.DataType.INT8 or len(weight.shape) != 2:
            return None
        turned = weight.numpy().astype(np.int32).T
        return Product(node, codes, 0, np.ones(len(turned)), turned)
    if node.op_type not in {"Conv", "MatMul", "Gemm"}:
        return None
    read, stored = _restored(node.inputs[0]), _restored(node.inputs[1])
    if read is None or stored is None:
        return None
    codes, weight = read.inputs[0], constant(stored.inputs[0])
    scale, zero = constant(read.inputs[1]), constant(read.inputs[2]) if len(read.inputs) > 2 else None
    scales = constant(stored.inputs[1])
    unsigned = zero is not None and zero.dtype == ir.DataType.UINT8 and zero.size == 1
    if codes is None or weight is None or weight.dtype != ir.DataType.INT8 or scale is None or scales is None:
        return None
    numbers = _in_kernel_order(node, weight.numpy().astype(np.int32))
    if not unsigned or numbers is None:
        return None
    factor = np.broadcast_to(scales.numpy().reshape(-1) * float(scale.numpy().reshape(())), len(numbers))
    assert zero is not None
    kernel = tuple(int(d) for d in weight.shape.numpy()[2:])
    return Product(node, codes, int(zero.numpy().reshape(())), factor.astype(np.float64), numbers, kernel)


def _restored(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes a value."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _in_kernel_order(node: ir.Node, weight: Array) -> Array | None:
    """(outputs, K): inputs side by side as the kernel reads them; None where it has a kernel that widens."""
    if node.op_type == "Conv":
        padding = node.attributes.get("auto_pad")
        explicit = padding is None or padding.as_string() == "NOTSET"
        if (weight.shape[1] == 1 and _groups(node) > 1) or not explicit:
            return None
        taps = weight.reshape(*weight.shape[:2], -1)  # (out, in / groups, taps)
        return np.ascontiguousarray(taps.transpose(0, 2, 1)).reshape(len(weight), -1)
    turned = {name: bool(a.as_int()) for name, a in node.attributes.items() if name in {"transA", "transB"}}
    if weight.ndim != 2 or turned.get("transA"):
        return None
    return weight if turned.get("transB") else weight.T


def _groups(node: ir.Node) -> int:
    group = node.attributes.get("group")
    return 1 if group is None else group.as_int()


def _pairs(product: Product, largest: Array) -> tuple[Array, Array, Array]:
    """(output, K of the first, K of the second) of all pairs whose sum may leave 16 bits.

    Args:
        product: the layer.
        largest: (K,) or (outputs, K): the largest code that an input has.
    """
    w = product.weights
    if w.shape[1] % 2:  # the kernel pads with zeros
        w = np.pad(w, ((0, 0), (0, 1)))
        largest = np.pad(largest, [(0, 0)] * (largest.ndim - 1) + [(0, 1)])
    reach = w * largest
    above = np.maximum(reach[:, ::2], 0) + np.maximum(reach[:, 1::2], 0)
    below = np.minimum(reach[:, ::2], 0) + np.minimum(reach[:, 1::2], 0)
    rows, columns = np.nonzero((above > HIGHEST) | (below < LOWEST))
    return rows, 2 * columns, np.minimum(2 * columns + 1, product.weights.shape[1] - 1)


def largest_codes(model: Model, found: Sequence[Product], feeds: Iterable[Feed], threads: int) -> list[Array]:
    """The largest code by input channel (column of rows) that each layer reads over the feeds."""
    watched = raise_opset(copy(model), _OPSET) if model.opset < _OPSET else copy(model)
    values = {v.name: v for node in watched.graph for v in node.outputs} | {
        v.name: v for v in watched.graph.inputs
    }
    outputs = []
    for product in found:
        source = values[product.codes.name]
        wide = edit.make_node(watched, "Cast", [source], {"to": int(ir.DataType.FLOAT)}, name="seen")
        watched.graph.append(wide)
        if product.conv:
            wide = edit.make_node(watched, "GlobalMaxPool", wide.outputs, name="seen")
        else:  # rows, however many axes they have
            shape = np.asarray([-1, product.weights.shape[1]], np.int64)
            rows = edit.add_constant(watched, watched.graph, "seen", shape)
            wide = edit.make_node(watched, "Reshape", [wide.outputs[0], rows], name="seen")
        top = edit.make_node(
            watched,
            "ReduceMax",
            wide.outputs,
            {"axes": [0], "keepdims": 0},
            name="seen",
            dtype=ir.DataType.FLOAT,
        )
        watched.graph.extend([wide, top])
        outputs.append(top.outputs[0])
    watched.graph.outputs.clear()
    watched.graph.outputs.extend(outputs)
    edit.remove_dead(watched)
    sess = execute.session(watched, threads=threads, optimize="off")
    largest = [np.zeros(1) for _ in found]
    for feed in feeds:
        got = execute.run(sess, feed, [v.name or "" for v in outputs])
        largest = [np.maximum(one, other.ravel()) for one, other in zip(largest, got, strict=True)]
    return largest


def saturating_twin(
    model: Model, found: Sequence[Product], largest: Sequence[Array]
) -> tuple[Model, dict[str, str]]:
    """A model that answers as a processor without VNNI would, and for each layer the name of an output more.

    That output says by how much a sum of two products went beyond 16 bits at most; 0 = none did. The twin is to be run
    without graph optimization.

    Args:
        model: left untouched.
        found: layers that may saturate.
        largest: codes that they read, by `largest_codes`.
    """
    twin = raise_opset(copy(model), _OPSET) if model.opset < _OPSET else copy(model)
    nodes = {node_key(n): n for n in twin.graph}
    beyond: dict[str, str] = {}
    for product, codes in zip(found, largest, strict=True):
        reach = _by_weight(product, np.minimum(codes + _SLACK, 255))
        rows, first, second = _pairs(product, reach)
        if rows.size:
            writer = _Writer(twin, nodes[product.key], product)
            beyond[product.key] = writer.write(rows, first, second)
    return twin, beyond


def _by_weight(product: Product, largest: Array) -> Array:
    """The largest code of every input of every output: (K,), or (outputs, K) where channels are grouped."""
    if not product.conv:
        return largest
    largest = np.maximum(largest, product.zero)
    groups, k = _groups(product.node), product.weights.shape[1]
    each = len(largest) // groups
    rows = np.tile(largest.reshape(groups, 1, each), (1, k // each, 1)).reshape(groups, k)
    return np.repeat(rows, len(product.weights) // groups, axis=0)


class _Writer:
    """Subtracts from one layer's output what saturation takes away."""

    def __init__(self, model: Model, node: ir.Node, product: Product) -> None:
        self._model, self._node, self._product = model, node, product
        self._graph = edit.owner(node)
        self._new: list[ir.Node] = []

    def write(self, rows: Array, first: Array, second: Array) -> str:
        """Write the correction; the name of the output that says how far it goes."""
        integer = self._node.op_type == "MatMulInteger"
        source = self._node.inputs[0]
        if not integer:
            restore = _restored(source)
            assert restore is not None
            source = restore.inputs[0]
        assert source is not None
        inputs = self._inputs(self._add("Cast", [source], to=int(ir.DataType.FLOAT)))
        lost: list[ir.Value] = []
        peaks: list[ir.Value] = []
        for start in range(0, len(rows), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            excess = self._excess(inputs, rows[part], first[part], second[part])
            peaks.append(self._add("ReduceMax", [self._add("Abs", [excess])], keepdims=0))
            lost.append(self._spread(excess, rows[part]))
        total = lost[0] if len(lost) == 1 else self._add("Sum", lost)
        peak = peaks[0] if len(peaks) == 1 else self._add("Max", peaks)
        if integer:
            total = self._add("Cast", [total], dtype=ir.DataType.INT32, to=int(ir.DataType.INT32))
        output = self._node.outputs[0]
        left = edit.make_node(self._model, "Sub", [output, total], name="saturated", dtype=output.dtype)
        edit.replace_uses(output, left.outputs[0], keep=(left,))
        self._graph.insert_after(self._node, [*self._new, left])
        self._graph.outputs.append(peak)
        return peak.name or ""

    def _add(
        self,
        op: str,
        inputs: Sequence[ir.Value],
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: object,
    ) -> ir.Value:
        self._new.append(
            edit.make_node(self._model, op, list(inputs), attributes, name="saturated", dtype=dtype)
        )
        return self._new[-1].outputs[0]

    def _number(self, x: object, dtype: type[np.generic]) -> ir.Value:
        return edit.add_constant(self._model, self._graph, "saturated", np.asarray(x, dtype))

    def _inputs(self, codes: ir.Value) -> ir.Value:
        """Codes with K of all groups on one axis: 1 for images (N, K, *positions), the last for rows."""
        if not self._product.conv:
            return codes
        kernel = self._product.kernel
        rank = len(kernel)
        pads = ints(self._node, "pads", [0] * 2 * rank)
        strides, dilations = (
            ints(self._node, "strides", [1] * rank),
            ints(self._node, "dilations", [1] * rank),
        )
        if any(pads):
            edges = [0, 0, *pads[:rank], 0, 0, *pads[rank:]]
            codes = self._add(
                "Pad",
                [codes, self._number(edges, np.int64), self._number(self._product.zero, np.float32)],
            )
        taps = []
        for tap in np.ndindex(*kernel):
            starts = [d * t for d, t in zip(dilations, tap, strict=True)]
            ends = [-d * (k - 1 - t) or 2**62 for d, t, k in zip(dilations, tap, kernel, strict=True)]
            axes = list(range(2, 2 + rank))
            borders = [self._number(x, np.int64) for x in (starts, ends, axes, strides)]
            taps.append(self._add("Slice", [codes, *borders]))
        return taps[0] if len(taps) == 1 else self._add("Concat", taps, axis=1)

    def _excess(self, inputs: ir.Value, rows: Array, first: Array, second: Array) -> ir.Value:
        """What the pairs' sums have beyond 16 bits: (N, pairs, *positions), or (…, pairs)."""
        weights, parts = self._product.weights, []
        for index, alone in ((first, False), (second, True)):
            numbers = np.where(alone & (first == second), 0, weights[rows, index])
            factor = self._number(numbers.reshape(-1, *[1] * len(self._product.kernel)), np.float32)
            where = self._number(self._column(rows, index), np.int64)
            gathered = self._add("Gather", [inputs, where], axis=1 if self._product.conv else -1)
            parts.append(self._add("Mul", [gathered, factor]))
        both = self._add("Add", parts)
        held = self._add("Clip", [both, self._number(LOWEST, np.float32), self._number(HIGHEST, np.float32)])
        return self._add("Sub", [both, held])

    def _column(self, rows: Array, index: Array) -> Array:
        """Where on the axis of all inputs a group's input lies."""
        groups = _groups(self._node)
        each = self._product.weights.shape[1] // max(1, int(np.prod(self._product.kernel)))
        group = rows // (len(self._product.weights) // groups)
        return np.asarray((index // each) * each * groups + group * each + index % each)

    def _spread(self, excess: ir.Value, rows: Array) -> ir.Value:
        """The pairs' excess summed by output and in the output's unit."""
        spread = np.zeros((len(self._product.weights), len(rows)), np.float32)
        spread[rows, np.arange(len(rows))] = self._product.factor[rows]
        if not self._product.conv:
            return self._add("MatMul", [excess, self._number(spread.T, np.float32)])
        kernel = spread.reshape(*spread.shape, *[1] * len(self._product.kernel))
        return self._add("Conv", [excess, self._number(kernel, np.float32)])
