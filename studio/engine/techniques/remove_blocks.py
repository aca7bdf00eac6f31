"""Depth pruning: residual blocks that the answers miss least leave the graph.

A block (`engine/pruning/blocks`) is y = x + f(x); without it y = x. Its importance is measured, not guessed: the error of the model's answers on calibration data when this block
alone is missing. Blocks go one after the other, and what is left is measured anew each time.

Source: Veit, Wilber, Belongie 2016, *Residual Networks Behave Like Ensembles of Relatively Shallow Networks*;
Men et al. 2024, *ShortGPT* (removing whole layers of transformers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from studio.base.errors import StudioError
from studio.engine.accuracy.compare import Reference
from studio.engine.graph import Model
from studio.engine.layers import Listing, list_layers
from studio.engine.pruning.blocks import Block, blocks, without
from studio.engine.techniques.contract import Context
from studio.records.measure import OutputError
from studio.records.plan import Action, Plan, Refusal
from studio.records.steps import RemoveBlocks, Settings, Step

_JUDGED = 128  # samples that blocks are judged on
_MEASURED_ANEW = 24  # candidates up to which every removal is followed by a new measurement


class DepthPruning:
    """See the module."""

    settings: type[Settings] = RemoveBlocks

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`; layers of blocks that stay are refused with a reason."""
        chosen = set(step.layers)
        found = [b for b in blocks(listing) if b.layers <= chosen]
        gone = _least(listing, found, _settings(step).blocks, context) if found else []
        result = without(listing.model, gone)
        after = list_layers(result, dict(listing.input_sizes)) if gone else listing
        actions = [_action(listing, b, name) for b in gone for name in sorted(b.layers)]
        treated = {a.layer for a in actions}
        inside = {name for b in found for name in b.layers}
        refusals = [_refusal(name, found, inside, context) for name in step.layers if name not in treated]
        return Plan(
            step=step, actions=tuple(actions), refusals=tuple(refusals), before=listing.cost, after=after.cost
        )

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        wanted = {a.layer for a in plan.actions}
        keys = {a.what.removeprefix("goes with the block that ends at ") for a in plan.actions}
        gone = [b for b in blocks(listing) if b.layers <= wanted and b.key in keys]
        if not gone:
            raise StudioError("There is no block to remove", "the plan names none")
        model = listing.model
        for done, block in enumerate(gone):
            context.progress.tick(done / len(gone), f"block at {block.key}")
            model = without(model, [block])
            for name in sorted(block.layers):
                context.treated(model, name, f"block at {block.key} removed")
        return model


def _settings(step: Step) -> RemoveBlocks:
    return cast("RemoveBlocks", step.settings)


def _action(listing: Listing, block: Block, name: str) -> Action:
    before = listing.nodes[name].record.cost
    return Action(
        layer=name, what=f"goes with the block that ends at {block.key}", before=before, after=before - before
    )


def _refusal(name: str, found: Sequence[Block], inside: set[str], context: Context) -> Refusal:
    if not found:
        return Refusal(
            layer=name, reason="no residual block was chosen whole", hint="Choose all layers of a block."
        )
    if name not in inside:
        return Refusal(layer=name, reason="it lies in no residual block that can be taken out")
    if context.calibration is None:
        return Refusal(
            layer=name, reason="without calibration data nobody can tell which block is missed least"
        )
    return Refusal(layer=name, reason="its block stays: the answers would miss it more")


# ------------------------------------------------------------------ choosing


def _least(listing: Listing, found: list[Block], count: int, context: Context) -> list[Block]:
    """The blocks whose absence the answers feel least, at most so many and never all."""
    data = context.calibration
    if data is None:
        return []
    data = data.take(_JUDGED)
    reference = Reference(listing.model, data, context.threads)
    gone: list[Block] = []
    wanted = min(count, len(found) - 1) if len(found) > 1 else 0
    anew = len(found) <= _MEASURED_ANEW
    scores: dict[str, float] = {}
    while len(gone) < wanted:
        taken = {name for b in gone for name in b.layers}
        left = [b for b in found if b not in gone and not b.layers & taken]
        if not left:
            break
        if anew or not scores:
            for done, block in enumerate(left):
                part = context.progress.part(done / len(left), (done + 1) / len(left))
                part.tick(0.0, f"without the block at {block.key}")
                error, _ = reference.compare(without(listing.model, [*gone, block]), part)
                scores[block.key] = _harm(error)
        gone.append(min(left, key=lambda b: scores[b.key]))
    order = {b.key: place for place, b in enumerate(found)}
    return sorted(gone, key=lambda b: order[b.key])


def _harm(error: OutputError) -> float:
    return error.kl if error.kl is not None else float(10 ** (-error.sqnr_db / 10))
