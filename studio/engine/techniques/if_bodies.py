"""A technique for main graphs carried out in the bodies of Ifs, too: each is a model of its own for a while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

from studio.engine.dataset import Dataset
from studio.engine.graph import Model, raise_opset
from studio.engine.layers import Listing, list_layers
from studio.engine.quantization import bodies
from studio.engine.quantization.promise import promise
from studio.engine.techniques.contract import Context
from studio.records.plan import Action, Plan, Refusal
from studio.records.steps import Step

_ELSEWHERE = "Weights only (8 or 4 bits) makes it smaller."


class MainGraph(Protocol):
    """A technique that knows main graphs only, and can draft."""

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `contract.Technique.plan`."""
        ...

    def draft(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `contract.Drafting.draft`."""
        ...

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `contract.Technique.apply`."""
        ...


@dataclass(frozen=True)
class Room:
    """One body with layers to treat.

    Attributes:
        path: of the body.
        listing: of the body as a model.
        names: of the layers there, by the name they have in the whole model.
        data: what the body reads; None without calibration data and for previews.
        idle: no calibration sample takes this branch.
    """

    path: str
    listing: Listing
    names: dict[str, str]
    data: Dataset | None
    idle: bool


def plan(technique: MainGraph, listing: Listing, step: Step, context: Context, opset: int) -> Plan:
    """The technique's plan for layers of the main graph and of bodies of Ifs; others it refuses by itself.

    Args:
        technique: for main graphs.
        listing: of the whole model.
        step: with its layers resolved.
        context: of the planning.
        opset: that the result needs.
    """
    rooms = _rooms(listing, step.layers, context, opset)
    inside = {name for room in rooms for name in room.names}
    if not inside:
        return technique.plan(listing, step, context)
    refusals: list[Refusal] = []
    words: dict[str, str] = {}
    notes: dict[str, None] = {}
    drafted = _raised(listing, opset)
    for room in rooms:
        if room.idle:
            reason = "no calibration sample takes this branch of the model"
            refusals += [Refusal(layer=name, reason=reason, hint=_ELSEWHERE) for name in room.names]
            continue
        here = _context(room, context)
        part = technique.plan(room.listing, replace_layers(step, tuple(room.names.values())), here)
        called = {inner: name for name, inner in room.names.items()}
        refusals += [
            Refusal(layer=called[r.layer], reason=r.reason, hint=r.hint, better=r.better)
            for r in part.refusals
        ]
        words.update((called[action.layer], action.what) for action in part.actions)
        notes.update(dict.fromkeys(part.notes))
        if part.actions:
            drafted = bodies.graft(drafted, room.path, technique.draft(room.listing, part, here))
    rest = tuple(name for name in step.layers if name not in inside)
    if rest:
        between = list_layers(drafted, dict(listing.input_sizes))
        part = technique.plan(between, replace_layers(step, rest), context)
        refusals += part.refusals
        words.update((action.layer, action.what) for action in part.actions)
        notes.update(dict.fromkeys(part.notes))
        if part.actions:
            drafted = technique.draft(between, part, context)
    ordered = {name: words[name] for name in step.layers if name in words}
    return promise(listing, step, drafted, ordered, refusals, tuple(notes))


def draft(technique: MainGraph, listing: Listing, planned: Plan, context: Context, opset: int) -> Model:
    """See `contract.Drafting.draft`."""
    return _made(technique, listing, planned, context, opset, drafting=True)


def apply(technique: MainGraph, listing: Listing, planned: Plan, context: Context, opset: int) -> Model:
    """See `contract.Technique.apply`."""
    return _made(technique, listing, planned, context, opset, drafting=False)


def replace_layers(step: Step, layers: tuple[str, ...]) -> Step:
    """The same settings on other layers."""
    return Step(settings=step.settings, layers=layers)


def _made(
    technique: MainGraph, listing: Listing, planned: Plan, context: Context, opset: int, *, drafting: bool
) -> Model:
    """The model with the plan carried out, or drafted: bodies first, innermost first of all."""
    deed = technique.draft if drafting else technique.apply
    names = [action.layer for action in planned.actions]
    rooms = _rooms(listing, names, context, opset)
    inside = {name for room in rooms for name in room.names}
    rest = [action for action in planned.actions if action.layer not in inside]
    if not inside:
        return deed(listing, planned, context)
    model = _raised(listing, opset)
    for number, room in enumerate(rooms):
        share = context.progress.part(number / (len(rooms) + 1), (number + 1) / (len(rooms) + 1))
        actions = tuple(
            Action(layer=room.names[a.layer], what=a.what, before=a.before, after=a.after)
            for a in planned.actions
            if a.layer in room.names
        )
        here = replace(_context(room, context), progress=share)
        done = deed(room.listing, _part(planned, actions, room.listing), here)
        model = bodies.graft(model, room.path, done)
        if not drafting:
            for name in room.names:
                context.treated(model, name, f"{name}: int8")
    if not rest:
        return model
    between = list_layers(model, dict(listing.input_sizes))
    last = replace(context, progress=context.progress.part(len(rooms) / (len(rooms) + 1), 1.0))
    return deed(between, _part(planned, tuple(rest), between), last)


def _part(planned: Plan, actions: tuple[Action, ...], listing: Listing) -> Plan:
    step = replace_layers(planned.step, tuple(action.layer for action in actions))
    return Plan(step=step, actions=actions, before=listing.cost, after=listing.cost)


def _rooms(listing: Listing, names: Sequence[str], context: Context, opset: int) -> list[Room]:
    """The bodies of Ifs that the named layers lie in, innermost first; layers elsewhere are in none."""
    paths: dict[str, list[str]] = {}
    for name in names:
        if (path := listing.nodes[name].path) and bodies.within_ifs(listing.model, path):
            paths.setdefault(path, []).append(name)
    found = (_room(listing, path, paths[path], context, opset) for path in sorted(paths, key=_depth))
    return [room for room in found if room is not None]


def _depth(path: str) -> tuple[int, str]:
    return -path.count("/"), path


def _room(listing: Listing, path: str, names: list[str], context: Context, opset: int) -> Room | None:
    """The body at `path`; None where it cannot be lifted out. What it reads is watched once."""
    keys = {listing.nodes[name].record.key: name for name in names}
    memo = ("body", path)
    if memo not in context.memo:
        model = _raised(listing, opset)
        shapes = (
            listing.shapes if model is listing.model else list_layers(model, dict(listing.input_sizes)).shapes
        )
        lifted = bodies.lift(model, path, shapes, next(iter(keys)))
        data = None
        if lifted is not None and context.calibration is not None and not context.preview:
            data = bodies.calibration(
                lifted, model, context.calibration, context.progress.part(0.0, 0.1), context.threads
            )
        listed = None if lifted is None else list_layers(lifted.model, dict(lifted.sizes))
        context.memo[memo] = listed, data
    listed, data = cast("tuple[Listing | None, Dataset | None]", context.memo[memo])
    if listed is None:
        return None
    inner = {layer.record.key: name for name, layer in listed.nodes.items() if not layer.path}
    called = {name: inner[key] for key, name in keys.items() if key in inner}
    watched = context.calibration is not None and not context.preview
    return Room(path, listed, called, data, watched and data is None)


def _context(room: Room, context: Context) -> Context:
    """For the work in one body: its own data and memory, and nobody who is told of its model."""
    memo = cast("dict[object, object]", context.memo.setdefault(("body's", room.path), {}))
    return replace(context, calibration=room.data, memo=memo, treated=lambda *_: None)


def _raised(listing: Listing, opset: int) -> Model:
    model = listing.model
    return raise_opset(model, opset) if model.opset < opset else model
