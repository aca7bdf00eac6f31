"""Which layers an 8-bit input would ruin: the error at each layer's own output when only its input is quantized.

Equation: share = mean over channels of min(1, Σ (W·Q(x) − W·x)² / Σ (W·x − mean)²). By channel, since whatever follows a
convolution looks at every channel alike; a site whose channels differ a hundredfold in range shows here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit, execute
from studio.engine.graph import constant, copy, node_key
from studio.engine.quantization.calibrate import Feed
from studio.engine.quantization.placement import data_inputs
from studio.engine.quantization.qdq import site_grid
from studio.engine.quantization.static import Workshop

Array: TypeAlias = npt.NDArray[Any]


def local_quality(
    shop: Workshop, ranges: Mapping[str, tuple[float, float]], feeds: Iterable[Feed], threads: int = 0
) -> dict[str, float]:
    """SQNR in dB at the output of each layer when its input alone is quantized, by layer key."""
    watched = copy(shop.model)
    nodes = {node_key(n): n for n in watched.graph}
    outputs: dict[str, tuple[str, str, str]] = {}
    results: list[ir.Value] = []
    for key in shop.layers:
        found = _watch(watched, nodes[key], shop, ranges)
        outputs[key] = tuple(v.name or "" for v in found)  # type: ignore[assignment]
        results.extend(found)
    watched.graph.outputs.clear()
    watched.graph.outputs.extend(results)
    edit.remove_dead(watched)
    names = [name for group in outputs.values() for name in group]
    sess = execute.session(watched, threads=threads)
    sums: dict[str, list[Array]] = {}
    for feed in feeds:
        got = dict(zip(names, execute.run(sess, feed, names), strict=True))
        for key, (noise, power, mean) in outputs.items():
            new = [
                np.asarray(got[noise], np.float64),
                np.asarray(got[power], np.float64),
                np.asarray(got[mean], np.float64),
            ]
            new[1] = np.maximum(new[1] - np.square(new[2]), 1e-20)  # variance
            sums[key] = [a + b for a, b in zip(sums[key], new, strict=True)] if key in sums else new
    return {
        key: -10 * float(np.log10(max(np.minimum(s[0] / s[1], 1).mean(), 1e-12))) for key, s in sums.items()
    }


def _watch(
    model: Any, node: ir.Node, shop: Workshop, ranges: Mapping[str, tuple[float, float]]
) -> list[ir.Value]:
    """Outputs: mean squared error, mean square and mean by output channel."""
    graph = model.graph
    source = node.inputs[0]
    assert source is not None
    name = source.name or ""
    grid = site_grid(shop.placed.sites[name], *ranges[name])

    def add(op: str, inputs: list[ir.Value | None], **attributes: Any) -> ir.Value:
        new = edit.make_node(model, op, inputs, attributes, name="suspect", dtype=ir.DataType.FLOAT)
        graph.append(new)
        return new.outputs[0]

    scale = edit.add_constant(model, graph, "suspect", np.asarray(grid.dq_scale, np.float32))
    zero = edit.add_constant(model, graph, "suspect", np.asarray(grid.dq_zero, np.uint8))
    codes = add("QuantizeLinear", [source, scale, zero])
    codes.type = ir.TensorType(ir.DataType.UINT8)
    rough = add("DequantizeLinear", [codes, scale, zero])
    same = {key: attribute.value for key, attribute in node.attributes.items()}
    result = add(node.op_type, [rough, *node.inputs[1:]], **same)
    wanted = node.outputs[0]
    weight = constant(node.inputs[1])
    rank = len(weight.shape) if weight is not None else 4
    dims = shop.shapes.of(wanted)
    if node.op_type == "Conv":
        axes = [0, *range(2, rank)]
    else:
        axes = list(range((len(dims) if dims else 2) - 1))
    error = add("Sub", [result, wanted])
    return [
        add("ReduceMean", [add("Mul", [error, error])], axes=axes, keepdims=0),
        add("ReduceMean", [add("Mul", [wanted, wanted])], axes=axes, keepdims=0),
        add("ReduceMean", [wanted], axes=axes, keepdims=0),
    ]


def with_makers(shop: Workshop, keys: Iterable[str]) -> set[str]:
    """The layers and those that make what they read: an input in float is of use only if it was float before, too."""
    integer = set(shop.placed.nodes)
    found: set[str] = set()
    for key in keys:
        found.add(key)
        waiting = list(data_inputs(shop.layers[key]))
        seen: set[ir.Value] = set()
        while waiting:
            value = waiting.pop()
            producer = value.producer()
            if producer is None or value in seen or constant(value) is not None:
                continue
            seen.add(value)
            if node_key(producer) in shop.layers:
                found.add(node_key(producer))
            elif producer in integer or producer.op_type in {"Relu", "Clip", "Mul", "Add", "Div", "Sub"}:
                waiting.extend(v for v in producer.inputs if v is not None)
    return found
