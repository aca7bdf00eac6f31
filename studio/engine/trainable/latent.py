"""Float masters behind integer weights, for quantization-aware training.

Where the graph dequantizes a constant, w ≈ s·q, the interpreter instead computes s·clamp(round(w/s)) from
a float master w, with straight-through gradients; s = s₀·exp(θ) is learned too, its gradient scaled by
1/√(n·q_max) for n weights that share it. Afterwards q = clamp(round(w/s)) and s go back where they were, so
the graph needs no conversion.

Source: Jacob et al. 2018; Esser et al. 2020, *Learned Step Size Quantization*, §2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from studio.engine.trainable.module import GraphModule
from studio.engine.trainable.operators import Call
from studio.engine.trainable.operators.quantization import codes, spread

Array: TypeAlias = npt.NDArray[Any]


class Latent(nn.Module):
    """The float master of one dequantized constant.

    Args:
        weight: float values, in the shape of the integers.
        scale: step sizes, one or one per slice of `axis`.
        axis: of the scales.
        low / high: integers that may be used; low = high leaves the values unrounded (biases in 32 bits).
        learn: train the step sizes too.
    """

    def __init__(self, weight: Array, scale: Array, axis: int, low: int, high: int, *, learn: bool) -> None:
        super().__init__()
        self.axis, self.low, self.high = axis, low, high
        self.weight = nn.Parameter(torch.from_numpy(np.array(weight, np.float32)))
        self.register_buffer("start", torch.from_numpy(np.array(scale, np.float32)))
        self.start: Tensor
        self.stretch = nn.Parameter(torch.zeros_like(self.start)) if learn else None
        self._damping = (max(1.0, weight.size / max(1, scale.size)) * max(1, high)) ** -0.5

    @property
    def scale(self) -> Tensor:
        """Step sizes as they are now."""
        if self.stretch is None:
            return self.start
        slow = self.stretch * self._damping
        return self.start * torch.exp(slow + (self.stretch - slow).detach())

    def run(self, _call: Call, _stored: Tensor, _scale: Tensor, _zero: Tensor | None = None) -> Tensor:
        """In place of DequantizeLinear."""
        if self.low == self.high:
            return self.weight
        step = spread(self.scale, self.weight, self.axis)
        return codes(self.weight, step, None, self.low, self.high) * step

    @torch.no_grad()
    def integers(self) -> tuple[Array, Array]:
        """The integers (as int32) and the step sizes to store."""
        step = spread(self.scale, self.weight, self.axis)
        whole = codes(self.weight, step, None, self.low, self.high)
        return whole.numpy().astype(np.int32), self.scale.numpy()


@dataclass(frozen=True)
class Master:
    """What a float master starts from.

    Attributes:
        weight: float values.
        low / high: integers that may be used; 0 and 0 for a bias, whose 32 bits round nothing that matters.
    """

    weight: Array
    low: int = 0
    high: int = 0


def attach(module: GraphModule, masters: Mapping[str, Master], *, learn: bool = True) -> dict[str, Latent]:
    """Give DequantizeLinear nodes of constants a float master.

    Args:
        module: made with `unfolded={'DequantizeLinear'}`.
        masters: by the name of the node's output.
        learn: train the step sizes too.
    """
    found: dict[str, Latent] = {}
    for step in module.steps:
        name = step.node.outputs[0].name or ""
        if step.call.op != "DequantizeLinear" or name not in masters:
            continue
        master, scale = masters[name], module.value(step.inputs[1]).numpy()
        latent = Latent(
            master.weight,
            scale,
            step.call.get("axis", 1),
            master.low,
            master.high,
            learn=learn and master.high > 0,
        )
        module.add_module(f"latent{len(found)}", latent)
        step.run = latent.run
        found[name] = latent
    return found
