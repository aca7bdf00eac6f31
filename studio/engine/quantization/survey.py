"""A range for every site by what it does to the model's answer, and what is then left of the noise, site by site.

Ranges that do least to the next values (`nearby`) are candidates; the one that does least to the answer (`alone`) wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt

from studio.base.progress import Progress
from studio.engine.quantization.alone import Alone
from studio.engine.quantization.calibrate import Feed, Observed
from studio.engine.quantization.nearby import Nearby
from studio.engine.quantization.qdq import LayerWeights
from studio.engine.quantization.static import Workshop

Array: TypeAlias = npt.NDArray[Any]
Bounds: TypeAlias = tuple[float, float]

# Parts of the whole range, below and above zero, that are tried.
_SHARES = ((1.0, 1.0), (0.8, 0.8), (0.6, 0.6), (0.45, 0.45), (1.0, 0.6), (0.6, 1.0))
# A site whose noise is below this share of the answer's power needs no search.
_QUIET = 1e-4
# A narrower range must be better by this much: values that were not seen may lie outside.
_BETTER = 0.8
# Sites that are tried together first.
_TOGETHER = 4


@dataclass(frozen=True)
class Finding:
    """What was chosen for a site.

    Attributes:
        bounds: of its range.
        noise: share of noise that it alone makes in the outputs.
    """

    bounds: Bounds
    noise: float


def survey(
    shop: Workshop,
    weights: Mapping[str, LayerWeights],
    seen: Mapping[str, Observed],
    feeds: Sequence[Feed],
    progress: Progress,
    threads: int = 0,
    *,
    thorough: bool = True,
) -> dict[str, Finding]:
    """The best range of every site that has a grid of its own.

    Args:
        shop: the float model and its placement.
        weights: integers of its layers.
        seen: the whole ranges.
        feeds: a few.
        progress: of the survey.
        threads: of the runtime.
        thorough: try narrower ranges, too, not only the whole ones.
    """
    whole = {name: (min(o.low, 0.0), max(o.high, 0.0)) for name, o in seen.items()}
    shares = _SHARES if thorough else _SHARES[:1]
    trials = _trials(shop, weights, whole, feeds, shares, progress.part(0.0, 0.3), threads)
    families = _families(shop, trials[0].losses)
    alone = Alone(shop, list(trials[0].losses), feeds, threads)

    def noise(leaders: Sequence[str], trial: Trial) -> float:
        members = [name for leader in leaders for name in families[leader]]
        return alone.noise({name: (trial.bounds[name], trial.errors.get(name, {})) for name in members})

    found = {name: Finding(bounds, 0.0) for name, bounds in whole.items()}
    near = {name: sum(trials[0].losses[member] for member in members) for name, members in families.items()}
    found.update({name: Finding(whole[name], loss) for name, loss in near.items() if loss < _QUIET})
    leaders = [name for name, loss in near.items() if loss >= _QUIET]
    groups = [leaders[i : i + _TOGETHER] for i in range(0, len(leaders), _TOGETHER)]
    for group in progress.part(0.3, 1.0).over(groups, lambda _: "Trying each value by itself"):
        if (together := noise(group, trials[0])) < _QUIET:
            found.update({name: Finding(whole[name], together / len(group)) for name in group})
            continue
        for name in group:
            members = families[name]
            nearby = min(trials, key=lambda trial: sum(trial.losses[member] for member in members))
            chosen = [trials[0]] if nearby is trials[0] else [trials[0], nearby]
            if (
                thorough and nearby.high < trials[1].high
            ):  # what is best nearby is often too narrow for the answer
                chosen.append(trials[1])
            options = [Finding(trial.bounds[name], noise([name], trial)) for trial in chosen]
            best = min(options, key=lambda finding: finding.noise)
            found[name] = best if best.noise < _BETTER * options[0].noise else options[0]
    return found


@dataclass(frozen=True)
class Trial:
    """The same part of the whole range for every site.

    Attributes:
        high: part above zero.
        bounds: by site.
        losses: by site, at the next values.
        errors: mean error by site and by the layer that reads it.
    """

    high: float
    bounds: Mapping[str, Bounds]
    losses: Mapping[str, float]
    errors: Mapping[str, Mapping[str, Array]]


def _trials(
    shop: Workshop,
    weights: Mapping[str, LayerWeights],
    whole: Mapping[str, Bounds],
    feeds: Sequence[Feed],
    shares: Sequence[Bounds],
    progress: Progress,
    threads: int,
) -> list[Trial]:
    near = Nearby(shop, weights, threads)
    found = []
    for low, high in progress.over(shares, lambda _: "Looking at the next values"):
        bounds = {}
        for name in whole:
            bottom, top = whole[shop.placed.grids[name]]
            bounds[name] = bottom * low, top * high
        readings = near.measure(bounds, feeds)
        found.append(Trial(high, bounds, near.losses(readings), near.errors(readings)))
    return found


def _families(shop: Workshop, names: Iterable[str]) -> dict[str, list[str]]:
    """The sites that share a grid, by the name of the one that has it."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(shop.placed.grids[name], []).append(name)
    return found
