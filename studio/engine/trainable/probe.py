"""How much the model's answer feels each intermediate value: gradients of sampled answers.

For a classifier the answer is drawn from the model's own output distribution, y ~ p(·|x), and the loss is
−log p(y|x); then E[g gᵀ] is the Fisher information of the value, and ½·δᵀE[g gᵀ]δ the KL divergence
that a small change δ causes. Plain outputs are probed by random projections, which gives the squared
error relative to their spread instead. No labels are needed.

Source: Amari 1998, *Natural Gradient Works Efficiently in Learning*; Martens 2020, *New Insights and
Perspectives on the Natural Gradient Method*, §5 (the true Fisher, not the empirical one).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from studio.base.progress import Progress
from studio.engine.accuracy.kinds import Kind, class_axis, final_operator, kind_of
from studio.engine.graph import Model
from studio.engine.trainable.module import GraphModule

Array: TypeAlias = npt.NDArray[Any]


def gradients(
    model: Model,
    names: Sequence[str],
    feeds: Iterable[Mapping[str, Array]],
    seed: int = 0,
    progress: Progress | None = None,
    total: int = 0,
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Values of the main graph and the gradients of a sampled answer with respect to them, feed by feed.

    Args:
        model: must be one that the interpreter runs, see `unsupported`.
        names: float values of the main graph that nodes compute.
        feeds: inputs; one feed's values are held at a time.
        seed: of the sampled answers.
        progress: ticked once a feed.
        total: how many feeds, for the share done.

    Yields:
        (values, gradients), both by name; a value that the answer does not depend on has a zero gradient.
    """
    module = GraphModule(model, watch=names)
    generator = torch.Generator().manual_seed(seed)
    final = final_operator(model)
    for done, feed in enumerate(feeds):
        if progress is not None:
            progress.tick(done / total if total else 0.0, f"gradients, run {done + 1}")
        found = module(feed)
        loss = answer_loss([found[name] for name in module.outputs], final, generator)
        watched = [found[name] for name in names]
        wanted = [v for v in watched if v.requires_grad]
        grads = iter(torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ())
        felt = [next(grads) if v.requires_grad else None for v in watched]
        yield (
            {n: v.detach().numpy() for n, v in zip(names, watched, strict=True)},
            {
                n: (torch.zeros_like(v) if g is None else g).detach().numpy()
                for n, v, g in zip(names, watched, felt, strict=True)
            },
        )


def answer_loss(outputs: Sequence[Tensor], final: str, generator: torch.Generator) -> Tensor:
    """−log p of an answer drawn from output 0's own distribution, or a random projection of plain outputs.

    Summed over samples, so that the gradient of every sample is its own.
    """
    kind: Kind = kind_of(outputs[0].detach().numpy(), None, final)
    if kind == "binary":
        p = outputs[0].clamp(1e-6, 1 - 1e-6)
        drawn = torch.bernoulli(p.detach(), generator=generator)
        return F.binary_cross_entropy(p, drawn, reduction="sum")
    if kind in ("logits", "probabilities"):
        axis = class_axis(outputs[0])
        rows = outputs[0].movedim(axis, -1).flatten(0, -2)
        logs = rows.log_softmax(-1) if kind == "logits" else rows.clamp(min=1e-9).log()
        drawn = torch.multinomial(logs.detach().exp(), 1, generator=generator)
        return -logs.gather(1, drawn).sum()
    total = torch.zeros(())
    for output in outputs:
        if output.is_floating_point() and output.requires_grad and output.numel():
            noise = torch.randn(output.shape, generator=generator)
            scale = (
                output.detach().float().std(correction=0).clamp(min=1e-9)
                * (output[0].numel() if output.ndim else 1) ** 0.5
            )
            total = total + (output * noise).sum() / scale
    return total
