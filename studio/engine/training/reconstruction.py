"""Block reconstruction: whether each weight is rounded up or down is learned, block by block.

A weight becomes s·clamp(⌊w/s⌋ + h(v)) with h(v) = clamp(1.2·σ(v) − 0.1, 0, 1), starting at the weight itself.
For every block in order, with what the blocks before it give as its input, v minimises

    ‖y − ŷ‖² / var(y) + λ·mean(1 − |2h − 1|^β),

y being the block's output in the float model. β falls from 20 to 2, so that in the end every h is 0 or 1. A block
that nearest rounding serves better keeps that. Few unlabelled samples are enough.

Source: Nagel et al. 2020, *Up or Down? Adaptive Rounding for Post-Training Quantization*; Li et al. 2021, *BRECQ*,
§3.2 (blocks as units).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from studio.engine.graph import Model, constant
from studio.engine.trainable import GraphModule
from studio.engine.trainable.latent import Latent
from studio.engine.trainable.operators.quantization import spread
from studio.engine.trainable.program import Step, reads
from studio.engine.training.journal import Journal
from studio.engine.training.loop import Hooks
from studio.engine.training.losses import relative_error
from studio.engine.training.samples import Sample
from studio.engine.training.teacher import Teacher

Values: TypeAlias = dict[int, Tensor]  # by slot

_WIDE, _BELOW = 1.2, 0.1  # h(v) reaches 0 and 1
_STEEP, _SHALLOW = 20.0, 2.0
_FREE = 0.2  # share of the steps before rounding is asked for
_RATE = 0.03


@dataclass(frozen=True)
class Effort:
    """How hard to try.

    Attributes:
        steps: for every block; 0 = as many as fit into the minutes.
        minutes: for all blocks together.
        rate: of learning; 0 = the usual one.
        seed: of the order of samples.
    """

    steps: int = 0
    minutes: float = 3.0
    rate: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Rebuilt:
    """What came of it: mean relative error of the blocks' outputs with nearest and with learned rounding."""

    blocks: int
    before: float
    after: float


class Rounding(nn.Module):
    """Stands in for a `Latent` while it is decided which of its weights are rounded up."""

    def __init__(self, name: str, latent: Latent) -> None:
        super().__init__()
        self.name, self._latent = name, latent
        with torch.no_grad():
            self._step = spread(latent.scale, latent.weight, latent.axis).detach()
            level = latent.weight / self._step
            self._floor = level.floor()
            rest = (level - self._floor).clamp(1e-4, 1 - 1e-4)
            self.push = nn.Parameter(-torch.log(_WIDE / (rest + _BELOW) - 1))
            self._kept = (latent.weight != 0).float()  # zeros of a sparse pattern stay
            nearest = level.round().clamp(latent.low, latent.high)
        self.fixed: Tensor | None = nearest

    @property
    def up(self) -> Tensor:
        """h: 0 = down, 1 = up."""
        return (_WIDE * self.push.sigmoid() - _BELOW).clamp(0, 1) * self._kept

    def unevenness(self, beta: float) -> Tensor:
        """How far h is from being decided, 0..1 for every weight."""
        return 1 - (2 * self.up - 1).abs().pow(beta)

    @torch.no_grad()
    def decided(self) -> Tensor:
        """The integers that h says."""
        return (self._floor + (self.up >= 0.5).float()).clamp(self._latent.low, self._latent.high)

    def run(self, *_stored: Any) -> Tensor:
        """In place of DequantizeLinear: decided integers once `fixed`, soft ones before."""
        level = self.fixed
        if level is None:
            level = (self._floor + self.up).clamp(self._latent.low, self._latent.high)
        return level * self._step

    @torch.no_grad()
    def settle(self) -> None:
        """Let the latent's float weights be what the integers stand for."""
        assert self.fixed is not None
        self._latent.weight.copy_(self.fixed * self._step)


@dataclass
class _Block:
    """Steps up to one value, and the roundings that they use."""

    end: str
    slot: int
    steps: list[Step]
    roundings: list[Rounding]


@dataclass(frozen=True)
class _Place:
    """Of one block among all."""

    number: int
    blocks: int


def ends(reference: Model, layers: Sequence[str]) -> tuple[str, ...]:
    """Names of the values that end blocks: sums of two computed values, else the outputs of layers; and output 0.

    Args:
        reference: the float model.
        layers: output names of the layers that are rounded.
    """
    order = [v.name or "" for node in reference.graph for v in node.outputs[:1]]
    sums = {
        n.outputs[0].name or ""
        for n in reference.graph
        if n.op_type == "Add" and all(v is not None and constant(v) is None for v in n.inputs)
    }
    last = reference.graph.outputs[0].name or ""
    chosen = sums if len(sums) > 1 else set(layers)
    return tuple(dict.fromkeys([*(name for name in order if name in chosen and name != last), last]))


def reconstruct(
    module: GraphModule,
    latents: Mapping[str, Latent],
    reference: Model,
    stops: Sequence[str],
    samples: Sequence[Sample],
    effort: Effort,
    hooks: Hooks,
    threads: int = 0,
) -> Rebuilt:
    """Choose the rounding of all latents, in place.

    Args:
        module: the quantized graph; its step sizes stay as they are.
        latents: by the name of the DequantizeLinear's output; those with 32 bits are left alone.
        reference: the float model, with values of the same names.
        stops: where blocks end, see `ends`; names that the module lacks are passed over.
        samples: batches, all of them held in memory with what one block gives the next.
        effort: how hard to try.
        hooks: told of every step; asked to end, it leaves the blocks that are left rounded to the nearest. A run
            that was cut off goes on from its checkpoint.
        threads: of the runtime.

    Raises:
        Cancelled: at any tick.
    """
    roundings = {
        name: Rounding(name, latent) for name, latent in latents.items() if latent.low != latent.high
    }
    blocks, own = _blocks(module, roundings, stops)
    inputs = [module.start(sample.feed) for sample in samples]
    journal = Journal(hooks.checkpoint, roundings)
    for number, block in enumerate(blocks):
        if number >= len(journal.errors):
            part = hooks.progress.part(number / len(blocks), (number + 1) / len(blocks))
            teacher = Teacher(reference, [block.end], threads)
            wanted = [teacher.answers(sample)[block.end] for sample in samples]
            place = _Place(number, len(blocks))
            told = replace(hooks, progress=part)
            journal.decided(*_learn(module, block, inputs, wanted, effort, place, told, journal))
        _advance(module, block, blocks[number + 1 :], inputs)
    journal.close()
    for name, step in own.items():
        roundings[name].settle()
        step.run = latents[name].run
    before, after = (float(np.mean([e[i] for e in journal.errors])) for i in (0, 1))
    return Rebuilt(len(blocks), before, after)


def _blocks(
    module: GraphModule, roundings: Mapping[str, Rounding], stops: Sequence[str]
) -> tuple[list[_Block], dict[str, Step]]:
    """The module's steps in blocks, and the steps of weights by name; a weight belongs to who reads it first."""
    own: dict[str, Step] = {}
    by_slot: dict[int, tuple[Step, Rounding]] = {}
    for step in module.steps:
        name = step.node.outputs[0].name or ""
        if name in roundings:
            step.run = roundings[name].run
            own[name] = step
            by_slot[step.outputs[0]] = (step, roundings[name])
    blocks: list[_Block] = []
    steps: list[Step] = []
    found: list[Rounding] = []
    weights = {id(step) for step in own.values()}
    for step in module.steps:
        if id(step) in weights:
            continue
        for slot in step.inputs:
            if slot in by_slot:
                maker, rounding = by_slot.pop(slot)
                steps.append(maker)
                found.append(rounding)
        steps.append(step)
        for value, slot in zip(step.node.outputs, step.outputs, strict=False):
            if value.name in stops and found:
                blocks.append(_Block(value.name or "", slot, steps, found))
                steps, found = [], []
    return blocks, own


def _run(module: GraphModule, block: _Block, values: Values) -> list[Any]:
    """All live values after a block."""
    env = module.constants()
    for slot, value in values.items():
        env[slot] = value
    for step in block.steps:
        step.execute(env)
    return env


def _learn(
    module: GraphModule,
    block: _Block,
    inputs: Sequence[Values],
    wanted: Sequence[Tensor],
    effort: Effort,
    place: _Place,
    hooks: Hooks,
    journal: Journal,
) -> tuple[float, float]:
    """Choose one block's rounding; its error with nearest and with the chosen rounding."""
    nearest = [r.fixed for r in block.roundings]
    before = _error(module, block, inputs, wanted)
    for rounding in block.roundings:
        rounding.fixed = None
    optimizer = torch.optim.Adam([r.push for r in block.roundings], lr=effort.rate or _RATE)
    names = [r.name for r in block.roundings]
    journal.enter(names, optimizer)
    started = time.monotonic() - journal.seconds
    share = _share(journal.steps, journal.seconds, effort, place)
    while share < 1 and not hooks.enough():
        hooks.progress.tick(share, f"rounding the block before {block.end}")
        random = np.random.default_rng(
            (effort.seed, place.number, journal.steps)
        )  # the same in a resumed run
        chosen = int(random.integers(len(inputs)))
        optimizer.zero_grad(set_to_none=True)
        loss = relative_error(_run(module, block, inputs[chosen])[block.slot], wanted[chosen])
        if share > _FREE:
            beta = _SHALLOW + (_STEEP - _SHALLOW) * (1 - share) / (1 - _FREE)
            loss = loss + before * torch.stack([r.unevenness(beta).mean() for r in block.roundings]).mean()
        loss.backward()
        optimizer.step()
        elapsed = time.monotonic() - started
        journal.went(names, optimizer, elapsed)
        done, share = journal.steps, _share(journal.steps, elapsed, effort, place)
        steps = effort.steps or max(done, round(done / max(share, 1e-9)))
        told = (place.number * steps + done, place.blocks * steps, float(loss.detach()), None)
        hooks.told(*told, effort.rate or _RATE)
    for rounding in block.roundings:
        rounding.fixed = rounding.decided()
    after = _error(module, block, inputs, wanted)
    if after <= before:
        return before, after
    for rounding, level in zip(block.roundings, nearest, strict=True):
        rounding.fixed = level
    return before, before


def _share(done: int, seconds: float, effort: Effort, place: _Place) -> float:
    """How much of a block's work is done, 0..1."""
    return done / effort.steps if effort.steps else seconds * place.blocks / (60 * effort.minutes)


@torch.no_grad()
def _error(module: GraphModule, block: _Block, inputs: Sequence[Values], wanted: Sequence[Tensor]) -> float:
    errors = [
        float(relative_error(_run(module, block, values)[block.slot], target))
        for values, target in zip(inputs, wanted, strict=True)
    ]
    return float(np.mean(errors))


@torch.no_grad()
def _advance(module: GraphModule, block: _Block, later: Sequence[_Block], inputs: list[Values]) -> None:
    """From what a block reads to what later ones read."""
    needed = {slot for other in later for step in other.steps for slot in reads(step)}
    constants = module.constants()
    for values in inputs:
        env = _run_keeping(module, block, values, needed)
        values.clear()
        for slot in needed:
            if isinstance(env[slot], Tensor) and constants[slot] is None:
                values[slot] = env[slot]


def _run_keeping(module: GraphModule, block: _Block, values: Values, needed: set[int]) -> list[Any]:
    """As `_run`; what later blocks read is not dropped."""
    frees = [step.frees for step in block.steps]
    for step in block.steps:
        step.frees = tuple(s for s in step.frees if s not in needed)
    try:
        return _run(module, block, values)
    finally:
        for step, dropped in zip(block.steps, frees, strict=True):
            step.frees = dropped
