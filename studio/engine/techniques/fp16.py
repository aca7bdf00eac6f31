"""Half precision: chosen layers store and compute in 16-bit floats, with casts where they meet the rest.

x₁₆ = round-to-nearest-even(x₃₂), 1 sign, 5 exponent and 10 fraction bits: |x| ≤ 65504, relative
error ≤ 2⁻¹¹ in the normal range, zero below 2⁻²⁵.

Source: IEEE 754-2008 §3.6 (binary16).
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.base.units import change
from studio.engine import execute
from studio.engine.cost import model_cost
from studio.engine.graph import Model, constant, holder, nodes
from studio.engine.layers import Listing
from studio.engine.techniques.contract import Context
from studio.engine.techniques.half import (
    LARGEST,
    Conversion,
    brings_the_runtime_down,
    convert,
    kept,
    may_be_half,
)
from studio.records.model import Cost, Layer
from studio.records.plan import Action, Plan, Refusal
from studio.records.steps import Fp16, Settings, Step

# Samples whose activations are looked at for overflow.
_CHECKED_SAMPLES = 32
# A model so far is built at most this often while a step is applied.
_DRAFTS = 12


class HalfPrecision:
    """See the module."""

    settings: type[Settings] = Fp16

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`; refuses overflow, layers kept by name or operator, and what is not fp32.

        Raises:
            StudioError: what is to be kept is the name of nothing.
        """
        settings = _settings(step)
        _check_kept(listing, settings)
        hot = _overflowing(listing, context)
        refusals: list[Refusal] = []
        chosen: list[str] = []
        for name in step.layers:
            reason, hint = _why_not(listing, name, settings, hot)
            if reason:
                refusals.append(Refusal(layer=name, reason=reason, hint=hint))
            else:
                chosen.append(name)
        excluded = {refusal.layer for refusal in refusals} | _untreatable(listing)
        conversion = convert(listing, chosen, excluded, settings, hot)
        layers = {layer.name: layer for layer in listing.layers}
        notes = (
            []
            if context.calibration
            else ["Activation ranges were not checked: there are no calibration data."]
        )
        if chosen:
            notes.append(
                "onnxruntime computes most of it in fp32 behind casts on a CPU: smaller, seldom faster."
            )
        if conversion.limited:
            notes.append(f"{conversion.limited} constants without a layer were limited to ±65504.")
        return Plan(
            step=step,
            actions=tuple(_action(layers[name], conversion) for name in chosen),
            refusals=tuple(refusals),
            before=listing.cost,
            after=model_cost(conversion.model, conversion.shapes) if chosen else listing.cost,
            notes=tuple(notes),
        )

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        settings = _settings(plan.step)
        chosen = [action.layer for action in plan.actions]
        hot = _overflowing(listing, context)
        every = max(1, len(chosen) // _DRAFTS)
        excluded = {refusal.layer for refusal in plan.refusals} | _untreatable(listing)
        conversion = convert(listing, chosen[:1], excluded, settings, hot)
        for done, action in enumerate(plan.actions, start=1):
            context.progress.tick((done - 1) / len(chosen), f"{action.layer}: half precision")
            if done % every == 0 or done == len(chosen):
                conversion = convert(listing, chosen[:done], excluded, settings, hot)
            words = f"{action.layer}: fp16, {change(action.before.bytes, action.after.bytes)}"
            context.treated(conversion.model, action.layer, words)
        return conversion.model


def _settings(step: Step) -> Fp16:
    assert isinstance(step.settings, Fp16)
    return step.settings


def _untreatable(listing: Listing) -> set[str]:
    return {layer.name for layer in listing.layers if layer.untreatable}


def _check_kept(listing: Listing, settings: Fp16) -> None:
    names = {layer.name for layer in listing.layers}
    for node in nodes(listing.model):
        names |= {node.name or "", node.op_type}
    for pattern in settings.keep:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise StudioError(
                f"No layer and no operator is called '{pattern}'",
                "a name or pattern that matches nothing is an error, so that nothing is skipped in silence",
                "It stands under what is kept in fp32.",
            )


def _why_not(listing: Listing, name: str, settings: Fp16, hot: frozenset[str]) -> tuple[str, str]:
    """Why a layer cannot be half, and what to do; ('', '') when it can."""
    layer = listing.nodes[name]
    if kept(settings, name, layer.node.op_type):
        return "kept in fp32 by the settings", ""
    if layer.record.dtype != "float32":
        return f"its weights are {layer.record.dtype}, not float32", ""
    if not may_be_half(layer.node):
        return f"{layer.node.op_type} has no half-precision form", ""
    if brings_the_runtime_down(layer.node):
        return "onnxruntime breaks down on a half-precision MatMul behind this Transpose", ""
    for value in layer.node.inputs:
        tensor = constant(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        peak = float(np.abs(tensor.numpy()).max(initial=0.0))
        if not peak <= LARGEST:
            return (
                f"a weight of {peak:.3g} does not fit into half precision (largest 65504)",
                "Keep this layer in fp32.",
            )
    if hot & {v.name for v in (*layer.node.inputs, *layer.node.outputs) if v is not None}:
        return "its activations exceed 65504 on the calibration data", "Keep this layer in fp32."
    return "", ""


def _overflowing(listing: Listing, context: Context) -> frozenset[str]:
    """Names of the main graph's values that exceed the half range on calibration data."""
    if context.calibration is None:
        return frozenset()
    memo = ("fp16", "overflow", id(context.calibration))
    if memo not in context.memo:
        names = [
            value.name
            for node in listing.model.graph
            for value in node.outputs
            if value.name and listing.shapes.dtype(value) == "float32" and holder(value) is None
        ]
        feeds = context.calibration.take(_CHECKED_SAMPLES).feeds()
        hot: set[str] = set()
        for arrays in execute.stream(listing.model, names, feeds, Progress(), context.threads):
            hot.update(
                name for name, array in arrays.items() if not np.abs(array).max(initial=0.0) <= LARGEST
            )
        context.memo[memo] = frozenset(hot)
    found = context.memo[memo]
    assert isinstance(found, frozenset)
    return found


def _action(layer: Layer, conversion: Conversion) -> Action:
    saved = conversion.saved.get(layer.name, 0)
    after = Cost(
        parameters=layer.cost.parameters,
        bytes=layer.cost.bytes - saved,
        macs=layer.cost.macs,
        activation_bytes=layer.cost.activation_bytes,
    )
    return Action(layer=layer.name, what="16-bit floats", before=layer.cost, after=after)
