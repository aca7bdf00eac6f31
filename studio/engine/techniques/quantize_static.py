"""Static int8: weights and activations as 8-bit integers in standard Q/DQ form, ranges from calibration data.

y = Σ w·x + b with x = s_x (q_x − z_x), q_x uint8; w = s_w q_w, q_w int8 with one s_w an output channel; b = s_x s_w q_b,
q_b int32. The unsigned × signed form is the one that onnxruntime's integer kernels run fast.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference"; ONNX QuantizeLinear, DequantizeLinear.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.base.units import counted
from studio.engine.dataset import Dataset
from studio.engine.graph import Model, constant
from studio.engine.layers import LayerNode, Listing
from studio.engine.quantization import grids, memory, recipe
from studio.engine.quantization.careful import careful
from studio.engine.quantization.ends import small_ends
from studio.engine.quantization.felt import Probe
from studio.engine.quantization.placement import LAYERS
from studio.engine.quantization.promise import promise
from studio.engine.quantization.static import Choice, Integers, Workshop, fits
from studio.engine.techniques import if_bodies
from studio.engine.techniques.contract import Context
from studio.records.base import replace
from studio.records.plan import Plan, Refusal
from studio.records.steps import QuantizeStatic, Settings, Step

_FEW = 8  # samples from which no range is to be trusted


class StaticInt8:
    """See the module; layers in the bodies of Ifs are treated as those of the main graph are."""

    settings: type[Settings] = QuantizeStatic

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`."""
        planned = if_bodies.plan(_MainGraph(), listing, step, context, _integers(step).opset)
        return replace(planned, notes=(*planned.notes, *_about_data(context))) if planned.actions else planned

    def draft(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Drafting.draft`."""
        return if_bodies.draft(_MainGraph(), listing, plan, context, _integers(plan.step).opset)

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        return if_bodies.apply(_MainGraph(), listing, plan, context, _integers(plan.step).opset)


class _MainGraph:
    """Static int8 in one graph."""

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`."""
        refusals = [r for name in step.layers if (r := _why_not(listing.nodes[name])) is not None]
        refused = {r.layer for r in refusals}
        chosen = [name for name in step.layers if name not in refused]
        ends = _ends(listing, step, chosen, context)
        refusals += [Refusal(layer=n, reason=f"kept in float: {why}", better=True) for n, why in ends.items()]
        chosen = [name for name in chosen if name not in ends]
        kept = _kept(listing, step, chosen, context)
        refusals += [
            Refusal(
                layer=name,
                reason=f"kept in float: a value beside it, in 8 bits, would alone leave {kept[name]:.0f} dB of the answer",
                hint="Channels there differ too much in range for one scale.",
                better=True,
            )
            for name in kept
        ]
        chosen = [name for name in chosen if name not in kept]
        if not chosen:
            return promise(listing, step, None, {}, refusals)
        shop = _workshop(listing, step, chosen, context)
        settings, words = _settings(step), dict.fromkeys(chosen, _words(_settings(step)))
        drafted = _drafted(listing, step, chosen, context)
        notes = [*_notes(listing, drafted, settings), *_memory(listing, shop, settings, context)]
        return promise(listing, step, drafted, words, refusals, notes)

    def draft(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Drafting.draft`."""
        return _drafted(listing, plan.step, [a.layer for a in plan.actions], context)

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        if context.calibration is None:
            raise StudioError(
                "Static int8 needs calibration data",
                "activation ranges are taken from samples",
                "Give a few dozen unlabelled samples, or choose dynamic int8, which needs none.",
            )
        names = {listing.nodes[a.layer].record.key: a.layer for a in plan.actions}
        settings = _settings(plan.step)
        progress = context.progress.part(0.0, 0.9)
        found = _outcome(listing, plan.step, list(names.values()), context, progress, search=False)
        shop, choice = found.shop, found.choice
        if found.noise > recipe.POOR:
            context.note(
                f"Only {-10 * np.log10(found.noise):.0f} dB of the answer are left on calibration samples: a few values "
                "do not fit 8 bits."
                + ("" if settings.preset == "careful" else " The preset Careful tries more.")
            )
        model = found.built or shop.build(choice)
        for key, name in context.progress.part(0.9, 1.0).over(names.items(), lambda pair: f"{pair[1]}: int8"):
            context.treated(model, name, f"{name}: int8, {_quality(shop, choice, key):.1f} dB")
        return model


def _settings(step: Step) -> QuantizeStatic:
    return cast("QuantizeStatic", step.settings)


def _words(settings: QuantizeStatic) -> str:
    """What is done to each layer."""
    weights = "7-bit" if settings.reduce_range else "int8"
    channel = " per channel" if settings.per_channel else ""
    shifted = "" if settings.symmetric else " with zero points"
    return f"{weights} weights{channel}{shifted}, uint{settings.activations} activations"


def _quality(shop: Workshop, choice: Choice, key: str) -> float:
    """SQNR in dB of a layer's integer weights."""
    return grids.sqnr_db(shop.weight(key), choice.weights[key].real())


def _ends(listing: Listing, step: Step, names: list[str], context: Context) -> dict[str, str]:
    """Small first and last layers that are left in float, with the reason; none where nothing else is chosen."""
    if not _settings(step).float_ends or len(names) < 2:
        return {}
    shop = _workshop(listing, step, names, context)
    records = {listing.nodes[name].record.key: listing.nodes[name].record for name in names}
    found = small_ends(shop, {key: record.cost.macs or 0 for key, record in records.items()})
    rest = [name for name in names if listing.nodes[name].record.key not in found]
    if not rest:
        return {}
    context.memo[_workshop_key(step, rest)] = shop.without(found)
    return {records[key].name: reason for key, reason in found.items()}


def _kept(listing: Listing, step: Step, names: list[str], context: Context) -> dict[str, float]:
    """Layers that are better kept in float, with the dB that a value beside them would leave."""
    if context.calibration is None or context.preview or len(names) < 2:
        return {}
    found = _outcome(listing, step, names, context, context.progress, search=True)
    by_key = {listing.nodes[name].record.key: name for name in names}
    return {by_key[key]: db for key, db in found.kept.items()}


def _drafted(listing: Listing, step: Step, names: list[str], context: Context) -> Model:
    """A model of the result's structure: the result itself, where a plan has found it already."""
    found = context.memo.get((*_numbers_key(step, context), tuple(names)))
    if isinstance(found, recipe.Outcome) and found.built is not None:
        return found.built
    shop = _workshop(listing, step, names, context)
    return shop.build(shop.blank())


def _outcome(
    listing: Listing, step: Step, names: list[str], context: Context, progress: Progress, *, search: bool
) -> recipe.Outcome:
    """The numbers, found once: a plan looks for layers to keep in float, and applying it takes what was found."""
    assert context.calibration is not None
    settings = _settings(step)
    key = _numbers_key(step, context)
    if (*key, tuple(names)) not in context.memo:
        work = None
        if search:
            records = [listing.nodes[name].record for name in names]
            work = {record.key: record.cost.macs or 0 for record in records}
        shop = _workshop(listing, step, names, context)
        search_numbers = careful if settings.preset == "careful" else recipe.fast
        probe = _probe(listing, settings, context)
        found = search_numbers(shop, context.calibration, settings, progress, context.threads, work, probe)
        left = [name for name in names if listing.nodes[name].record.key not in found.kept]
        context.memo[(*key, tuple(names))] = context.memo[(*key, tuple(left))] = found
    return cast("recipe.Outcome", context.memo[(*key, tuple(names))])


def _probe(listing: Listing, settings: QuantizeStatic, context: Context) -> Probe | None:
    """What finds gradients, where they are wanted and the model has them."""
    if settings.calibrator != "gradient":
        return None
    from studio.engine.trainable import gradients, unsupported

    if unsupported(listing.model):
        return None
    return lambda model, names, feeds, progress: gradients(
        model, names, feeds, context.seed, progress, len(feeds)
    )


def _numbers_key(step: Step, context: Context) -> tuple[object, ...]:
    return "static", id(context.calibration), _settings(step)


def _workshop(listing: Listing, step: Step, names: list[str], context: Context) -> Workshop:
    """The simplified model, made once for planning and applying."""
    key = _workshop_key(step, names)
    if key not in context.memo:
        keys = [listing.nodes[name].record.key for name in names]
        context.memo[key] = Workshop(listing.model, listing.shapes, keys, _integers(step))
    return cast("Workshop", context.memo[key])


def _workshop_key(step: Step, names: list[str]) -> object:
    return "workshop", tuple(names), _integers(step)


def _integers(step: Step) -> Integers:
    settings = _settings(step)
    return Integers(settings.per_channel, settings.symmetric, settings.activations)


def _why_not(layer: LayerNode) -> Refusal | None:
    """Why a layer cannot run on integers with static ranges; None when it can."""
    name, node = layer.record.name, layer.node
    hint = "Weights only (8 or 4 bits) makes it smaller."
    if layer.quantized:
        return Refusal(layer=name, reason="its weights are integers already")
    if layer.path:
        return Refusal(
            layer=name,
            reason="it lies in a loop's body: what that carries on would have to be on a grid, too",
            hint=hint,
        )
    if node.op_type not in LAYERS:
        return Refusal(layer=name, reason=f"onnxruntime has no integer kernel for {node.op_type}", hint=hint)
    if fits(node):
        return None
    weight = constant(node.inputs[1])
    if weight is None:
        return Refusal(layer=name, reason="its weights are computed, not stored")
    return Refusal(layer=name, reason="onnxruntime has no integer kernel for this form of it", hint=hint)


def _memory(listing: Listing, shop: Workshop, settings: QuantizeStatic, context: Context) -> list[str]:
    """What calibration will take."""
    if context.calibration is None:
        return []
    sampled = settings.preset == "careful" or settings.calibrator not in {
        "auto",
        "minmax",
        "gradient",
        "answer",
    }
    return memory.in_words(listing, len(shop.placed.sites) * memory.VALUES_KEPT if sampled else 0)


def _notes(listing: Listing, drafted: Model, settings: QuantizeStatic) -> list[str]:
    notes = []
    if settings.calibrator == "gradient":
        from studio.engine.trainable import unsupported

        if missing := unsupported(listing.model):
            notes.append(
                f"There are no gradients behind {missing[0].operator}: ranges are those of the least squared error."
            )
    wide = settings.activations == 16
    if listing.model.opset < drafted.opset:
        why = "16-bit integers need it" if wide else "one scale a channel, or HardSwish in one node, needs it"
        notes.append(f"The opset is raised from {listing.model.opset} to {drafted.opset}: {why}.")
    if wide:
        notes.append(
            "onnxruntime's CPU has no 16-bit products: the layers compute in float and get slower. Processors made for it "
            "(NPUs) run them."
        )
    return notes


def _about_data(context: Context) -> list[str]:
    """What the calibration data mean for the whole plan."""
    calibration: Dataset | None = context.calibration
    if calibration is None:
        return ["Calibration data are needed to apply this."]
    notes = []
    if context.preview:
        notes.append(
            "Should 8 bits spoil the answer, layers stay in float; which ones is found out when this is carried out."
        )
    if calibration.random:
        notes.append("The calibration data are random: ranges and accuracy will be wrong for real inputs.")
    elif calibration.samples < _FEW:
        few = counted(calibration.samples, "sample")
        notes.append(
            f"Ranges are taken from only {few}: other inputs may lie outside of them. A few dozen are enough."
        )
    return notes
