"""Ranges by what their errors do to the answer, to first order: one run forward and backward for all sites at once.

Equation: loss(site) = mean over samples of (Σ_i g_i (x̂_i − x_i))², x what the site holds, x̂ that on the grid of a range, g
the gradient of an answer drawn from the model's own. That is the site's error in the metric of the Fisher information,
projected per sample. A site whose grid others share is chosen for together with them.

Source: Amari 1998, "Natural Gradient Works Efficiently in Learning", §2 (Fisher information of sampled answers); Li et al. 2021,
"BRECQ", §3.3 (its diagonal as the metric of quantization errors).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.base.progress import Progress
from studio.engine.graph import Model
from studio.engine.quantization.calibrate import Feed, Observed
from studio.engine.quantization.qdq import site_grid
from studio.engine.quantization.static import Workshop

Array: TypeAlias = npt.NDArray[Any]
Bounds: TypeAlias = tuple[float, float]
# Values of the main graph and the gradients of a sampled answer, feed by feed: (model, names, feeds, progress).
Probe: TypeAlias = Callable[
    [Model, Sequence[str], Sequence[Feed], Progress], Iterable[tuple[dict[str, Array], dict[str, Array]]]
]

# Parts of the whole range, below and above zero, that are compared.
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
# A narrower range must be better by this much: values that were not seen may lie outside.
_BETTER = 0.6
# Samples, and how many errors (a value on a range) are looked at before no further sample is.
SAMPLES, _EFFORT = 32, 1e9


def felt_ranges(
    shop: Workshop, seen: Mapping[str, Observed], feeds: Sequence[Feed], probe: Probe, progress: Progress
) -> dict[str, Bounds]:
    """A range for every site; whole ones where no narrower one is clearly better, and for the model's inputs.

    Args:
        shop: the float model and its placement.
        seen: the whole ranges.
        feeds: a few.
        probe: what finds gradients.
        progress: of it all.
    """
    whole = {name: (min(o.low, 0.0), max(o.high, 0.0)) for name, o in seen.items()}
    sites, grids = shop.placed.sites, shop.placed.grids
    names = [name for name in whole if sites[name].last.producer() is not None]
    tried = {leader: _candidates(*whole[leader]) for leader in {grids[name] for name in whole}}
    losses = {leader: np.zeros(len(bounds)) for leader, bounds in tried.items()}
    done = 0.0
    for values, gradients in probe(shop.model, names, feeds, progress):
        for name in names:
            x, g = _samples(values[name], feeds[0]), _samples(gradients[name], feeds[0])
            for index, bounds in enumerate(tried[grids[name]]):
                grid = site_grid(sites[name], *bounds)
                losses[grids[name]][index] += _felt(x, g, grid.dq_scale, grid.dq_zero)
            done += x.size * len(tried[grids[name]])
        if done > _EFFORT:
            break
    best = {leader: _choice(found) for leader, found in losses.items()}
    return {name: tried[grids[name]][best[grids[name]]] for name in whole}


def _candidates(low: float, high: float) -> list[Bounds]:
    """The whole range, and narrower ones on either side or both."""
    found = {(low, high): None}
    for share in _SHARES[1:]:
        found.update(dict.fromkeys([(low * share, high * share), (low, high * share), (low * share, high)]))
    return list(found)


def _samples(value: Array, feed: Feed) -> Array:
    """(samples, numbers): by the first axis where that is the batch's, else all as one."""
    batch = {array.shape[0] for array in feed.values() if array.ndim}
    each = value.shape[0] if value.ndim and batch == {value.shape[0]} else 1
    return np.ascontiguousarray(value, np.float32).reshape(each, -1)


def _felt(x: Array, g: Array, scale: float, zero: int) -> float:
    """Σ over samples of (Σ g (x̂ − x))² with x on an 8-bit grid."""
    step = np.float32(scale)
    rough = np.rint(x / step)
    np.clip(rough, -zero, 255 - zero, out=rough)
    rough *= step
    rough -= x
    return float(np.square(np.einsum("ni,ni->n", rough, g, dtype=np.float64)).sum())


def _choice(losses: Array) -> int:
    best = int(losses.argmin())
    return best if losses[best] < _BETTER * losses[0] else 0
