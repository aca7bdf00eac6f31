"""The preflight: what a user should know of a model before any technique touches it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import onnx_ir as ir
from onnx import defs

from studio.base.units import file_size
from studio.engine.graph import Model, constant, graphs, holder, is_constant_node, nodes, subgraphs
from studio.engine.layers.find import Listing
from studio.records.model import Finding, Layer

_OLDEST_OPSET, _PER_CHANNEL_OPSET, _BLOCK_OPSET = 7, 13, 21
_STANDARD = {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.training"}
_RUNTIME = {"com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "com.microsoft.experimental"}
# Constants outside of layers are worth a word from this share of the model on.
_LARGE_SHARE, _LARGE_BYTES = 0.05, 1_000_000


def preflight(listing: Listing, not_finite: Sequence[str] = ()) -> tuple[Finding, ...]:
    """All findings, the gravest first.

    Args:
        listing: the model.
        not_finite: names of layers whose weights hold NaN or Inf.
    """
    found = [
        *_opset(listing.model),
        *_no_layers(listing),
        *_not_finite(not_finite),
        *_custom_operators(listing.model),
        *_weights_as_inputs(listing.model),
        *_functions(listing.model),
        *_dynamic_dimensions(listing),
        *_unknown_shapes(listing),
        *_quantized(listing.layers),
        *_untreatable(listing.layers),
        *_control_flow(listing),
        *_shared(listing.layers),
        *_large_constants(listing),
    ]
    order = {"blocker": 0, "caution": 1, "note": 2}
    return tuple(sorted(found, key=lambda f: order[f.level]))


def _some(names: Sequence[str], limit: int = 3) -> str:
    """'a, b, c and 4 more'."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _opset(model: Model) -> Iterator[Finding]:
    version = model.opset or model.ir.opset_imports.get("ai.onnx", 0)
    if not version:
        yield Finding(
            level="caution", subject="opset", what="The model names no version of the standard operators."
        )
    elif version < _OLDEST_OPSET:
        yield Finding(
            level="caution",
            subject="opset",
            what=f"Opset {version} is older than what onnxruntime promises to run ({_OLDEST_OPSET}).",
            hint="Export the model again with opset 17 or later if anything fails.",
        )
    elif version < _PER_CHANNEL_OPSET:
        yield Finding(
            level="note",
            subject="opset",
            what=f"Opset {version}: it is raised to {_PER_CHANNEL_OPSET} or {_BLOCK_OPSET} where a technique needs that.",
        )
    else:
        yield Finding(level="note", subject="opset", what=f"Opset {version}.")


def _no_layers(listing: Listing) -> Iterator[Finding]:
    if not listing.layers:
        yield Finding(
            level="blocker",
            subject="no layers",
            what="No operator that is known to own weights has any, so there is nothing to compress.",
        )


def _not_finite(names: Sequence[str]) -> Iterator[Finding]:
    if names:
        yield Finding(
            level="caution",
            subject="NaN or Inf weights",
            what=f"{len(names)} {'layer holds' if len(names) == 1 else 'layers hold'} NaN or infinite weights: {_some(names)}.",
            hint="The training probably diverged. These layers are refused; what trains on them spreads the fault.",
            layers=tuple(names),
        )


def _custom_operators(model: Model) -> Iterator[Finding]:
    known = {f[0] for f in model.ir.functions}
    counted = Counter(
        f"{n.domain}::{n.op_type}" if n.domain else n.op_type
        for n in nodes(model)
        if n.domain not in _RUNTIME and n.domain not in known and not _is_standard(n)
    )
    if counted:
        names = [f"{name} ×{count}" for name, count in counted.most_common()]
        yield Finding(
            level="caution",
            subject="custom operators",
            what=f"Operators that plain onnxruntime does not have: {_some(names)}.",
            hint="Layers can be listed and treated, but nothing can be measured without the library that brings them.",
        )


def _is_standard(node: ir.Node) -> bool:
    return node.domain in _STANDARD and defs.has(
        node.op_type, node.domain if node.domain != "ai.onnx" else ""
    )


def _weights_as_inputs(model: Model) -> Iterator[Finding]:
    count = sum(v.is_initializer() for v in model.graph.inputs)
    if count and (model.ir.ir_version or 0) >= 4:
        yield Finding(
            level="note",
            subject="weights as inputs",
            what=f"{count} weights are named as inputs that a caller may replace; that keeps a runtime from optimizing them.",
            hint="Treated weights are taken from the list of inputs.",
        )


def _functions(model: Model) -> Iterator[Finding]:
    if model.ir.functions:
        names = [name for _domain, name, _overload in model.ir.functions]
        yield Finding(
            level="caution",
            subject="functions",
            what=f"The model calls functions that could not be written out: {_some(names)}.",
            hint="Weights inside of functions are not listed.",
        )


def _dynamic_dimensions(listing: Listing) -> Iterator[Finding]:
    if listing.input_sizes:
        chosen = _some([f"{name} = {size}" for name, size in listing.input_sizes.items()], 6)
        yield Finding(
            level="note",
            subject="dynamic dimensions",
            what=f"Costs are counted at {chosen}.",
            hint="Choose other sizes under Model → Input sizes, or with --input-size NAME=N.",
        )


def _unknown_shapes(listing: Listing) -> Iterator[Finding]:
    names = tuple(layer.name for layer in listing.layers if layer.cost.macs is None)
    if names:
        yield Finding(
            level="caution",
            subject="unknown shapes",
            what=f"MACs of {len(names)} layers are not known at these input sizes: {_some(names)}.",
            hint="The model may not run at these sizes; choose those that it was made for.",
            layers=names,
        )


def _quantized(layers: Sequence[Layer]) -> Iterator[Finding]:
    names = tuple(
        layer.name for layer in layers if layer.precision.startswith("int") or "rounded" in layer.precision
    )
    if names:
        kinds = Counter(layer.precision for layer in layers if layer.name in set(names))
        words = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())
        yield Finding(
            level="note",
            subject="quantized already",
            what=f"{len(names)} of {len(layers)} layers are quantized already: {words}.",
            hint="Quantizing them again is refused; start from the float model to choose anew.",
            layers=names,
        )


def _untreatable(layers: Sequence[Layer]) -> Iterator[Finding]:
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        if layer.untreatable:
            reasons.setdefault(layer.untreatable, []).append(layer.name)
    for reason, names in reasons.items():
        yield Finding(
            level="note",
            subject="cannot be treated",
            what=f"{_some(names)}: {reason}.",
            layers=tuple(names),
        )


def _control_flow(listing: Listing) -> Iterator[Finding]:
    counted = Counter(n.op_type for n in nodes(listing.model) if any(True for _ in subgraphs(n)))
    if counted:
        words = ", ".join(f"{count} {op}" for op, count in counted.most_common())
        inside = sum(1 for layer in listing.nodes.values() if layer.path)
        where = f" {inside} layers lie in their bodies." if inside else ""
        yield Finding(
            level="note",
            subject="control flow",
            what=f"The graph branches or loops ({words}).{where}",
            hint="MACs count the dearer branch of an If.",
        )


def _shared(layers: Sequence[Layer]) -> Iterator[Finding]:
    names = tuple(layer.name for layer in layers if layer.shared_with)
    if names:
        yield Finding(
            level="note",
            subject="shared weights",
            what=f"{len(names)} layers share weights with others; their bytes are counted once, with the first.",
            layers=names,
        )


def _large_constants(listing: Listing) -> Iterator[Finding]:
    """Tables and masks that no layer owns but that take a good part of the file."""
    owned = {id(v) for layer in listing.nodes.values() for v in layer.constants}
    large: list[tuple[int, str]] = []
    for _path, graph in graphs(listing.model):
        held = [*graph.initializers.values(), *(n.outputs[0] for n in graph if is_constant_node(n))]
        for value in held:
            tensor = constant(value)
            if tensor is None or id(holder(value)) in owned:
                continue
            if tensor.nbytes >= max(_LARGE_BYTES, _LARGE_SHARE * listing.cost.bytes):
                large.append((int(tensor.nbytes), value.name or ""))
    if large:
        names = [f"{name} ({file_size(size)})" for size, name in sorted(large, reverse=True)]
        yield Finding(
            level="note",
            subject="large constants",
            what=f"Constants outside of layers that no technique treats: {_some(names)}.",
        )
