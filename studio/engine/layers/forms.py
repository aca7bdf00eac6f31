"""Which operators own weights, where these lie among the inputs, and which axes they have.

Every quantized form is listed beside its float form, so that a layer keeps its name and its place
in the table whatever is done to it. Sources: onnx, Operators.md; onnxruntime, ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

Activations = Literal["float", "static", "dynamic"]
Axes = tuple[int | None, int | None]


@dataclass(frozen=True)
class Form:
    """One operator that owns weights.

    Attributes:
        op: the operator of the float form.
        weights: inputs that are weight matrices, the main one first; the first constant one of them
            must exist for the node to be a layer.
        bias: input of the bias.
        parts: inputs that belong to the weights: scales, zero points.
        axes: (out, in) of the main weight, from the node and the weight's rank.
        activations: how the operator takes its activations by itself.
        either: exactly one of the first two inputs is the weight (matrix products).
        bits: attribute that says how many bits packed weights have.
    """

    op: str
    weights: tuple[int, ...] = (1,)
    bias: int | None = None
    parts: tuple[int, ...] = ()
    axes: Callable[[ir.Node, int], Axes] = lambda _node, _rank: (0, 1)
    activations: Activations = "float"
    either: bool = False
    bits: str = ""


def _gemm(node: ir.Node, _rank: int) -> Axes:
    transposed = node.attributes.get("transB")
    return (0, 1) if transposed is not None and transposed.value else (1, 0)


def _matmul(node: ir.Node, rank: int) -> Axes:
    if rank < 2:
        return None, 0
    transposed = node.attributes.get("transB")
    return (rank - 2, rank - 1) if transposed is not None and transposed.value else (rank - 1, rank - 2)


def _swapped(_node: ir.Node, _rank: int) -> Axes:
    return 1, 0


def _recurrent(_node: ir.Node, _rank: int) -> Axes:
    return 1, 2


def _recurrent_transposed(_node: ir.Node, _rank: int) -> Axes:
    return 2, 1


def _table(_node: ir.Node, rank: int) -> Axes:
    return rank - 1, 0


def _packed(_node: ir.Node, _rank: int) -> Axes:
    return 0, None


_MS = "com.microsoft"

FORMS: dict[tuple[str, str], Form] = {
    ("", "Conv"): Form("Conv", bias=2),
    ("", "ConvTranspose"): Form("ConvTranspose", bias=2, axes=_swapped),
    ("", "DeformConv"): Form("DeformConv", bias=3),
    ("", "Gemm"): Form("Gemm", bias=2, axes=_gemm, either=True),
    ("", "MatMul"): Form("MatMul", axes=_matmul, either=True),
    ("", "LSTM"): Form("LSTM", weights=(1, 2), bias=3, parts=(7,), axes=_recurrent),
    ("", "GRU"): Form("GRU", weights=(1, 2), bias=3, axes=_recurrent),
    ("", "RNN"): Form("RNN", weights=(1, 2), bias=3, axes=_recurrent),
    ("", "Gather"): Form("Gather", weights=(0,), axes=_table),
    ("", "QLinearConv"): Form("Conv", weights=(3,), bias=8, parts=(4, 5), activations="static"),
    ("", "ConvInteger"): Form("Conv", parts=(3,), activations="dynamic"),
    ("", "QLinearMatMul"): Form("MatMul", weights=(3,), parts=(4, 5), axes=_matmul, activations="static"),
    ("", "MatMulInteger"): Form("MatMul", parts=(3,), axes=_matmul, activations="dynamic"),
    (_MS, "FusedConv"): Form("Conv", bias=2),
    (_MS, "FusedGemm"): Form("Gemm", bias=2, axes=_gemm, either=True),
    (_MS, "FusedMatMul"): Form("MatMul", axes=_matmul),
    (_MS, "QGemm"): Form("Gemm", weights=(3,), bias=6, parts=(4, 5), axes=_gemm, activations="static"),
    (_MS, "DynamicQuantizeMatMul"): Form("MatMul", bias=4, parts=(2, 3), axes=_matmul, activations="dynamic"),
    (_MS, "MatMulIntegerToFloat"): Form("MatMul", bias=6, parts=(3, 5), axes=_matmul, activations="dynamic"),
    (_MS, "DynamicQuantizeLSTM"): Form(
        "LSTM",
        weights=(1, 2),
        bias=3,
        parts=(7, 8, 9, 10, 11),
        axes=_recurrent_transposed,
        activations="dynamic",
    ),
    (_MS, "MatMulNBits"): Form("MatMul", bias=5, parts=(2, 3, 4), axes=_packed, bits="bits"),
    (_MS, "GatherBlockQuantized"): Form("Gather", weights=(0,), parts=(2, 3), axes=_table, bits="bits"),
    (_MS, "Attention"): Form("Attention", bias=2, axes=_swapped),
    (_MS, "QAttention"): Form("Attention", bias=2, parts=(4, 7), axes=_swapped, activations="static"),
}


def form_of(node: ir.Node) -> Form | None:
    """The form of a node; None for operators that own no weights."""
    return FORMS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


def input_of(node: ir.Node, position: int) -> ir.Value | None:
    """An input by position; None where it is left out."""
    return node.inputs[position] if position < len(node.inputs) else None
