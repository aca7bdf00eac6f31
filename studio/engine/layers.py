"""Which nodes are layers, what each costs, and the preflight of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from studio.engine.graph import (
    Model,
    Shapes,
    constant,
    digest,
    dynamic_dimensions,
    file_bytes,
    graphs,
    holder,
    infer_shapes,
    load,
    node_key,
    nodes,
    to_bytes,
    type_name,
)
from studio.records.model import Cost, Layer, ModelInfo, Outline, OutlineNode, TensorInfo
from studio.records.task import Inspected


@dataclass(frozen=True)
class LayerNode:
    """A layer together with the graph objects that it is made of.

    Attributes:
        record: what the front sees.
        node: the main node.
        weight: the value that holds the weights: an initializer or a Constant's output.
        bias: likewise; None without one.
        out_axis / in_axis: of the weight as stored; None where it has none.
        quantized: the weights are stored as integers.
        path: of its graph, '' for the main one.
    """

    record: Layer
    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None = None
    out_axis: int | None = None
    in_axis: int | None = None
    quantized: bool = False
    path: str = ""


@dataclass(frozen=True)
class Listing:
    """A model with its layers and costs at chosen input sizes.

    Attributes:
        layers: in graph order.
        nodes: by layer name.
        cost: of the whole model, weights outside layers included.
        input_sizes: the size chosen for every dynamic dimension.
    """

    model: Model
    shapes: Shapes
    layers: tuple[Layer, ...]
    nodes: Mapping[str, LayerNode]
    cost: Cost
    input_sizes: Mapping[str, int]

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs that a caller must feed."""
        return tuple(_tensor_info(v) for v in self.model.graph.inputs if not v.is_initializer())


_WEIGHT_INPUT = {
    "Conv": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "MatMul": 1,
    "LSTM": 1,
    "GRU": 1,
    "RNN": 1,
    "Gather": 0,
}


def list_layers(model: Model, input_sizes: Mapping[str, int] | None = None) -> Listing:
    """Find the layers of a model and what they cost."""
    sizes = {**dynamic_dimensions(model), **(input_sizes or {})}
    shapes = infer_shapes(model, sizes)
    found: dict[str, LayerNode] = {}
    total = Cost()
    for path, graph in graphs(model):
        for node in graph:
            position = _WEIGHT_INPUT.get(node.op_type)
            weight = None if position is None else holder(node.inputs[position])
            tensor = constant(weight)
            if weight is None or tensor is None:
                continue
            name = "/".join(filter(None, (path, node.name or node_key(node))))
            cost = Cost(parameters=tensor.size, bytes=tensor.nbytes)
            total += cost
            record = Layer(
                name=name,
                key=node_key(node),
                op=node.op_type,
                operators=(node.op_type,),
                nodes=(node_key(node),),
                weight=weight.name or "",
                weight_shape=tuple(tensor.shape.numpy()),
                dtype=type_name(tensor.dtype),
                precision="fp32",
                cost=cost,
                share=0.0,
                output_shape=shapes.of(node.outputs[0]),
            )
            found[name] = LayerNode(record=record, node=node, weight=weight, path=path)
    return Listing(model, shapes, tuple(n.record for n in found.values()), found, total, sizes)


def inspect(path: Path, input_sizes: Mapping[str, int], stripped: Path | None) -> Inspected:
    """Everything the front wants to know of a model file; `stripped` is where the weightless copy goes."""
    model = load(path)
    listing = list_layers(model, input_sizes)
    if stripped is not None:
        stripped.write_bytes(to_bytes(model, weights=False))
    source = model.ir
    info = ModelInfo(
        path=str(path),
        name=path.stem,
        digest=digest(path),
        file_bytes=file_bytes(path),
        opsets=tuple(source.opset_imports.items()),
        ir_version=source.ir_version or 0,
        producer=" ".join(filter(None, (source.producer_name, source.producer_version))),
        inputs=tuple(_tensor_info(v) for v in source.graph.inputs if not v.is_initializer()),
        outputs=tuple(_tensor_info(v) for v in source.graph.outputs),
        input_sizes=tuple(listing.input_sizes.items()),
        cost=listing.cost,
        layers=listing.layers,
        findings=(),
        nodes=sum(1 for _ in nodes(model)),
    )
    return Inspected(info=info, outline=_outline(listing))


def _tensor_info(value: ir.Value) -> TensorInfo:
    shape = value.shape
    return TensorInfo(
        name=value.name or "",
        dtype=type_name(value.dtype),
        shape=None if shape is None else tuple(d if isinstance(d, int) else str(d) for d in shape),
    )


def _outline(listing: Listing) -> Outline:
    """The top graph as the native overview draws it."""
    owners = {key: layer.name for layer in listing.layers for key in layer.nodes}
    top = list(listing.model.graph)
    index = {node: number for number, node in enumerate(top)}
    outline = tuple(
        OutlineNode(key=node_key(n), op=n.op_type, name=n.name or "", layer=owners.get(node_key(n), ""))
        for n in top
    )
    edges = {
        (index[producer], index[node])
        for node in top
        for value in node.inputs
        if value is not None and (producer := value.producer()) in index
    }
    return Outline(nodes=outline, edges=tuple(sorted(edges)))
