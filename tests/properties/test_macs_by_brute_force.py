"""Every rule of the cost table against loops that count one multiplication at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from studio.engine.cost import macs
from studio.engine.cost.rules import RULES, conv, gemm
from studio.engine.graph import Model, infer_shapes

FLOAT, INT8, UINT8, INT32 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32
small = st.integers(1, 4)


def counted(
    op: str,
    inputs: Sequence[tuple[int, Sequence[int]]],
    outputs: Sequence[tuple[int, Sequence[int]]],
    domain: str = "",
    **attributes: Any,
) -> int | None:
    """What the rule says of one node whose input and output shapes are declared."""
    ins = [helper.make_tensor_value_info(f"i{n}", t, s) for n, (t, s) in enumerate(inputs) if t]
    outs = [helper.make_tensor_value_info(f"o{n}", t, s) for n, (t, s) in enumerate(outputs)]
    names = [f"i{n}" if t else "" for n, (t, _) in enumerate(inputs)]
    node = helper.make_node(op, names, [o.name for o in outs], domain=domain, **attributes)
    opsets = [helper.make_opsetid("", 25), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(helper.make_graph([node], "g", ins, outs), opset_imports=opsets)
    model = Model(ir.from_proto(proto))
    return macs(next(iter(model.graph)), infer_shapes(model, {}, run=False))


def floats(*shapes: Sequence[int]) -> list[tuple[int, Sequence[int]]]:
    return [(FLOAT, shape) for shape in shapes]


def loops(*sizes: int, each: int = 1) -> int:
    """A nest of loops that multiplies `each` times at its heart."""
    count = 0
    for _ in itertools.product(*(range(size) for size in sizes)):
        count += each
    return count


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    return {
        "groups": draw(st.integers(1, 3)),
        "samples": draw(st.integers(1, 2)),
        "per_group_in": draw(small),
        "per_group_out": draw(small),
        "kernel": draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank)),
        "size": draw(st.lists(st.integers(5, 8), min_size=rank, max_size=rank)),
        "stride": draw(st.integers(1, 2)),
        "dilation": draw(st.integers(1, 2)),
        "pad": draw(st.integers(0, 1)),
    }


def positions(c: dict[str, Any]) -> list[int]:
    return [
        (size + 2 * c["pad"] - c["dilation"] * (kernel - 1) - 1) // c["stride"] + 1
        for size, kernel in zip(c["size"], c["kernel"], strict=True)
    ]


def conv_shapes(c: dict[str, Any]) -> tuple[list[int], list[int], list[int]]:
    x = [c["samples"], c["groups"] * c["per_group_in"], *c["size"]]
    w = [c["groups"] * c["per_group_out"], c["per_group_in"], *c["kernel"]]
    return x, w, [c["samples"], w[0], *positions(c)]


def by_loops(c: dict[str, Any]) -> int:
    return loops(
        c["samples"], c["groups"], c["per_group_out"], *positions(c), c["per_group_in"], *c["kernel"]
    )


def attributes(c: dict[str, Any]) -> dict[str, Any]:
    rank = len(c["kernel"])
    return {
        "group": c["groups"],
        "strides": [c["stride"]] * rank,
        "dilations": [c["dilation"]] * rank,
        "pads": [c["pad"]] * 2 * rank,
    }


@given(convolutions())
def test_a_convolution_of_any_rank_group_stride_and_dilation(c: dict[str, Any]) -> None:
    x, w, y = conv_shapes(c)
    assert counted("Conv", floats(x, w), floats(y), **attributes(c)) == by_loops(c)


@given(convolutions(), st.sampled_from(["ConvInteger", "FusedConv", "NhwcFusedConv"]))
def test_the_other_forms_of_a_convolution(c: dict[str, Any], op: str) -> None:
    x, w, y = conv_shapes(c)
    domain = "" if op == "ConvInteger" else "com.microsoft"
    kinds = [(UINT8, x), (INT8, w)] if op == "ConvInteger" else floats(x, w)
    out = [(INT32 if op == "ConvInteger" else FLOAT, y)]
    assert counted(op, kinds, out, domain, **attributes(c)) == by_loops(c)


@given(convolutions())
def test_a_quantized_convolution_has_its_weights_fourth(c: dict[str, Any]) -> None:
    x, w, y = conv_shapes(c)
    scale: tuple[int, list[int]] = (FLOAT, [])
    ins = [(UINT8, x), scale, (UINT8, []), (INT8, w), scale, (INT8, []), scale, (UINT8, [])]
    assert counted("QLinearConv", ins, [(UINT8, y)], **attributes(c)) == by_loops(c)


@given(convolutions())
def test_a_transposed_convolution_spreads_every_input_value(c: dict[str, Any]) -> None:
    x = [c["samples"], c["groups"] * c["per_group_in"], *c["size"]]
    w = [x[1], c["per_group_out"], *c["kernel"]]
    y = [
        x[0],
        c["groups"] * c["per_group_out"],
        *(c["stride"] * (s - 1) + k for s, k in zip(c["size"], c["kernel"], strict=True)),
    ]
    strides = [c["stride"]] * len(c["kernel"])
    wanted = loops(x[0], x[1], *c["size"], c["per_group_out"], *c["kernel"])
    assert counted("ConvTranspose", floats(x, w), floats(y), group=c["groups"], strides=strides) == wanted


@given(small, small, small, st.booleans(), st.booleans())
def test_a_gemm_in_any_orientation(m: int, n: int, k: int, flip_a: bool, flip_b: bool) -> None:
    a, b = [k, m] if flip_a else [m, k], [n, k] if flip_b else [k, n]
    wanted = loops(m, n, k)
    assert counted("Gemm", floats(a, b), floats([m, n]), transA=int(flip_a), transB=int(flip_b)) == wanted


@given(
    st.lists(small, max_size=2),
    st.lists(small, max_size=2),
    small,
    small,
    small,
    st.booleans(),
    st.booleans(),
)
def test_a_matrix_product_with_batches_and_vectors(
    left: list[int], right: list[int], m: int, n: int, k: int, vector_a: bool, vector_b: bool
) -> None:
    width = min(len(left), len(right))
    left[len(left) - width :] = right[len(right) - width :]  # so that they broadcast
    a = [k] if vector_a else [*left, m, k]
    b = [k] if vector_b else [*right, k, n]
    out = np.matmul(np.zeros(a), np.zeros(b)).shape
    assert counted("MatMul", floats(a, b), floats(out)) == loops(*out, k)


@given(st.lists(small, min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 5))
def test_a_matrix_product_with_packed_weights(rows: list[int], blocks: int, n: int) -> None:
    k, block = blocks * 16, 16
    ins = [(FLOAT, [*rows, k]), (UINT8, [n, blocks, block // 2]), (FLOAT, [n * blocks])]
    found = counted(
        "MatMulNBits", ins, [(FLOAT, [*rows, n])], "com.microsoft", K=k, N=n, bits=4, block_size=block
    )
    assert found == loops(*rows, n, k)


@given(small, small, small, small, st.sampled_from([("LSTM", 4), ("GRU", 3), ("RNN", 1)]), st.booleans())
def test_a_recurrent_cell_step_by_step(
    steps: int, batch: int, inputs: int, hidden: int, cell: tuple[str, int], both_ways: bool
) -> None:
    op, gates = cell
    ways = 2 if both_ways else 1
    x, w, r = [steps, batch, inputs], [ways, gates * hidden, inputs], [ways, gates * hidden, hidden]
    wanted = loops(ways, steps, batch, gates, hidden, inputs) + loops(
        ways, steps, batch, gates, hidden, hidden
    )
    direction = "bidirectional" if both_ways else "forward"
    out = [steps, ways, batch, hidden]
    assert counted(op, floats(x, w, r), floats(out), hidden_size=hidden, direction=direction) == wanted


@given(small, small, small, st.integers(1, 3), small, small)
def test_attention_over_query_and_key_lengths(b: int, s: int, k: int, group: int, d: int, dv: int) -> None:
    kv_heads = 2
    heads = kv_heads * group
    wanted = loops(b, heads, s, k, d) + loops(b, heads, s, k, dv)
    four = floats([b, heads, s, d], [b, kv_heads, k, d], [b, kv_heads, k, dv])
    assert counted("Attention", four, floats([b, heads, s, dv])) == wanted
    three = floats([b, s, heads * d], [b, k, kv_heads * d], [b, k, kv_heads * dv])
    out = floats([b, s, heads * dv])
    assert counted("Attention", three, out, q_num_heads=heads, kv_num_heads=kv_heads) == wanted


@given(small, small, small, small, small)
def test_attention_that_remembers_counts_what_it_remembers(
    b: int, s: int, past: int, heads: int, d: int
) -> None:
    q, old = [b, heads, s, d], [b, heads, past, d]
    ins = [*floats(q, q, q), (0, []), *floats(old, old)]
    assert counted("Attention", ins, floats(q)) == 2 * loops(b, heads, s, s + past, d)


@given(small, small, small, small, small)
def test_attention_with_its_own_projection(b: int, s: int, width: int, heads: int, d: int) -> None:
    h = heads * d
    ins = floats([b, s, width], [width, 3 * h], [3 * h])
    wanted = 3 * loops(b, s, width, h) + 2 * loops(b, heads, s, s, d)
    assert counted("Attention", ins, floats([b, s, h]), "com.microsoft", num_heads=heads) == wanted


@given(small, small, small, small, small, small)
def test_multi_head_attention_without_projection(b: int, s: int, k: int, heads: int, d: int, dv: int) -> None:
    ins = floats([b, s, heads * d], [b, k, heads * d], [b, k, heads * dv])
    wanted = loops(b, heads, s, k, d) + loops(b, heads, s, k, dv)
    out = floats([b, s, heads * dv])
    assert counted("MultiHeadAttention", ins, out, "com.microsoft", num_heads=heads) == wanted


@given(small, small, st.integers(0, 3), st.integers(1, 3), small)
def test_grouped_queries_share_their_keys(b: int, s: int, past: int, group: int, d: int) -> None:
    kv_heads = 2
    heads = kv_heads * group
    old = floats([b, kv_heads, past, d], [b, kv_heads, past, d]) if past else [(0, []), (0, [])]
    ins = [*floats([b, s, heads * d], [b, s, kv_heads * d], [b, s, kv_heads * d]), *old]
    found = counted(
        "GroupQueryAttention",
        [*ins, (INT32, [b]), (INT32, [1])],
        floats([b, s, heads * d]),
        "com.microsoft",
        num_heads=heads,
        kv_num_heads=kv_heads,
    )
    assert found == 2 * loops(b, heads, s, s + past, d)


@given(small, small, st.integers(1, 3), small, small, st.sampled_from(["linear", "gated_delta"]))
def test_linear_attention_updates_and_reads_its_state(
    b: int, t: int, group: int, d: int, dv: int, rule: str
) -> None:
    kv_heads = 2
    heads = kv_heads * group
    ins = floats([b, t, heads * d], [b, t, kv_heads * d], [b, t, kv_heads * dv])
    wanted = loops(b, t, kv_heads, d, dv) + loops(b, t, heads, d, dv)
    if "delta" in rule:
        wanted += loops(b, t, kv_heads, d, dv)
    found = counted(
        "LinearAttention",
        ins,
        floats([b, t, heads * dv]),
        q_num_heads=heads,
        kv_num_heads=kv_heads,
        update_rule=rule,
    )
    assert found == wanted


@given(st.data())
def test_einsum_is_one_nest_of_loops_over_all_letters(data: st.DataObject) -> None:
    sizes = {letter: data.draw(small) for letter in "abcd"}
    terms = data.draw(st.lists(st.text("abcd", min_size=1, max_size=3), min_size=1, max_size=3))
    dots = data.draw(st.booleans())
    shapes, equation = [], []
    for term in terms:
        spread = [3] if dots and data.draw(st.booleans()) else []
        shapes.append([*spread, *(sizes[letter] for letter in term)])
        equation.append(("..." if spread else "") + term)
    letters = [sizes[letter] for letter in sorted(set("".join(terms)))]
    letters += [3] if any("..." in term for term in equation) else []
    found = counted("Einsum", floats(*shapes), floats([1]), equation=",".join(equation) + "->")
    assert found == loops(*letters, each=len(terms) - 1)


@settings(max_examples=20)
@given(small, small, small)
def test_a_branch_counts_its_dearer_side(side: int, other: int, width: int) -> None:
    def graph(rows: int) -> onnx.GraphProto:
        weights = helper.make_tensor("w", FLOAT, [width, rows], np.zeros(width * rows))
        out = helper.make_tensor_value_info("r", FLOAT, None)
        return helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["r"])], "b", [], [out], [weights])

    node = helper.make_node("If", ["up"], ["y"], then_branch=graph(side), else_branch=graph(other))
    assert _of_main(node, width) == max(loops(1, side, width), loops(1, other, width))


def test_a_branch_that_cannot_run_at_these_sizes_is_passed_over() -> None:
    def graph(rows: int) -> onnx.GraphProto:
        weights = helper.make_tensor("w", FLOAT, [rows, 2], np.zeros(2 * rows))
        out = helper.make_tensor_value_info("r", FLOAT, None)
        return helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["r"])], "b", [], [out], [weights])

    node = helper.make_node("If", ["up"], ["y"], then_branch=graph(3), else_branch=graph(5))
    assert _of_main(node, 3) == 1 * 2 * 3


@settings(max_examples=20)
@given(st.integers(0, 5), small)
def test_a_loop_counts_its_body_for_every_trip(trips: int, width: int) -> None:
    weights = helper.make_tensor("w", FLOAT, [width, width], np.zeros(width * width))
    body = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w"], ["b"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", FLOAT, [1, width]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", FLOAT, [1, width]),
        ],
        [weights],
    )
    node = helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)
    count = helper.make_tensor("trips", TensorProto.INT64, [], [trips])
    assert _of_main(node, width, [count]) == trips * loops(1, width, width)


@settings(max_examples=20)
@given(small, small)
def test_a_scan_counts_its_body_for_every_slice(length: int, width: int) -> None:
    weights = helper.make_tensor("w", FLOAT, [width, width], np.zeros(width * width))
    body = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w"], ["b"])],
        "body",
        [helper.make_tensor_value_info("a", FLOAT, [1, width])],
        [helper.make_tensor_value_info("b", FLOAT, [1, width])],
        [weights],
    )
    node = helper.make_node("Scan", ["many"], ["y"], body=body, num_scan_inputs=1)
    many = helper.make_tensor("many", FLOAT, [length, 1, width], np.zeros(length * width))
    assert _of_main(node, width, [many]) == length * loops(1, width, width)


def _of_main(node: onnx.NodeProto, width: int, initializers: Sequence[onnx.TensorProto] = ()) -> int | None:
    """What the rule says of one node with `x` (1, width) and `up` at hand."""
    ins = [
        helper.make_tensor_value_info("x", FLOAT, [1, width]),
        helper.make_tensor_value_info("up", TensorProto.BOOL, []),
    ]
    out = helper.make_tensor_value_info("y", FLOAT, None)
    graph = helper.make_graph([node], "g", ins, [out], list(initializers))
    model = Model(ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])))
    return macs(next(iter(model.graph)), infer_shapes(model, {}))


@pytest.mark.parametrize(
    ("op", "wanted"), [("Relu", 0), ("ReduceMean", 0), ("MaxPool", 0), ("LayerNormalization", 0)]
)
def test_work_without_products_counts_nothing(op: str, wanted: int) -> None:
    more: dict[str, Any] = {"kernel_shape": [1, 1]} if op == "MaxPool" else {}
    ins = floats([1, 2, 4, 4], [4]) if op == "LayerNormalization" else floats([1, 2, 4, 4])
    assert counted(op, ins, floats([1, 2, 4, 4]), **more) == wanted


def test_an_unknown_operator_is_not_counted_as_nothing() -> None:
    assert counted("Mystery", floats([1]), floats([1]), "somebody.else") is None
    assert counted("SparseAttention", floats([1]), floats([1]), "com.microsoft") is None


def test_a_loop_without_end_is_no_figure() -> None:
    assert counted("Gemm", floats([10**9, 10**9], [10**9, 10**9]), floats([10**9, 10**9])) is None


def test_every_rule_names_its_source() -> None:
    makers = {"conv": conv, "gemm": gemm}
    for rule in RULES.values():
        told = makers.get(rule.__qualname__.split(".")[0], rule)
        assert "Source:" in (told.__doc__ or ""), rule.__qualname__
