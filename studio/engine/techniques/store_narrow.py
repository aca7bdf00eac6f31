"""Narrow storage: weights lie in the file as 16- or 8-bit floats and become float32 when the model is loaded.

w ≈ f(w) in bfloat16 (8 bits of precision, the range of float32) or float16 (11 bits, up to 65,504), or w ≈ s f(w / s)
in float8 E4M3 (4 bits) with s = max|w| / 448. A Cast of a constant is folded by the runtime, so speed and memory are those
of the float model; only the file shrinks. Relative error at most 2⁻⁹, 2⁻¹² and 2⁻⁴ of every weight that is not tiny.

Source: ONNX Cast-13 (bfloat16) and Cast-19 (float8); Micikevicius et al. 2022, "FP8 Formats for Deep Learning", §3.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeAlias, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Model, constant, copy, graphs, is_constant_node, raise_opset
from studio.engine.layers import LayerNode, Listing
from studio.engine.quantization.grids import sqnr_db
from studio.engine.quantization.promise import promise
from studio.engine.techniques.contract import Context
from studio.records.plan import Plan, Refusal
from studio.records.steps import Settings, Step, StoreNarrow

Array: TypeAlias = npt.NDArray[Any]

# Format: numpy's type, the first opset whose Cast reads it, the largest number.
_FORMATS: dict[str, tuple[Any, int, float]] = {
    "bf16": (ml_dtypes.bfloat16, 13, 3.0e38),
    "fp16": (np.float16, 7, 65504.0),
    "fp8": (ml_dtypes.float8_e4m3fn, 19, 448.0),
}
_SMALLEST = 64


class NarrowStorage:
    """See the module."""

    settings: type[Settings] = StoreNarrow

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`."""
        del context
        format_ = _format(step)
        chosen = set(step.layers)
        refusals = [
            Refusal(layer=n, reason=why)
            for n in step.layers
            if (why := _why_not(listing.nodes[n], format_, chosen))
        ]
        refused = {r.layer for r in refusals}
        words = {n: f"stored as {format_}, computed in fp32" for n in step.layers if n not in refused}
        if not words:
            return promise(listing, step, None, {}, refusals)
        drafted = _written(listing, list(words), format_, Context())
        notes = ["The file shrinks; the runtime widens the weights when it loads them: no speed, no memory."]
        if drafted.opset > listing.model.opset:
            notes.append(
                f"The opset is raised from {listing.model.opset} to {drafted.opset} for the type of the weights."
            )
        return promise(listing, step, drafted, words, refusals, notes)

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        return _written(listing, [a.layer for a in plan.actions], _format(plan.step), context)


def _format(step: Step) -> str:
    return cast("StoreNarrow", step.settings).format


def _why_not(layer: LayerNode, format_: str, chosen: Collection[str]) -> str:
    """Why a layer's weights cannot be stored so; '' when they can."""
    tensor = constant(layer.weight)
    if layer.quantized or tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return f"its weights are {layer.record.dtype}, not float32"
    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in layer.between):
        return "its weights pass through quantization already"
    if tensor.size < _SMALLEST:
        return f"it has only {tensor.size} weights: the node that widens them would take as much as is saved"
    others = [name for name in layer.record.shared_with if name not in chosen]
    if others:
        return f"its weights are also those of {others[0]}, which was not chosen"
    for value in layer.weights:
        held = constant(value)
        if held is None or held.dtype != ir.DataType.FLOAT:
            continue
        largest = float(np.abs(held.numpy()).max(initial=0))
        if not np.isfinite(largest):
            return "its weights hold NaN or infinities"
        if format_ != "fp8" and largest > _FORMATS[format_][2]:
            return f"its weights reach {largest:.3g}, more than {format_} can hold"
    return ""


def narrowed(weights: Array, format_: str) -> tuple[Array, float]:
    """(the numbers as they are stored, what they are to be multiplied with)."""
    kind, _opset, top = _FORMATS[format_]
    largest = float(np.abs(weights).max(initial=0))
    scale = largest / top if format_ == "fp8" and largest > 0 else 1.0
    scale = float(np.float32(max(scale, float(np.finfo(np.float32).tiny))))
    return (weights / np.float32(scale)).clip(-top, top).astype(kind), scale


def _written(listing: Listing, names: Sequence[str], format_: str, context: Context) -> Model:
    """A copy with the named layers' weights narrow."""
    opset = _FORMATS[format_][1]
    model = copy(listing.model) if listing.model.opset >= opset else raise_opset(listing.model, opset)
    stored = {
        (path, value.name): value
        for path, graph in graphs(model)
        for value in (
            *graph.initializers.values(),
            *(node.outputs[0] for node in graph if is_constant_node(node)),
        )
    }
    paths = {id(graph): path for path, graph in graphs(listing.model)}
    done: set[tuple[str, str | None]] = set()
    for number, name in enumerate(names):
        context.progress.tick(number / len(names), f"{name}: {format_}")
        quality = ""
        for weight in listing.nodes[name].weights:
            place = paths.get(id(weight.graph), ""), weight.name
            tensor = constant(weight)
            if (
                place in done
                or tensor is None
                or tensor.dtype != ir.DataType.FLOAT
                or tensor.size < _SMALLEST
            ):
                continue
            done.add(place)
            quality = quality or _write(model, stored[place], tensor.numpy(), format_)
        context.treated(model, name, f"{name}: {format_}{quality}")
    edit.remove_dead(model)
    return model


def _write(model: Model, value: ir.Value, weights: Array, format_: str) -> str:
    """Let every user of a stored weight read its narrow form, widened; how near that is, in words."""
    home = value.graph
    assert isinstance(home, ir.Graph)
    narrow, scale = narrowed(weights, format_)
    held = edit.add_constant(model, home, f"{value.name}_{format_}", narrow)
    nodes = [
        edit.make_node(
            model, "Cast", [held], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}_widen", dtype=ir.DataType.FLOAT
        )
    ]  # fmt: skip
    if format_ == "fp8":
        factor = edit.add_constant(model, home, f"{value.name}_scale", np.full(1, scale, np.float32))
        nodes.append(
            edit.make_node(
                model, "Mul", [nodes[0].outputs[0], factor], name=f"{value.name}_scaled", dtype=ir.DataType.FLOAT
            )
        )  # fmt: skip
    for node in nodes:
        node.outputs[0].shape = ir.Shape(weights.shape)
    maker = value.producer()
    edit.replace_uses(value, nodes[-1].outputs[0])
    if maker is not None:
        home.insert_after(maker, nodes)
    else:
        home.insert_before(home[0], nodes)
    return f", {sqnr_db(weights, narrow.astype(np.float32) * np.float32(scale)):.1f} dB"
