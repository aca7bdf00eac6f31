"""Dynamic int8: 8-bit weights, activations quantized at every run with ranges of their own. Needs no data.

y = s_x s_w Σ (q_x − z_x) q_w. With calibration data outliers are moved from activations into weights first (SmoothQuant),
and integer products, the fastest form, are good enough. Behind a nonlinearity single rows have outliers: there every row
is brought to one range first. The careful preset rounds weights with error feedback in the metric of what they meet.
Without data all products become MatMulNBits, with ranges by row and block. Embeddings and recurrent layers get 8-bit
weights and compute in float: there is no product to speed up in the former, and the state of the latter is fed back, so
that its rounding errors pile up.

Source: ONNX DynamicQuantizeLinear, MatMulInteger; onnxruntime, ContribOperators.md, MatMulNBits (accuracy_level 4);
Frantar et al. 2023, "GPTQ".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import onnx_ir as ir

from studio.engine.graph import Model, constant, copy, graphs, node_key, raise_opset
from studio.engine.layers import LayerNode, Listing
from studio.engine.quantization import dynamic, smoothing, storage, weight_only
from studio.engine.quantization import weights as integers
from studio.engine.quantization.grids import sqnr_db
from studio.engine.quantization.moments import layer_moments
from studio.engine.quantization.promise import promise
from studio.engine.quantization.weight_only import Array
from studio.engine.techniques.contract import Context
from studio.records.plan import Plan, Refusal
from studio.records.steps import QuantizeDynamic, QuantizeWeights, Settings, Step

# 8-bit MatMulNBits: the block at which onnxruntime is as fast as with one scale a channel.
_BLOCKS = QuantizeWeights(bits=8, block=128)
_OLDEST = 11
# Samples that second moments are taken of, and what is added to their diagonal: few samples tell less than they seem to.
_ROUNDED, _DAMPING = 128, 0.05


class DynamicInt8:
    """See the module."""

    settings: type[Settings] = QuantizeDynamic
    tidies = True  # what is left beside integer products is mostly sizes
    treats_stored = True

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`."""
        settings = _settings(step)
        refusals: list[Refusal] = []
        words: dict[str, str] = {}
        for name in step.layers:
            refusal = _why_not(listing.nodes[name], settings)
            if refusal is not None:
                refusals.append(refusal)
            else:
                words[name] = _words(listing, name, settings, context)
        if not words:
            return promise(listing, step, None, {}, refusals)
        notes = []
        if context.calibration is None and settings.preset == "careful":
            notes.append("Careful needs calibration data: without it the weights are rounded as in Fast.")
        if context.calibration is None and settings.form == "auto":
            notes.append("With calibration data (a few dozen samples) the result would be faster.")
        if settings.convolutions and any(listing.nodes[n].node.op_type == "Conv" for n in words):
            notes.append("Dynamic int8 convolutions run slower than float ones in onnxruntime.")
        return promise(
            listing,
            step,
            _write(listing, step, list(words), _quiet(context), blank=True),
            words,
            refusals,
            notes,
        )

    def draft(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Drafting.draft`."""
        return _write(listing, plan.step, [a.layer for a in plan.actions], _quiet(context), blank=True)

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
    if any(between.op_type in {"QuantizeLinear", "DequantizeLinear"} for between in layer.between):
        return Refusal(layer=name, reason="its weights pass through quantization already")
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


def _quiet(context: Context) -> Context:
    """The same context with nobody listening: for plans."""
    return Context(calibration=context.calibration, threads=context.threads)


def _integer(listing: Listing, name: str, settings: QuantizeDynamic, context: Context) -> bool:
    """Whether a layer becomes an integer product of its own; otherwise its weights are stored in blocks."""
    node = listing.nodes[name].node
    if node.op_type == "Conv":
        return True
    if storage.matrix_view(node, 1) is None or settings.form == "blocks":
        return False
    return settings.form == "integer" or context.calibration is not None


def _by_row(listing: Listing, name: str, settings: QuantizeDynamic) -> bool:
    """Whether rows are brought to one range before they become integers: several a sample, behind a nonlinearity."""
    node = listing.nodes[name].node
    several = smoothing.several_rows(node, listing.shapes, listing.model)
    return several and _uneven(listing, name, settings)


def _uneven(listing: Listing, name: str, settings: QuantizeDynamic) -> bool:
    """Whether single rows have outliers, behind a nonlinearity: moving them channel by channel is of no use."""
    node = listing.nodes[name].node
    return (
        settings.form == "auto"
        and node.op_type != "Conv"
        and smoothing.behind_nonlinearity(node, listing.shapes)
    )


def _words(listing: Listing, name: str, settings: QuantizeDynamic, context: Context) -> str:
    node = listing.nodes[name].node
    if _integer(listing, name, settings, context):
        rows = ", every row in a range of its own" if _by_row(listing, name, settings) else ""
        bits = "7-bit" if settings.reduce_range else "int8"
        return f"{bits} weights{' per channel' if settings.per_channel else ''}, uint8 activations{rows}"
    if weight_only.form(node, _BLOCKS) == "matmul":
        return "int8 weights in blocks of 128, int8 activations by row (MatMulNBits)"
    return weight_only.describe(node, _BLOCKS)


def _write(listing: Listing, step: Step, names: list[str], context: Context, *, blank: bool) -> Model:
    settings = _settings(step)
    products = [n for n in names if _integer(listing, n, settings, context)]
    source = (
        listing.model
        if not products or listing.model.opset >= _OLDEST
        else raise_opset(listing.model, _OLDEST)
    )
    targets = [_target(listing, n) for n in names]
    model = copy(source)
    smoothed = [
        _target(listing, n)
        for n in products
        if not listing.nodes[n].path
        and listing.nodes[n].node.op_type != "Conv"
        and not _uneven(listing, n, settings)
    ]
    if context.calibration is not None and smoothed:
        rows = None if blank else _rows(listing, smoothed, context)
        smoothing.write(model, [t.key for t in smoothed], rows)
    moments = {} if blank else _moments(model, [_target(listing, n) for n in products], settings, context)
    rest = [t for t in targets if t.name not in products]
    kept = weight_only.layer_constants(listing) | _weights(model, targets)
    writer = weight_only.Writer(model, _BLOCKS, rest, None if blank else {}, kept)
    nodes = {(path, node_key(n)): n for path, graph in graphs(writer.model) for n in graph}
    progress = context.progress.part(0.5, 1.0)
    # Products first: a table that is shared with one is unpacked for all who still read it.
    for done, target in enumerate(sorted(targets, key=lambda t: t.name not in products)):
        progress.tick(done / len(targets), f"{target.name}: int8")
        if target.name not in products:
            pair = writer.write(target)
            quality = "" if pair is None else f", {sqnr_db(*pair):.1f} dB"
        else:
            node = nodes[target.path, target.key]
            by_row = _by_row(listing, target.name, settings)
            known = None if target.path else moments.get(target.key)
            quality = _write_integer(writer.model, node, settings, known, blank=blank, by_row=by_row)
        context.treated(writer.model, target.name, f"{target.name}: int8{quality}")
    return writer.finish()


def _weights(model: Model, targets: list[weight_only.Target]) -> set[str]:
    """Names of the layers' weights as they are now: those that took on outliers are new."""
    wanted = {(t.path, t.key) for t in targets}
    return {
        value.name or ""
        for path, graph in graphs(model)
        for node in graph
        if (path, node_key(node)) in wanted
        for value in node.inputs
        if constant(value) is not None and value is not None
    }


def _target(listing: Listing, name: str) -> weight_only.Target:
    return weight_only.Target(name, listing.nodes[name].record.key, listing.nodes[name].path)


def _rows(
    listing: Listing, targets: list[weight_only.Target], context: Context
) -> Mapping[str, smoothing.Rows]:
    """What the layers read, watched once for one model and data set."""
    data = context.calibration
    assert data is not None
    names = list(dict.fromkeys(listing.nodes[t.name].node.inputs[0].name or "" for t in targets))  # type: ignore[union-attr]
    key = ("rows", id(data), tuple(names))
    if key not in context.memo:
        context.memo[key] = smoothing.watch_rows(
            listing.model,
            names,
            data.feeds(),
            context.progress.part(0.0, 0.3),
            total=data.runs(),
            threads=context.threads,
        )
    return cast("Mapping[str, smoothing.Rows]", context.memo[key])


def _moments(
    model: Model, products: list[weight_only.Target], settings: QuantizeDynamic, context: Context
) -> Mapping[str, Array]:
    """Second moments of what the products read, outliers moved already; none where rounding is to be quick."""
    data = context.calibration
    if settings.preset != "careful" or data is None or not settings.per_channel:
        return {}
    keys = {t.key for t in products if not t.path}
    nodes = [node for node in model.graph if node_key(node) in keys]
    progress = context.progress.part(0.3, 0.5)
    data = data.take(_ROUNDED)
    return layer_moments(model, nodes, data.feeds(), progress, total=data.runs(), threads=context.threads)


def _write_integer(
    model: Model,
    node: ir.Node,
    settings: QuantizeDynamic,
    moments: Array | None,
    *,
    blank: bool,
    by_row: bool,
) -> str:
    tensor = constant(node.inputs[1])
    assert tensor is not None
    matrix = storage.matrix_view(node, 1)
    flipped = matrix is not None and not matrix[2]
    axis = (0 if node.op_type == "Conv" or flipped else 1) if settings.per_channel else None
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if blank:
        weights, quality = integers.zeros(shape, axis), ""
    else:
        bits = 7 if settings.reduce_range else 8
        if moments is None or axis is None:
            weights = integers.per_channel(tensor.numpy(), axis, bits)
        else:
            weights = integers.fed_back(tensor.numpy(), axis, bits, moments, damping=_DAMPING)
        quality = f", {sqnr_db(tensor.numpy(), weights.real()):.1f} dB"
    if node.op_type == "Conv":
        dynamic.write_convolution(model, node, weights)
    else:
        dynamic.write_product(model, node, weights, transposed=flipped, by_row=by_row)
    return quality
