"""Batch normalisation while training, none afterwards.

A convolution whose normalisation was folded away trains badly. So it gets one back that changes nothing at
first: with the statistics (μ, σ) of the calibration data, γ = σ and β = μ make BN(y) = y. While training the
statistics of each batch are used; afterwards γ, β and the running statistics are folded into weight and bias:
w ← w·γ/√(v+ε), b ← (b − m)·γ/√(v+ε) + β. Normalisations that the model still has are trained in the same way,
and their running statistics are written back.

Source: Ioffe & Szegedy 2015, *Batch Normalization*, algorithm 2; Jacob et al. 2018, §3.2 (folding).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studio.engine.trainable import GraphModule, Weight
from studio.engine.trainable.operators import Call
from studio.engine.trainable.operators.convolution import conv
from studio.engine.trainable.program import Step

_EPSILON = 1e-5
_MOMENTUM = 0.05
_ENOUGH_VALUES = 64  # per channel and batch: fewer make statistics that only disturb


class Norm(nn.Module):
    """A normalisation behind one convolution; inactive until `start`."""

    def __init__(self, weight: Weight, bias: Weight) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.active = False
        self.observing = False
        self.count, self.values = 0, 0
        channels = bias.parameter.shape[0]
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.mean: Tensor
        self.variance: Tensor

    def run(self, call: Call, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The convolution and, when active, the normalisation."""
        y = conv(call, x, weight, bias)
        if self.observing:
            self._observe(y.detach())
        if not self.active:
            return y
        return F.batch_norm(
            y, self.mean, self.variance, self.gamma, self.beta, self.training, _MOMENTUM, _EPSILON
        )

    def _observe(self, y: Tensor) -> None:
        axes = [0, *range(2, y.ndim)]
        self.values = y.numel() // y.shape[1]
        self.count += 1
        self.mean += (y.mean(axes) - self.mean) / self.count
        self.variance += (y.var(axes, unbiased=False) - self.variance) / self.count

    @torch.no_grad()
    def start(self) -> None:
        """Begin to normalise without changing what is computed."""
        self.observing = False
        if self.values < _ENOUGH_VALUES or bool((self.variance < 1e-10).any()):
            return
        self.gamma.copy_(torch.sqrt(self.variance + _EPSILON))
        self.beta.copy_(self.mean)
        self.active = True

    @torch.no_grad()
    def fold(self) -> None:
        """Move the normalisation into weight and bias."""
        if not self.active:
            return
        scale = self.gamma / torch.sqrt(self.variance + _EPSILON)
        shape = [-1] + [1] * (self.weight.parameter.ndim - 1)
        self.weight.parameter.mul_(scale.reshape(shape))
        self.bias.parameter.sub_(self.mean).mul_(scale).add_(self.beta)
        self.active = False


@dataclass
class Existing:
    """A BatchNormalization node of the model: its running statistics follow the data while training."""

    step: Step
    training: bool = False

    def run(
        self, call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
    ) -> Tensor:
        """With the statistics of the batch while training."""
        now = self.training and x.numel() // x.shape[1] >= _ENOUGH_VALUES
        return F.batch_norm(x, mean, variance, scale, bias, now, _MOMENTUM, call.get("epsilon", 1e-5))


class Norms(nn.Module):
    """All normalisations of one module.

    Args:
        module: whose convolutions get them.
    """

    def __init__(self, module: GraphModule) -> None:
        super().__init__()
        by_slot = {w.slot: w for w in module.weights.values()}
        self._added: list[Norm] = []
        self.existing: list[Existing] = []
        users = _users(module)
        for step in module.steps:
            if (
                step.call.op == "BatchNormalization"
                and step.call.outputs == 1
                and not step.call.get("training_mode", 0)
            ):
                existing = Existing(step)
                step.run = existing.run
                self.existing.append(existing)
                module.moving.update(
                    {slot: module.held[slot] for slot in step.inputs[3:5] if slot in module.held}
                )
            if step.call.op != "Conv" or len(step.inputs) < 3:
                continue
            weight, bias = by_slot.get(step.inputs[1]), by_slot.get(step.inputs[2])
            after = users.get(step.outputs[0], [])
            if weight is None or bias is None or any(s.call.op == "BatchNormalization" for s in after):
                continue
            if len(users.get(weight.slot, [])) > 1 or len(users.get(bias.slot, [])) > 1 or not after:
                continue
            norm = Norm(weight, bias)
            step.run = norm.run
            self._added.append(norm)
        self.added = nn.ModuleList(self._added)

    def observe(self, *, on: bool) -> None:
        """Collect statistics of the plain outputs."""
        for norm in self._added:
            norm.observing = on

    def start(self) -> None:
        """Begin to normalise."""
        for norm in self._added:
            norm.start()

    def train(self, mode: bool = True) -> Norms:
        """Statistics of the batch (True) or the running ones."""
        super().train(mode)
        for existing in self.existing:
            existing.training = mode
        return self

    def fold(self) -> None:
        """Leave no trace but better weights."""
        for norm in self._added:
            norm.fold()

    @property
    def any(self) -> bool:
        """Whether anything is normalised."""
        return any(n.active for n in self._added) or bool(self.existing)

    def statistics(self) -> list[int]:
        """Slots of the running statistics of the model's own normalisations."""
        return [slot for e in self.existing for slot in e.step.inputs[3:5]]


def _users(module: GraphModule) -> dict[int, list[Step]]:
    found: dict[int, list[Step]] = {}
    for step in module.steps:
        for slot in step.inputs:
            found.setdefault(slot, []).append(step)
    return found
