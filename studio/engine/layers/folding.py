"""Weights that a graph computes from constants, computed once and stored.

Exporters reorder the gates of recurrent layers and join weights by Slice and Concat nodes. No technique follows
those, so they are run once where a layer is treated; its weights are then constants as any other's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from studio.engine import edit, execute
from studio.engine.graph import Model, constant, copy, holder
from studio.engine.layers.find import Listing, list_layers


def with_weights_folded(listing: Listing, names: Iterable[str]) -> Listing:
    """The listing of a copy in which weights are stored as they are used, where a named layer computes its own.

    Layers that share what their weights are computed from share the result, so all of them are folded together.

    Args:
        listing: returned as it is where no named layer computes its weights.
        names: of layers; they keep their names and keys.
    """
    if not any(listing.nodes[name].foldable for name in names):
        return listing
    model = copy(listing.model)
    nodes = list_layers(model, dict(listing.input_sizes)).nodes
    uses = [
        (layer.node, position, value)
        for layer in nodes.values()
        if layer.foldable
        for position, value in enumerate(layer.node.inputs)
        if value is not None and constant(value) is None and _steps(value) is not None
    ]
    values = list({id(value): value for _node, _position, value in uses}.values())
    arrays = dict(zip(map(id, values), _evaluated(model, values), strict=True))
    stored: dict[tuple[int, bytes], ir.Value] = {}
    for node, position, value in uses:
        array, home = arrays[id(value)], _home(value)
        same = (id(home), str((array.dtype, array.shape)).encode() + array.tobytes())
        if same not in stored:
            stored[same] = edit.add_constant(model, home, f"{value.name}_folded", array)
        node.replace_input_with(position, stored[same])
    edit.remove_dead(model)
    return list_layers(model, dict(listing.input_sizes))


def _home(value: ir.Value) -> ir.Graph:
    """Where the largest constant behind a value lies: whoever reads the value can read that, too."""
    leaves = [h for node in _steps(value) or () for v in node.inputs if (h := holder(v)) is not None]
    largest = max(leaves, key=lambda leaf: 0 if leaf.const_value is None else leaf.const_value.nbytes)
    producer = largest.producer()
    graph = largest.graph if producer is None else edit.owner(producer)
    assert isinstance(graph, ir.Graph)
    return graph


def _steps(value: ir.Value) -> list[ir.Node] | None:
    """The nodes that compute a value from constants alone, producers first; None where it is not so."""
    ordered: dict[ir.Node, None] = {}
    waiting = [value]
    while waiting:
        current = waiting[-1]
        node = current.producer()
        if constant(current) is not None or (node is not None and node in ordered):
            waiting.pop()
            continue
        if node is None or not node.inputs:
            return None
        before = [
            v for v in node.inputs if v is not None and constant(v) is None and v.producer() not in ordered
        ]
        if before:
            waiting.extend(before)
        else:
            ordered[node] = None
            waiting.pop()
    return list(ordered)


def _evaluated(model: Model, values: Sequence[ir.Value]) -> list[execute.Array]:
    """What values made of constants alone amount to, in any of the model's graphs."""
    steps: dict[ir.Node, None] = {}
    for value in values:
        steps.update(dict.fromkeys(_steps(value) or ()))
    leaves = {v.name: v for node in steps for v in node.inputs if v is not None and constant(v) is not None}
    proto = onnx.helper.make_graph(
        [ir.to_proto(node) for node in steps],
        "weights",
        [],
        [onnx.ValueInfoProto(name=value.name) for value in values],
        [_tensor(name or "", leaf) for name, leaf in leaves.items()],
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.ir.opset_imports.items()]
    whole = onnx.helper.make_model(proto, opset_imports=opsets, ir_version=model.ir.ir_version)
    sess = execute.session(whole.SerializeToString(), threads=1, optimize="off")
    names = [value.name or "" for value in values]
    return [np.asarray(array) for array in execute.run(sess, {}, names)]


def _tensor(name: str, value: ir.Value) -> onnx.TensorProto:
    tensor = constant(value)
    assert tensor is not None
    proto = ir.to_proto(ir.Tensor(tensor.numpy(), dtype=tensor.dtype))
    proto.name = name
    return proto
