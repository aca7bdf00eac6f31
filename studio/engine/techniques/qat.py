"""Quantization-aware training: Q/DQ nodes go into the graph first, then the weights learn to live with them.

The graph is that of static int8, with b-bit weights (b ≤ 8) and 8-bit activations. Float masters stand behind
the integers while training; rounding passes gradients straight through, step sizes are learned. The teacher is the
float model, so no labels are needed. 4-bit and narrower weights are stored as int4 behind a Cast to int8, which
the runtime folds when it loads: half the size of int8, and the same integer kernels.

Instead of all weights only their rounding may be learned, block by block: see `engine/training/reconstruction`.

Source: Jacob et al. 2018, §3; Esser et al. 2020 (learned step sizes); ONNX Cast 21 (int4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.base.errors import StudioError
from studio.engine import edit
from studio.engine.dataset import Dataset
from studio.engine.graph import Model, constant, node_key, raise_opset
from studio.engine.layers import LayerNode, Listing
from studio.engine.quantization import grids
from studio.engine.quantization import weights as integers
from studio.engine.quantization.calibrate import choose_range, observe
from studio.engine.quantization.placement import LAYERS
from studio.engine.quantization.promise import promise
from studio.engine.quantization.static import Choice, Workshop, fits
from studio.engine.techniques.contract import Context
from studio.records.plan import Plan, Refusal
from studio.records.steps import Qat, Settings, Step

if TYPE_CHECKING:
    from studio.engine.trainable import GraphModule
    from studio.engine.trainable.latent import Latent
    from studio.engine.training.loop import Hooks

Array: TypeAlias = npt.NDArray[Any]

_RECONSTRUCTED = 256  # samples that rounding is chosen on
_NARROW_OPSET = 21  # the first with int4 and a Cast for it


class AwareTraining:
    """See the module."""

    settings: type[Settings] = Qat

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`."""
        from studio.engine.techniques.learning import without_samples

        refusals = [Refusal(layer=n, reason=why) for n in step.layers if (why := _why_not(listing.nodes[n]))]
        refused = {r.layer for r in refusals}
        chosen = [n for n in step.layers if n not in refused]
        if why := without_samples(context, "quantization-aware training"):
            refusals = [Refusal(layer=n, reason=why) for n in step.layers]
            chosen = []
        bits = _settings(step).weights
        words = dict.fromkeys(
            chosen, f"int{bits} weights, uint8 activations, trained {_settings(step).length}"
        )
        drafted = self._structure(listing, step, chosen) if chosen else None
        return promise(listing, step, drafted, words, refusals, _notes(listing, bits))

    def draft(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Drafting.draft`."""
        del context
        return self._structure(listing, plan.step, [a.layer for a in plan.actions])

    def _structure(self, listing: Listing, step: Step, names: list[str]) -> Model:
        shop = _workshop(listing, names)
        return _narrowed(shop.build(shop.blank(), share=False), list(shop.layers), _settings(step).weights)

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        from studio.engine.techniques.learning import hooks_of, in_words, lesson, samples
        from studio.engine.training.session import teach, threads_of_torch

        settings = _settings(plan.step)
        data = samples(context)
        if data is None:
            raise StudioError(
                "Quantization-aware training needs samples",
                "neither training nor calibration data were given",
            )
        shop = _workshop(listing, [a.layer for a in plan.actions])
        model = shop.build(_first_choice(shop, settings, context), share=False)
        module, latents = _with_masters(model, shop, settings.weights, _others(listing, plan))
        wanted = lesson(plan, data, context, teacher=context.teacher or listing.model)
        late = replace(context, progress=context.progress.part(0.1, 1.0))
        hooks = hooks_of(late, listing.model, plan.step, wanted)
        if settings.learns == "rounding":
            context.note(_round_in_blocks(module, latents, shop, settings, data, hooks, context))
            return self._finished(plan, module, shop, latents, context)
        with threads_of_torch(context.threads):
            outcome = teach(module, replace(wanted, norms=False, fitted=False), hooks)
        context.note(in_words(outcome, labelled=False))
        return self._finished(plan, module, shop, latents, context)

    @staticmethod
    def _finished(
        plan: Plan, module: GraphModule, shop: Workshop, latents: Mapping[str, Latent], context: Context
    ) -> Model:
        settings = _settings(plan.step)
        result = _narrowed(_stored(module, shop, latents), list(shop.layers), settings.weights)
        for action in plan.actions:
            context.treated(result, action.layer, f"{action.layer}: int{settings.weights}, trained")
        return result


def _settings(step: Step) -> Qat:
    return cast("Qat", step.settings)


def _workshop(listing: Listing, names: list[str]) -> Workshop:
    return Workshop(listing.model, listing.shapes, [listing.nodes[n].record.key for n in names])


def _why_not(layer: LayerNode) -> str:
    """Why a layer cannot be trained on integers; '' when it can."""
    if layer.quantized:
        return "its weights are integers already"
    if layer.path:
        return "it lies in a subgraph, whose values calibration does not see"
    if layer.node.op_type not in LAYERS or not fits(layer.node):
        return f"onnxruntime has no integer kernel for this form of {layer.node.op_type}"
    return ""


def _notes(listing: Listing, bits: int) -> list[str]:
    needed = _NARROW_OPSET if bits <= 4 else 13
    if listing.model.opset < needed:
        return [f"The opset is raised from {listing.model.opset} to {needed}."]
    return []


def _first_choice(shop: Workshop, settings: Qat, context: Context) -> Choice:
    """Integers and ranges to begin with, as in static quantization."""
    assert context.calibration is not None or context.training is not None
    data = context.calibration if context.calibration is not None else context.training
    assert data is not None
    data = data.take(256)
    progress = context.progress.part(0.0, 0.1)
    seen = observe(
        shop.model,
        shop.watches(),
        data.feeds(),
        progress,
        total=data.runs(),
        threads=context.threads,
        samples=False,
    )
    ranges = {name: choose_range(observed, "minmax") for name, observed in seen.items()}
    search: integers.Search = "mse" if settings.weights < 8 else "max"
    weights = {
        k: integers.per_channel(shop.weight(k), shop.axis(k), settings.weights, search) for k in shop.layers
    }
    return Choice(weights, ranges)


def _round_in_blocks(
    module: GraphModule,
    latents: Mapping[str, Latent],
    shop: Workshop,
    settings: Qat,
    data: Dataset,
    hooks: Hooks,
    context: Context,
) -> str:
    """Choose the rounding of all weights block by block; what came of it, in words."""
    from studio.engine.training.reconstruction import Effort, ends, reconstruct
    from studio.engine.training.samples import Sample
    from studio.engine.training.session import threads_of_torch

    batches = data.take(_RECONSTRUCTED).batches(None if data.source.batch else settings.batch)
    effort = Effort(settings.steps, settings.minutes, settings.rate, context.seed)
    with threads_of_torch(context.threads):
        done = reconstruct(
            module, latents, shop.model, ends(shop.model, list(shop.layers)),
            [Sample(b.feed, None, None) for b in batches], effort, hooks, context.threads,
        )  # fmt: skip
    return f"Rounding chosen in {done.blocks} blocks; relative error of their outputs {done.before:.3g} → {done.after:.3g}."


def _others(listing: Listing, plan: Plan) -> frozenset[str]:
    """Constants of the layers that are not treated: they stay as they are."""
    treated = {a.layer for a in plan.actions}
    layers = [listing.nodes[layer.name] for layer in listing.layers if layer.name not in treated]
    return frozenset(v.name or "" for n in layers for v in (n.weight, *n.weights, *n.constants))


def _layers_of(model: Model, keys: list[str]) -> dict[str, ir.Node]:
    wanted = set(keys)
    return {key: node for node in model.graph if (key := node_key(node)) in wanted}


def _restore(node: ir.Node, position: int) -> ir.Node | None:
    """The DequantizeLinear behind an input of a layer."""
    value = node.inputs[position] if len(node.inputs) > position else None
    maker = None if value is None else value.producer()
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _with_masters(
    model: Model, shop: Workshop, bits: int, others: frozenset[str]
) -> tuple[GraphModule, Mapping[str, Latent]]:
    """The quantized graph as a module with a float master behind every integer weight and bias."""
    from studio.engine.trainable import GraphModule
    from studio.engine.trainable.latent import Master, attach

    low, high = grids.bounds(bits, signed=True, narrow=True)
    masters: dict[str, Master] = {}
    for key, node in _layers_of(model, list(shop.layers)).items():
        weight, bias = _restore(node, 1), _restore(node, 2)
        if weight is not None:
            masters[node_key(weight)] = Master(shop.weight(key), low, high)
        if bias is not None:
            held = shop.bias(key)
            size = constant(bias.inputs[0]).shape.numpy()  # type: ignore[union-attr]
            masters[node_key(bias)] = Master(np.zeros(size, np.float32) if held is None else held)
    module = GraphModule(model, trainable=lambda n: n not in others, unfolded={"DequantizeLinear"})
    return module, attach(module, masters)


def _stored(module: GraphModule, shop: Workshop, latents: Mapping[str, Latent]) -> Model:
    """The trained model: integers and step sizes where they were, biases on the product of both step sizes."""
    from studio.engine.trainable import write_back

    result = write_back(module)
    for node in _layers_of(result, list(shop.layers)).values():
        weight, bias, source = _restore(node, 1), _restore(node, 2), _restore(node, 0)
        if weight is None or source is None:
            continue
        whole, scale = latents[node_key(weight)].integers()
        _set(weight.inputs[0], whole.astype(np.int8))
        _set(weight.inputs[1], scale.astype(np.float32))
        if bias is None:
            continue
        step = _number(source.inputs[1]) * scale
        values = latents[node_key(bias)].weight.detach().numpy()
        limit = 2.0**31 - 1
        _set(
            bias.inputs[0], np.clip(np.rint(values / step.astype(np.float64)), -limit, limit).astype(np.int32)
        )
        _set(bias.inputs[1], step.astype(np.float32))
    return result


def _set(value: ir.Value | None, array: Array) -> None:
    assert value is not None
    edit.set_constant(value, array)


def _number(value: ir.Value | None) -> Array:
    tensor = constant(value)
    assert tensor is not None
    return np.asarray(tensor.numpy(), np.float32)


def _narrowed(model: Model, keys: list[str], bits: int) -> Model:
    """Weights of 4 bits and fewer stored as int4, with a Cast to int8 that the runtime folds away."""
    if bits > 4:
        return model
    result = raise_opset(model, _NARROW_OPSET)
    for node in _layers_of(result, keys).values():
        weight = _restore(node, 1)
        tensor = constant(weight.inputs[0]) if weight is not None else None
        if weight is None or tensor is None or tensor.dtype != ir.DataType.INT8:
            continue
        _set(weight.inputs[0], tensor.numpy().astype(ml_dtypes.int4))
        edit.insert_before(
            result, weight, 0, "Cast", attributes={"to": int(ir.DataType.INT8)}, dtype=ir.DataType.INT8,
            name=f"{node.name or node_key(node)}_widen",
        )  # fmt: skip
    return result
