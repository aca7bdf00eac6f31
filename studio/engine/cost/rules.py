"""Multiply-accumulates of one run of one node, by (domain, operator).

Symbols: N samples, C channels in, M channels out, G groups, k kernel, L output positions, T time steps,
B batch, D directions, I input size, H hidden size, S query length, K key length.

A rule gets the node and the shapes of its values and says how many multiplications a naive loop does, each
followed by an addition. It says None where a shape that it needs is not known. Operators without a rule in
the standard sets count 0, in unknown sets None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import onnx_ir as ir

from studio.engine.graph import Shapes, constant

Rule: TypeAlias = Callable[[ir.Node, Shapes], int | None]
Sizes: TypeAlias = tuple[int, ...]

# Sets whose operators without a rule multiply no weights worth counting: element-wise, norms, pooling, data
# movement, (de)quantization, random numbers, trees, and Fourier transforms, whose cost depends on the algorithm.
_KNOWN_SETS = {"", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}
# Names of those that do compute all the same, in ways that nobody has written down here.
_COMPUTES = re.compile(
    "Attention|MatMul|Gemm|Conv|LSTM|MoE|Search|Sampling|Delta|Mamba|Proj|EPContext|SequenceMap"
)
# No run ever ends that does as many; a loop of 2^63 trips must not become a figure.
_MOST = 10**18


def macs(node: ir.Node, shapes: Shapes) -> int | None:
    """Multiply-accumulates of one run of a node, None where shapes or the operator are not known.

    An If counts its dearer branch, a Loop or Scan its body times its trips.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    rule = RULES.get((domain, node.op_type))
    if rule is None:
        return None if domain not in _KNOWN_SETS or _COMPUTES.search(node.op_type) else 0
    count = rule(node, shapes)
    return count if count is None or count <= _MOST else None


def graph_macs(graph: ir.Graph, shapes: Shapes) -> int | None:
    """The sum over a graph's nodes; None when one of them is not known."""
    return _sum(macs(node, shapes) for node in graph)


def _sum(figures: Iterable[int | None]) -> int | None:
    total = 0
    for figure in figures:
        if figure is None:
            return None
        total += figure
    return total


# ------------------------------------------------------------------ reading a node


def _sizes(shapes: Shapes, value: ir.Value | None) -> Sizes | None:
    """The shape of a value when every dimension is known; a constant's own shape needs no inference."""
    if value is None:
        return None
    tensor = constant(value)
    if tensor is not None:
        return tuple(int(d) for d in tensor.shape.numpy())
    dims = shapes.of(value)
    if dims is None or not all(isinstance(d, int) for d in dims):
        return None
    return tuple(int(d) for d in dims)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _output(node: ir.Node, index: int) -> ir.Value | None:
    value = node.outputs[index] if index < len(node.outputs) else None
    return value if value is not None and value.name else None


def _int(node: ir.Node, name: str, default: int = 0) -> int:
    attr = node.attributes.get(name)
    return default if attr is None or attr.is_ref() else attr.as_int()


# ------------------------------------------------------------------ convolutions


def conv(weight: int) -> Rule:
    """N·M·L · (C/G)·Πk: every output value is a dot product with one filter (M, C/G, k…).

    Source: ONNX operator Conv; Dumoulin & Visin, A guide to convolution arithmetic, 2016. Padded positions count.
    """

    def rule(node: ir.Node, shapes: Shapes) -> int | None:
        out, w = _sizes(shapes, _output(node, 0)), _sizes(shapes, _input(node, weight))
        return None if out is None or w is None else math.prod(out) * math.prod(w[1:])

    return rule


def conv_transpose(node: ir.Node, shapes: Shapes) -> int | None:
    """N·C·L_in · (M/G)·Πk: every input value is spread by its filter (C, M/G, k…); cropped positions count.

    Source: ONNX operator ConvTranspose.
    """
    x, w = _sizes(shapes, _input(node, 0)), _sizes(shapes, _input(node, 1))
    return None if x is None or w is None else math.prod(x) * math.prod(w[1:])


# ------------------------------------------------------------------ matrix products


def gemm(right: int) -> Rule:
    """Rows · columns · inner size.

    Source: ONNX operator Gemm (alpha, beta and the added C count nothing).
    """

    def rule(node: ir.Node, shapes: Shapes) -> int | None:
        a, b = _sizes(shapes, _input(node, 0)), _sizes(shapes, _input(node, right))
        if a is None or b is None or len(a) != 2 or len(b) != 2:
            return None
        return math.prod(a) * (b[0] if _int(node, "transB") else b[1])

    return rule


def matmul(node: ir.Node, shapes: Shapes) -> int | None:
    """Πoutput · inner size, batch dimensions broadcast, vectors as numpy.matmul has them.

    Source: ONNX operator MatMul; com.microsoft FusedMatMul (transA).
    """
    a, out = _sizes(shapes, _input(node, 0)), _sizes(shapes, _output(node, 0))
    if a is None or out is None or not a:
        return None
    return math.prod(out) * (a[-2] if _int(node, "transA") and len(a) > 1 else a[-1])


def matmul_packed(node: ir.Node, shapes: Shapes) -> int | None:
    """Rows · K · N, with K and N as attributes since the weights are packed.

    Source: com.microsoft MatMulNBits, MatMulBnb4.
    """
    a = _sizes(shapes, _input(node, 0))
    return None if a is None else math.prod(a) * _int(node, "N")


def einsum(node: ir.Node, shapes: Shapes) -> int | None:
    """(operands − 1) · Π of the sizes of all letters: one naive nest of loops over every letter.

    Source: ONNX operator Einsum.
    """
    attr = node.attributes.get("equation")
    if attr is None or attr.is_ref():
        return None
    terms = attr.as_string().replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=False):
        dims = _sizes(shapes, value)
        if dims is None:
            return None
        head, dots, tail = term.partition("...")
        spread = len(dims) - len(head) - len(tail) if dots else 0
        if spread < 0:
            return None
        # Broadcast dimensions are named from the right, as they align.
        letters = [*head, *(f"…{i}" for i in range(spread, 0, -1)), *tail]
        for letter, size in zip(letters, dims, strict=False):
            sizes[letter] = max(sizes.get(letter, 1), size) if size else 0
    return (len(terms) - 1) * math.prod(sizes.values())


# ------------------------------------------------------------------ recurrent cells


def recurrent(node: ir.Node, shapes: Shapes) -> int | None:
    """T·B · (|W| + |R|), with W (D, gates·H, I) and R (D, gates·H, H): four gates LSTM, three GRU, one RNN.

    Source: ONNX operators LSTM, GRU, RNN; peepholes and gate products are element-wise and count nothing.
    """
    x, w, r = (_sizes(shapes, _input(node, i)) for i in range(3))
    if x is None or w is None or r is None or len(x) != 3:
        return None
    return x[0] * x[1] * (math.prod(w) + math.prod(r))


# ------------------------------------------------------------------ attention


def attention(node: ir.Node, shapes: Shapes) -> int | None:
    """B·heads·S·K · (d_qk + d_v): scores and their weighted sum; a causal mask saves nothing here.

    Source: ONNX operator Attention (opset 23): Q (B, heads, S, d) or (B, S, heads·d).
    """
    q, k, v = (_sizes(shapes, _input(node, i)) for i in range(3))
    if q is None or k is None or v is None or len(q) not in {3, 4}:
        return None
    past = _sizes(shapes, _input(node, 4))
    if _input(node, 4) is not None and past is None:
        return None
    if len(q) == 4:
        batch, heads, length, head_size = q
        keys, value_size = k[2], v[3]
    else:
        heads, kv_heads = _int(node, "q_num_heads"), _int(node, "kv_num_heads")
        if not heads or not kv_heads:
            return None
        batch, length, head_size = q[0], q[1], q[2] // heads
        keys, value_size = k[1], v[2] // kv_heads
    return batch * heads * length * (keys + (past[2] if past else 0)) * (head_size + value_size)


def attention_with_projection(node: ir.Node, shapes: Shapes) -> int | None:
    """B·S·I·(h_q + h_k + h_v) for the projection, B·S·K·(h_q + h_v) for the attention.

    Source: com.microsoft Attention, QAttention: input (B, S, I), weights (I, h_q + h_k + h_v).
    """
    x, w = _sizes(shapes, _input(node, 0)), _sizes(shapes, _input(node, 1))
    if x is None or w is None or len(x) != 3 or len(w) != 2:
        return None
    batch, length, width = x
    split = node.attributes.get("qkv_hidden_sizes")
    q, _k, v = split.as_ints() if split is not None and split.value else (w[1] // 3,) * 3
    past = _sizes(shapes, _input(node, 8 if node.op_type == "QAttention" else 4))  # (2, B, heads, P, d)
    keys = length + (past[3] if past else 0)
    return batch * length * width * w[1] + batch * length * keys * (q + v)


def multi_head_attention(node: ir.Node, shapes: Shapes) -> int | None:
    """B·S·K · (h_qk + h_v), projections not included.

    Source: com.microsoft MultiHeadAttention: query (B, S, h) or packed (B, S, heads, 3, d), key (B, K, h),
    packed (B, K, heads, 2, d) or (B, heads, K, d).
    """
    q = _sizes(shapes, _input(node, 0))
    if q is None:
        return None
    batch, length = q[0], q[1]
    past = _sizes(shapes, _input(node, 6))
    before = past[2] if past else 0
    if len(q) == 5:
        return batch * length * (length + before) * 2 * q[2] * q[4]
    k = _sizes(shapes, _input(node, 1))
    if k is None:
        return None
    if len(k) == 5:
        return batch * length * (k[1] + before) * 2 * q[2]
    v = _sizes(shapes, _input(node, 2))
    if v is None:
        return None
    keys, value_size = (k[2], v[1] * v[3]) if len(k) == 4 else (k[1], v[2])
    return batch * length * (keys + before) * (q[2] + value_size)


def group_query_attention(node: ir.Node, shapes: Shapes) -> int | None:
    """2·B·heads·S·K·d, keys shared by groups of heads; projections not included.

    Source: com.microsoft GroupQueryAttention: query (B, S, heads·d), or packed with key and value.
    """
    q, k = _sizes(shapes, _input(node, 0)), _sizes(shapes, _input(node, 1))
    heads, kv_heads = _int(node, "num_heads"), _int(node, "kv_num_heads")
    if q is None or not heads or (_input(node, 1) is not None and k is None):
        return None
    head_size = q[2] // heads if k is not None else q[2] // (heads + 2 * kv_heads)
    present = _sizes(shapes, _output(node, 1))
    past = _sizes(shapes, _input(node, 3))
    keys = present[2] if present else q[1] + (past[2] if past else 0)
    return 2 * q[0] * heads * q[1] * keys * head_size


def linear_attention(node: ir.Node, shapes: Shapes) -> int | None:
    """B·T·d_k·d_v · (H_q + H_kv), and H_kv once more where the update reads the state (the delta rules).

    Source: ONNX operator LinearAttention (opset 27): per token and key head S += k ⊗ v, per query head o = qᵀ S;
    decays are element-wise. Packed (B, T, heads·d).
    """
    q, v = _sizes(shapes, _input(node, 0)), _sizes(shapes, _input(node, 2))
    heads, kv_heads = _int(node, "q_num_heads"), _int(node, "kv_num_heads")
    if q is None or v is None or len(q) != 3 or not heads or not kv_heads:
        return None
    rule = node.attributes.get("update_rule")
    reads = rule is not None and not rule.is_ref() and "delta" in rule.as_string()
    products = heads + kv_heads * (2 if reads else 1)
    return q[0] * q[1] * (q[2] // heads) * (v[2] // kv_heads) * products


# ------------------------------------------------------------------ classic machine learning


def linear_model(node: ir.Node, shapes: Shapes) -> int | None:
    """Rows · coefficients.

    Source: ai.onnx.ml LinearClassifier, LinearRegressor.
    """
    x, weights = _sizes(shapes, _input(node, 0)), node.attributes.get("coefficients")
    if x is None or weights is None:
        return None
    return (x[0] if len(x) == 2 else 1) * len(weights.as_floats())


# ------------------------------------------------------------------ control flow


def branch(node: ir.Node, shapes: Shapes) -> int | None:
    """The dearer branch: what a run costs at most.

    A branch that cannot be counted is passed over where another can: at the chosen input sizes often only one of
    them can run at all (a model for two sampling rates).

    Source: ONNX operator If.
    """
    figures = [graph_macs(attr.as_graph(), shapes) for attr in _graphs(node).values()]
    return max((figure for figure in figures if figure is not None), default=None)


def loop(node: ir.Node, shapes: Shapes) -> int | None:
    """Trips · body, the trip count being constant; a condition that ends it earlier is not foreseen.

    Source: ONNX operator Loop.
    """
    body = _body(node, shapes)
    trips = constant(_input(node, 0))
    if body == 0:
        return 0
    return None if body is None or trips is None else body * int(trips.numpy().reshape(-1)[0])


def scan(node: ir.Node, shapes: Shapes) -> int | None:
    """Length of the scanned axis · body.

    Source: ONNX operator Scan (opset 9 and later).
    """
    body = _body(node, shapes)
    if body == 0:
        return 0
    if "directions" in node.attributes:  # opset 8 has a batch axis in front
        return None
    scanned = _int(node, "num_scan_inputs")
    dims = _sizes(shapes, _input(node, len(node.inputs) - scanned))
    axes = node.attributes.get("scan_input_axes")
    axis = axes.as_ints()[0] if axes is not None and axes.value else 0
    return None if body is None or dims is None else body * dims[axis]


def _body(node: ir.Node, shapes: Shapes) -> int | None:
    attr = _graphs(node).get("body")
    return None if attr is None else graph_macs(attr.as_graph(), shapes)


def _graphs(node: ir.Node) -> Mapping[str, ir.Attr]:
    return {
        name: attr
        for name, attr in node.attributes.items()
        if not attr.is_ref() and attr.type == ir.AttributeType.GRAPH
    }


RULES: Mapping[tuple[str, str], Rule] = {
    ("", "Conv"): conv(1),
    ("", "ConvInteger"): conv(1),
    ("", "DeformConv"): conv(1),
    ("", "QLinearConv"): conv(3),
    ("", "ConvTranspose"): conv_transpose,
    ("", "Gemm"): gemm(1),
    ("", "MatMul"): matmul,
    ("", "MatMulInteger"): matmul,
    ("", "QLinearMatMul"): matmul,
    ("", "Einsum"): einsum,
    ("", "LSTM"): recurrent,
    ("", "GRU"): recurrent,
    ("", "RNN"): recurrent,
    ("", "Attention"): attention,
    ("", "LinearAttention"): linear_attention,
    ("", "CausalConvWithState"): conv(1),
    ("", "If"): branch,
    ("", "Loop"): loop,
    ("", "Scan"): scan,
    ("ai.onnx.ml", "LinearClassifier"): linear_model,
    ("ai.onnx.ml", "LinearRegressor"): linear_model,
    ("com.microsoft", "FusedConv"): conv(1),
    ("com.microsoft", "CausalConvWithState"): conv(1),
    ("com.microsoft", "LinearAttention"): linear_attention,
    ("com.microsoft", "NhwcConv"): conv(1),
    ("com.microsoft", "NhwcFusedConv"): conv(1),
    ("com.microsoft", "QLinearConv"): conv(3),
    ("com.microsoft", "ConvTransposeWithDynamicPads"): conv_transpose,
    ("com.microsoft.nchwc", "Conv"): conv(1),
    ("com.microsoft", "FusedGemm"): gemm(1),
    ("com.microsoft", "GemmFastGelu"): matmul,
    ("com.microsoft", "GemmFloat8"): gemm(1),
    ("com.microsoft", "QGemm"): gemm(3),
    ("com.microsoft", "FusedMatMul"): matmul,
    ("com.microsoft", "FusedMatMulActivation"): matmul,
    ("com.microsoft", "TransposeMatMul"): matmul,
    ("com.microsoft", "SparseToDenseMatMul"): matmul,
    ("com.microsoft", "DynamicQuantizeMatMul"): matmul,
    ("com.microsoft", "MatMulIntegerToFloat"): matmul,
    ("com.microsoft", "MatMulInteger16"): matmul,
    ("com.microsoft", "MatMulNBits"): matmul_packed,
    ("com.microsoft", "MatMulBnb4"): matmul_packed,
    ("com.microsoft", "DynamicQuantizeLSTM"): recurrent,
    ("com.microsoft", "Attention"): attention_with_projection,
    ("com.microsoft", "QAttention"): attention_with_projection,
    ("com.microsoft", "MultiHeadAttention"): multi_head_attention,
    ("com.microsoft", "GroupQueryAttention"): group_query_attention,
}
