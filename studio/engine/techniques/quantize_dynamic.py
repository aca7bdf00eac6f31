"""Dynamic int8: 8-bit weights, activations quantized at every run with ranges of their own. Needs no data.

y = s_x s_w Σ (q_x − z_x) q_w. Embeddings and recurrent layers get 8-bit weights and compute in float: there is no
product to speed up in the former, and the state of the latter is fed back, so that its rounding errors pile up.

Source: ONNX DynamicQuantizeLinear, MatMulInteger; onnxruntime, ContribOperators.md, MatMulNBits (accuracy_level 4).
"""

from __future__ import annotations

from typing import cast

import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Model, constant, copy, graphs, node_key, raise_opset
from studio.engine.layers import LayerNode, Listing
from studio.engine.quantization import dynamic, storage, weight_only
from studio.engine.quantization import weights as integers
from studio.engine.quantization.grids import sqnr_db
from studio.engine.quantization.promise import promise
from studio.engine.techniques.contract import Context
from studio.records.plan import Plan, Refusal
from studio.records.steps import QuantizeDynamic, QuantizeWeights, Settings, Step

# 8-bit MatMulNBits: the block at which onnxruntime is as fast as with one scale a channel.
_BLOCKS = QuantizeWeights(bits=8, block=128)
_OLDEST = 11


class DynamicInt8:
    """See the module."""

    settings: type[Settings] = QuantizeDynamic

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`."""
        del context
        settings = _settings(step)
        refusals: list[Refusal] = []
        words: dict[str, str] = {}
        for name in step.layers:
            refusal = _why_not(listing.nodes[name], settings)
            if refusal is not None:
                refusals.append(refusal)
            else:
                words[name] = _words(listing.nodes[name].node, settings)
        if not words:
            return promise(listing, step, None, {}, refusals)
        notes = []
        if settings.convolutions and any(listing.nodes[n].node.op_type == "Conv" for n in words):
            notes.append("Dynamic int8 convolutions run slower than float ones in onnxruntime.")
        return promise(
            listing, step, _write(listing, step, list(words), Context(), blank=True), words, refusals, notes
        )

    def draft(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Drafting.draft`."""
        del context
        return _write(listing, plan.step, [a.layer for a in plan.actions], Context(), blank=True)

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        return _write(listing, plan.step, [a.layer for a in plan.actions], context, blank=False)


def _settings(step: Step) -> QuantizeDynamic:
    return cast("QuantizeDynamic", step.settings)


def _why_not(layer: LayerNode, settings: QuantizeDynamic) -> Refusal | None:
    name, node = layer.record.name, layer.node
    tensor = constant(layer.weight)
    if layer.quantized:
        return Refusal(layer=name, reason="its weights are integers already")
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return Refusal(layer=name, reason=f"its weights are {layer.record.dtype}, not float32")
    if layer.between:
        return Refusal(layer=name, reason=f"its weights pass through {layer.between[0].op_type} first")
    if tensor.size < weight_only.SMALLEST:
        return Refusal(
            layer=name, reason=f"it has only {tensor.size} weights: scales would take as much as is saved"
        )
    if node.op_type in {"Conv", "ConvTranspose"} and not (node.op_type == "Conv" and settings.convolutions):
        return Refusal(
            layer=name,
            reason=f"onnxruntime runs a dynamic int8 {node.op_type} slower than a float one, if at all",
            hint="Static int8 is fast, weights only is small.",
        )
    return None


def _integer(node: ir.Node, settings: QuantizeDynamic) -> bool:
    """Whether a layer becomes an integer product of its own; otherwise its weights are stored in blocks."""
    if node.op_type == "Conv":
        return True
    return settings.form == "integer" and storage.matrix_view(node, 1) is not None


def _words(node: ir.Node, settings: QuantizeDynamic) -> str:
    if _integer(node, settings):
        return (
            "int8 weights per channel, uint8 activations"
            if settings.per_channel
            else "int8 weights, uint8 activations"
        )
    if weight_only.form(node, _BLOCKS) == "matmul":
        return "int8 weights in blocks of 128, int8 activations by row (MatMulNBits)"
    return weight_only.describe(node, _BLOCKS)


def _write(listing: Listing, step: Step, names: list[str], context: Context, *, blank: bool) -> Model:
    settings = _settings(step)
    products = {n for n in names if _integer(listing.nodes[n].node, settings)}
    source = (
        listing.model
        if not products or listing.model.opset >= _OLDEST
        else raise_opset(listing.model, _OLDEST)
    )
    targets = [weight_only.Target(n, listing.nodes[n].record.key, listing.nodes[n].path) for n in names]
    writer = weight_only.Writer(
        copy(source), _BLOCKS, [t for t in targets if t.name not in products], None if blank else {}
    )
    nodes = {(path, node_key(n)): n for path, graph in graphs(writer.model) for n in graph}
    for done, target in enumerate(targets):
        context.progress.tick(done / len(targets), f"{target.name}: int8")
        if target.name not in products:
            pair = writer.write(target)
            quality = "" if pair is None else f", {sqnr_db(*pair):.1f} dB"
        else:
            quality = _write_integer(writer.model, nodes[target.path, target.key], settings, blank=blank)
        context.treated(writer.model, target.name, f"{target.name}: int8{quality}")
    edit.remove_dead(writer.model)
    return writer.finish()


def _write_integer(model: Model, node: ir.Node, settings: QuantizeDynamic, *, blank: bool) -> str:
    tensor = constant(node.inputs[1])
    assert tensor is not None
    matrix = storage.matrix_view(node, 1)
    flipped = matrix is not None and not matrix[2]
    axis = (0 if node.op_type == "Conv" or flipped else 1) if settings.per_channel else None
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if blank:
        weights, quality = integers.zeros(shape, axis), ""
    else:
        weights = integers.per_channel(tensor.numpy(), axis)
        quality = f", {sqnr_db(tensor.numpy(), weights.real()):.1f} dB"
    if node.op_type == "Conv":
        dynamic.write_convolution(model, node, weights)
    else:
        dynamic.write_product(model, node, weights, transposed=flipped)
    return quality
