"""Which kernel onnxruntime gives each quantized layer, and why one did not become integer.

The runtime fuses when it loads a model. Here it writes down what it made; nodes are found again by tokens in their names.
Blocked layouts of this machine are part of the answer: another processor may get other kernels.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from studio.engine import execute
from studio.engine.graph import Model, constant, copy, graphs, load, node_key
from studio.engine.layers import LayerNode, list_layers

_TOKEN = re.compile(r"layer(\d+)§")
_INTEGER = {
    "QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger",
    "ConvInteger", "MatMulNBits", "DynamicQuantizeLSTM", "GatherBlockQuantized", "QAttention",
}  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """What runs one quantized layer.

    Attributes:
        layer: its name.
        kernel: operator of the runtime's graph; '' when the runtime has merged it into something else.
        integer: it multiplies (or looks up) integers.
        reason: why not, in words.
    """

    layer: str
    kernel: str
    integer: bool
    reason: str = ""


def report(model: Model) -> tuple[Kernel, ...]:
    """The kernels of all layers whose weights are stored as integers.

    Raises:
        StudioError: onnxruntime does not load the model.
    """
    listing = list_layers(model)
    quantized = [layer for layer in listing.nodes.values() if layer.quantized]
    if not quantized:
        return ()
    marked = copy(model)
    index = {(layer.path, layer.record.key): number for number, layer in enumerate(quantized)}
    for path, graph in graphs(marked):
        for node in graph:
            number = index.get((path, node_key(node)))
            if number is not None:
                node.name = f"layer{number}§"
    found: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="featherweight-") as folder:
        path_out = Path(folder) / "optimized.onnx"
        execute.session(marked, threads=1, optimized=path_out)
        for _path, graph in graphs(load(path_out)):
            for node in graph:
                for token in _TOKEN.findall(node.name or ""):
                    found.setdefault(int(token), node.op_type)
    return tuple(_verdict(layer, found.get(number, "")) for number, layer in enumerate(quantized))


def _verdict(layer: LayerNode, kernel: str) -> Kernel:
    name = layer.record.name
    if kernel in _INTEGER:
        return Kernel(name, kernel, integer=True)
    return Kernel(name, kernel, integer=False, reason=_reason(layer))


def _reason(layer: LayerNode) -> str:
    node = layer.node
    if any(between.op_type in {"Cast", "Mul"} for between in layer.between):
        return "its weights are unpacked when the model is loaded, it computes in float"
    if node.op_type not in {"Conv", "MatMul", "Gemm"}:
        return f"onnxruntime has no integer kernel for {node.op_type}"
    if not _dequantized(node.inputs[0]):
        return "it reads floats"
    users = list(node.outputs[0].consumers())
    if node.op_type == "Conv" and not any(u.op_type in {"QuantizeLinear", "Relu", "Clip"} for u in users):
        return "its output is not quantized"
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant(node.inputs[2]) is not None:
        return "its bias is stored as floats"
    return "onnxruntime did not fuse the nodes around it"


def _dequantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def in_words(model: Model) -> tuple[str, ...]:
    """The report in a few sentences; empty for a model without quantized layers."""
    kernels = report(model)
    if not kernels:
        return ()
    fast = sum(k.integer for k in kernels)
    words = [f"{fast} of {len(kernels)} quantized layers run on integer kernels here."]
    reasons: dict[str, list[str]] = {}
    for kernel in kernels:
        if not kernel.integer:
            reasons.setdefault(kernel.reason, []).append(kernel.layer)
    for reason, names in reasons.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        words.append(f"In float: {shown} ({reason}).")
    return tuple(words)
