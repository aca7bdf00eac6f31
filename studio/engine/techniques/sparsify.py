"""Zeros in place: magnitude, Wanda or SparseGPT, free or in N:M patterns.

Zeros take as much room in the file as any value, and onnxruntime's CPU multiplies by them: the plan
says that bytes stay, the compressed size is measured.

Sources: Han et al., Learning both Weights and Connections, 2015 (magnitude); Sun et al., 2023 (Wanda);
Frantar & Alistarh, 2023 (SparseGPT); NVIDIA, Accelerating Sparse Deep Neural Networks, 2021 (2:4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from studio.base.errors import StudioError
from studio.engine.edit import set_constant
from studio.engine.graph import Model, constant
from studio.engine.groups.cut import Twins
from studio.engine.layers import LayerNode, Listing
from studio.engine.pruning.linear import Array, Linear, linear
from studio.engine.pruning.moments import Statistics, second_moments
from studio.engine.pruning.zeros import pattern, smallest, smallest_per_row, sparsegpt, wanda
from studio.engine.techniques.contract import Context
from studio.records.plan import Action, Plan, Refusal
from studio.records.steps import Settings, Sparsify, Step

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
_WORDS = {"magnitude": "magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT"}
_NOTE = (
    "Zeros take as much room as any value: the file shrinks only when compressed, and the CPU gets no faster."
)


@dataclass(frozen=True)
class _Target:
    """One weight tensor to treat and how its layer reads it; no view: magnitude is all that can be done."""

    value: ir.Value
    view: Linear | None
    perm: tuple[int, ...] | None
    in_axis: int | None
    source: str


class Sparsity:
    """The technique behind `Sparsify`."""

    settings: type[Settings] = Sparsify

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`. Costs after are those before: zeros in place save nothing."""
        settings = _settings(step)
        method = _method(settings, context)
        actions: list[Action] = []
        refusals: list[Refusal] = []
        treated: dict[ir.Value, str] = {}
        for name in step.layers:
            layer = listing.nodes[name]
            reason = _reason(layer, settings, context)
            if reason:
                refusals.append(Refusal(layer=name, reason=reason))
                continue
            cost = layer.record.cost
            other = treated.get(layer.weight)
            what = (
                f"the zeros of {other}, whose weights it shares" if other else _words(layer, settings, method)
            )
            actions.append(Action(layer=name, what=what, before=cost, after=cost))
            treated.setdefault(layer.weight, name)
        return Plan(
            step=step, actions=tuple(actions), refusals=tuple(refusals), before=listing.cost, after=listing.cost,
            notes=(_NOTE,) if actions else (),
        )  # fmt: skip

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        settings = _settings(plan.step)
        method = _method(settings, context)
        twins = Twins(listing.model)
        targets = {action.layer: _targets(listing.nodes[action.layer]) for action in plan.actions}
        moments: dict[str, Statistics] = {}
        if method != "magnitude":
            moments = _moments(listing, targets, context)
        done: set[ir.Value] = set()
        for action in context.progress.part(0.5 if moments else 0.0, 1.0).over(
            plan.actions, lambda a: a.layer
        ):
            for number, target in enumerate(targets[action.layer]):
                if target.value in done:
                    continue
                done.add(target.value)
                tensor = constant(target.value)
                if tensor is not None:
                    weight = tensor.numpy()
                    zeroed = _zeroed(
                        weight, target, settings, method, moments.get(f"{action.layer} {number}")
                    )
                    set_constant(
                        twins.values[target.value], ir.tensor(zeroed.astype(weight.dtype), name=tensor.name)
                    )
            context.treated(twins.copy, action.layer, action.what)
        return twins.copy


def _settings(step: Step) -> Sparsify:
    if not isinstance(step.settings, Sparsify):
        raise TypeError("not a sparsity step")
    return step.settings


def _method(settings: Sparsify, context: Context) -> str:
    if settings.method != "auto":
        return settings.method
    return "magnitude" if context.calibration is None else "sparsegpt"


def _run(settings: Sparsify) -> tuple[int, int] | None:
    """(zeros, of) of an N:M pattern."""
    if settings.pattern == "free":
        return None
    keep, of = (int(part) for part in settings.pattern.split(":"))
    return of - keep, of


def _reason(layer: LayerNode, settings: Sparsify, context: Context) -> str:
    """Why a layer cannot be treated; '' when it can."""
    tensor = constant(layer.weight)
    if layer.quantized or tensor is None or tensor.dtype not in _FLOATS:
        return f"its weights are stored as {layer.record.dtype}; set zeros before quantizing"
    if settings.method in {"wanda", "sparsegpt"} and context.calibration is None:
        return f"{_WORDS[settings.method]} needs calibration data"
    run = _run(settings)
    if run is None:
        return ""
    for target in _targets(layer):
        if target.in_axis is None:
            return f"a {settings.pattern} pattern lies along the inputs of an output, and this layer sums over none"
        tensor = constant(target.value)
        size = int(tensor.shape.numpy()[target.in_axis]) if tensor is not None else 0
        if size % run[1]:
            return f"the number of channels that each output reads, {size}, is no multiple of {run[1]}"
    return ""


def _words(layer: LayerNode, settings: Sparsify, method: str) -> str:
    share = f"{settings.pattern} zeros" if settings.pattern != "free" else f"{settings.ratio:.0%} zeros"
    views = any(target.view is not None and target.source for target in _targets(layer))
    return f"{share} by {_WORDS[method if views else 'magnitude']}"


def _targets(layer: LayerNode) -> list[_Target]:
    """All weight matrices of a layer."""
    if layer.record.op in {"LSTM", "GRU", "RNN"}:
        return [_Target(value, None, None, 2, "") for value in layer.weights]
    tensor = constant(layer.weight)
    if tensor is None:
        return []
    shape = tuple(int(d) for d in tensor.shape.numpy())
    perm = layer.perm
    view = linear(layer.node, shape if perm is None else tuple(shape[p] for p in perm), layer.position)
    source = layer.node.inputs[0] if layer.path == "" else None
    return [
        _Target(layer.weight, view, perm, layer.in_axis, (source.name or "") if source is not None else "")
    ]


def _moments(listing: Listing, targets: dict[str, list[_Target]], context: Context) -> dict[str, Statistics]:
    if context.calibration is None:
        raise StudioError("Sparsity by Wanda or SparseGPT needs calibration data", "none were given")
    wanted = {
        f"{name} {number}": (target.source, target.view)
        for name, several in targets.items()
        for number, target in enumerate(several)
        if target.view is not None and target.source
    }
    key = ("sparsify", tuple(wanted), context.seed)
    if key not in context.memo:
        context.memo[key] = second_moments(
            listing.model,
            wanted,
            context.calibration,
            context.seed,
            context.progress.part(0.0, 0.5),
            context.threads,
        )
    found = context.memo[key]
    return found if isinstance(found, dict) else {}


def _zeroed(
    weight: Array, target: _Target, settings: Sparsify, method: str, statistics: Statistics | None
) -> Array:
    """The weights with their zeros, shaped as stored."""
    run = _run(settings)
    uneven = run is not None and target.view is not None and _columns(weight, target) % run[1] != 0
    if target.view is None or statistics is None or uneven:
        return _by_magnitude(weight, target.in_axis, settings.ratio, run)
    seen = weight if target.perm is None else weight.transpose(target.perm)
    moments = statistics.moments()
    matrices = target.view.matrix(seen.astype(np.float64))
    ratios = _even(settings.ratio, len(matrices), matrices[0].size)
    found = np.stack(
        [_treated(w, h, r, run, method) for w, h, r in zip(matrices, moments, ratios, strict=True)]
    )
    result = target.view.weight(found)
    return result if target.perm is None else result.transpose(np.argsort(target.perm))


def _even(ratio: float, matrices: int, size: int) -> Array:
    """A ratio for each of many matrices that comes out even in it, and over all of them is the one asked for."""
    upto = np.floor(ratio * size * np.arange(matrices + 1) + 1e-9)
    return np.asarray(np.diff(upto) / size + 1e-9)


def _columns(weight: Array, target: _Target) -> int:
    """Of the matrices in which a weight is seen by its second moments (a transposed convolution has several)."""
    assert target.view is not None
    seen = weight if target.perm is None else weight.transpose(target.perm)
    return int(target.view.matrix(seen).shape[-1])


def _treated(w: Array, hessian: Array, ratio: float, run: tuple[int, int] | None, method: str) -> Array:
    if method == "sparsegpt":
        return sparsegpt(w, hessian, ratio, run)
    scores = wanda(w, hessian)
    return np.where(smallest_per_row(scores, ratio) if run is None else pattern(scores, *run), 0.0, w)


def _by_magnitude(weight: Array, in_axis: int | None, ratio: float, run: tuple[int, int] | None) -> Array:
    scores = np.abs(weight.astype(np.float32))
    if run is None or in_axis is None:
        return np.where(smallest(scores, ratio), 0, weight)
    along = np.moveaxis(scores, in_axis, -1)
    mask = pattern(along.reshape(-1, along.shape[-1]), *run).reshape(along.shape)
    return np.where(np.moveaxis(mask, -1, in_axis), 0, weight)
