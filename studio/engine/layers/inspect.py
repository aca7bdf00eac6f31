"""Everything the front wants to know of a model file, without a weight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from studio.engine.graph import constant, digest, file_bytes, load, node_key, nodes, to_bytes
from studio.engine.layers.find import Listing, list_layers
from studio.engine.layers.precision import Numbers, count_numbers, is_finite
from studio.engine.layers.preflight import preflight
from studio.records.model import Layer, ModelInfo, Outline, OutlineNode
from studio.records.task import Inspected

_RELEASE_AFTER = 64_000_000  # bytes of weights


def inspect(
    path: Path, input_sizes: Mapping[str, int] | None = None, stripped: Path | None = None
) -> Inspected:
    """List a model file.

    Args:
        path: of the model.
        input_sizes: of dynamic dimensions by name; those not named get a likely size.
        stripped: where the weightless copy for the graph view goes; None = not wanted.

    Raises:
        StudioError: the file cannot be read.
    """
    return describe(list_layers(load(path), input_sizes), path, stripped)


def describe(listing: Listing, path: Path, stripped: Path | None = None) -> Inspected:
    """The same for a model that is listed already."""
    model = listing.model
    if stripped is not None:
        stripped.write_bytes(to_bytes(model, weights=False))
    numbers = _count_all(listing)
    source = model.ir
    info = ModelInfo(
        path=str(path),
        name=path.stem,
        digest=digest(path),
        file_bytes=file_bytes(path),
        opsets=tuple(("" if d == "ai.onnx" else d, v) for d, v in source.opset_imports.items()),
        ir_version=source.ir_version or 0,
        producer=" ".join(filter(None, (source.producer_name, source.producer_version))),
        inputs=listing.inputs,
        outputs=listing.outputs,
        input_sizes=tuple(listing.input_sizes.items()),
        cost=listing.cost,
        layers=tuple(_with_sparsity(layer, numbers[layer.name]) for layer in listing.layers),
        findings=preflight(listing, [name for name, n in numbers.items() if n is not None and not n.finite]),
        nodes=sum(1 for _ in nodes(model)),
    )
    return Inspected(info=info, outline=outline(listing), stripped=str(stripped or ""))


def not_finite(listing: Listing) -> frozenset[str]:
    """Layers whose weights hold NaN or infinities; memory is given back on the way."""
    found: set[str] = set()
    read = 0
    for name, layer in listing.nodes.items():
        tensors = (constant(weight) for weight in layer.weights)
        if not all(tensor is None or is_finite(tensor) for tensor in tensors):
            found.add(name)
        read += layer.record.cost.bytes
        if read > _RELEASE_AFTER:
            listing.model.release()
            read = 0
    return frozenset(found)


def _count_all(listing: Listing) -> dict[str, Numbers | None]:
    """The numbers of every layer; memory is given back on the way, so that models of any size can be counted."""
    numbers: dict[str, Numbers | None] = {}
    read = 0
    for name, layer in listing.nodes.items():
        numbers[name] = _count(listing, name)
        read += layer.record.cost.bytes
        if read > _RELEASE_AFTER:
            listing.model.release()
            read = 0
    return numbers


def _count(listing: Listing, name: str) -> Numbers | None:
    """The numbers of a layer's weight matrices, added up."""
    layer = listing.nodes[name]
    counted = [count_numbers(v, layer.zero_point, layer.out_axis) for v in layer.weights]
    known = [c for c in counted if c is not None]
    if len(known) < len(counted) or any(k for k, _v in layer.record.attributes if k == "bits"):
        return None
    return Numbers(sum(c.zeros for c in known), sum(c.values for c in known), all(c.finite for c in known))


def _with_sparsity(layer: Layer, numbers: Numbers | None) -> Layer:
    if numbers is None or not numbers.values:
        return layer
    return msgspec.structs.replace(layer, sparsity=numbers.zeros / numbers.values)


def outline(listing: Listing) -> Outline:
    """The main graph as the native overview draws it."""
    owners = {
        key: layer.name
        for layer in listing.layers
        if not listing.nodes[layer.name].path
        for key in layer.nodes
    }
    top = list(listing.model.graph)
    index = {node: number for number, node in enumerate(top)}
    drawn = tuple(
        OutlineNode(key=node_key(n), op=n.op_type, name=n.name or "", layer=owners.get(node_key(n), ""))
        for n in top
    )
    edges = {
        (index[producer], index[node])
        for node in top
        for value in node.inputs
        if value is not None and (producer := value.producer()) is not None and producer in index
    }
    return Outline(nodes=drawn, edges=tuple(sorted(edges)))
