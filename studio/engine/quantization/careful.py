"""The careful way to the numbers of a static int8 model: every choice is measured on the model's answer.

Weights are rounded with error feedback; every site gets the range that does least to the answer; the few layers around
values that 8 bits would spoil it with stay in float; ways to choose ranges and biases are compared on the finished model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.base.progress import Progress
from studio.engine.dataset import Dataset
from studio.engine.quantization import weights as integers
from studio.engine.quantization.calibrate import Calibrator, Feed, Observed, choose_range, observe
from studio.engine.quantization.equalize import equalize
from studio.engine.quantization.felt import SAMPLES, Probe, felt_ranges
from studio.engine.quantization.islands import find_islands
from studio.engine.quantization.moments import layer_moments
from studio.engine.quantization.nearby import Nearby
from studio.engine.quantization.qdq import LayerWeights, out_axis
from studio.engine.quantization.recipe import Outcome, affordable, corrected, first_samples, observed, rounded
from studio.engine.quantization.search import Judge
from studio.engine.quantization.static import Choice, Workshop
from studio.engine.quantization.survey import survey
from studio.records.steps import QuantizeStatic

Array: TypeAlias = npt.NDArray[Any]
Ranges: TypeAlias = Mapping[str, tuple[float, float]]

# Numbers in the samples that candidates are compared on, that single values are tried on, that moments are taken of.
_JUDGED, _SURVEYED, _ROUNDED = 3_000_000, 1_200_000, 8_000_000
# Multiplications that trying single values may take altogether, each in a few ways.
_EFFORT = 3e11
# Strengths of channel scaling that are compared.
_STRENGTHS = (0.0, 0.5, 0.9)
# Of second moments: a few samples tell less about many inputs than they seem to.
_DAMPING = 0.05
# The sites of a model are tried in so many stretches.
_STRETCHES = 6
# With less noise than this there is no use in trying values one by one.
_GOOD = 10**-2.2
# What is measured on a few samples must be better by this much to be better on others, too: biases; ranges, which were
# taken from the same samples.
_BETTER, _NARROWER = 0.97, 0.8


def careful(
    shop: Workshop,
    data: Dataset,
    settings: QuantizeStatic,
    progress: Progress,
    threads: int,
    work: Mapping[str, int] | None = None,
    probe: Probe | None = None,
) -> Outcome:
    """Numbers for a model, and which layers had better stay in float.

    Args:
        shop: the float form and the places of its integers.
        data: calibration samples.
        settings: of the step.
        progress: of it all.
        threads: of the runtime.
        work: multiplications by layer; None = all layers are to run on integers.
        probe: what finds gradients where ranges are to be chosen by them; None = not, or there are none.
    """
    shop = _equalized(shop, first_samples(data, _JUDGED), progress.part(0.0, 0.05), threads)
    seen = observed(shop, data, progress.part(0.05, 0.15), threads, samples=True)
    weights = _fed_back(shop, data, settings, progress.part(0.15, 0.3), threads)
    judged = first_samples(data, _JUDGED)
    search = _Search(shop, weights, seen, judged, threads)
    bounds: Ranges = search.whole
    kept: dict[str, float] = {}
    if settings.calibrator == "answer" or search.noise(bounds) > _GOOD:
        few = first_samples(data, _SURVEYED, affordable(shop, data, work, _EFFORT) if work else _SURVEYED)
        findings = survey(shop, weights, seen, few, progress.part(0.3, 0.8), threads)
        bounds = {name: finding.bounds for name, finding in findings.items()}
        if work is not None:
            kept = find_islands(shop, findings, work, partial(search.noise_of, ranges=bounds))
    if len(kept) == len(shop.layers):
        return Outcome(shop, Choice(weights, bounds), search.noise(bounds), kept)
    if kept:
        shop = shop.without(kept)
        search = _Search(shop, {key: weights[key] for key in shop.layers}, seen, judged, threads)
    felt = []
    if probe is not None:
        few = list(data.take(SAMPLES).feeds(1))
        felt = [felt_ranges(shop, search.seen, few, probe, progress.part(0.8, 0.85))]
    choice, noise = search.best(search.options(bounds, settings, felt), judged, progress.part(0.85, 1.0))
    return Outcome(shop, choice, noise, kept)


class _Search:
    """Finished models compared by the error of their answers."""

    def __init__(
        self,
        shop: Workshop,
        weights: Mapping[str, LayerWeights],
        seen: Mapping[str, Observed],
        feeds: list[Feed],
        threads: int,
    ) -> None:
        self._shop, self._weights, self._threads = shop, weights, threads
        self.seen = {name: seen[name] for name in shop.placed.sites}
        self._judge = Judge.of(shop.model, feeds, threads)
        self._plain = corrected(shop, weights, seen)
        self.whole = {name: choose_range(o, "minmax") for name, o in seen.items()}

    def options(self, bounds: Ranges, settings: QuantizeStatic, felt: Sequence[Ranges]) -> list[Ranges]:
        """The ranges that are compared, the ones to begin with first.

        Args:
            bounds: what the answer chose.
            settings: of the step.
            felt: what gradients chose; empty where there are none.
        """
        kinds: tuple[Calibrator, ...] = ()
        every: list[Ranges] = []
        match settings.calibrator:
            case "auto":
                kinds, every = ("minmax", "mse", "percentile"), [bounds]
            case "answer":
                every = [bounds]
            case "gradient":
                kinds = ("minmax",) if felt else ("mse",)
            case kind:
                kinds = (kind,)
        chosen = [
            {k: choose_range(o, kind, settings.percentile) for k, o in self.seen.items()} for kind in kinds
        ]
        return [*every, *chosen, *felt]

    def best(self, every: Sequence[Ranges], feeds: list[Feed], progress: Progress) -> tuple[Choice, float]:
        """The best ranges, stretch by stretch, and the best biases; the noise that is left.

        Args:
            every: ranges to choose from, the ones to begin with first.
            feeds: samples that mean errors are taken from.
            progress: of the search.
        """
        progress.tick(0.0, "Comparing ranges and biases")
        ways = [self._plain, self._corrected_nearby(every[0], feeds), {}]
        ranges = every[0]
        biases, least = self._least(ranges, ways, np.inf, self._plain)
        names = list(self._shop.placed.sites)
        size = max(1, -(-len(names) // _STRETCHES))
        stretches = [names[i : i + size] for i in range(0, len(names), size)] if len(every) > 1 else []
        for stretch in progress.over([names, *stretches], lambda _: "Choosing ranges"):
            for other in every:
                tried = {**ranges, **{name: other[name] for name in stretch}}
                if tried != ranges and (noise := self.noise(tried, biases)) < _NARROWER * least:
                    least, ranges = noise, tried
        biases, least = self._least(ranges, [*ways, self._corrected_nearby(ranges, feeds)], least, biases)
        return Choice(self._weights, ranges, biases), least

    def noise(self, ranges: Ranges, biases: Mapping[str, Array] | None = None) -> float:
        """Of the finished model's answers."""
        return self.noise_of(self._shop, ranges, biases)

    def noise_of(self, less: Workshop, ranges: Ranges, biases: Mapping[str, Array] | None = None) -> float:
        """Of the answers of a model with fewer layers on integers."""
        choice = Choice(self._weights, ranges, self._plain if biases is None else biases)
        return self._judge.noise(less.build(choice.of(less.layers)))

    def _least(
        self, ranges: Ranges, ways: Sequence[Mapping[str, Array]], least: float, biases: Mapping[str, Array]
    ) -> tuple[Mapping[str, Array], float]:
        """The biases that answer best, and their noise."""
        for option in ways:
            if (noise := self.noise(ranges, option)) < _BETTER * least:
                least, biases = noise, option
        return biases, least

    def _corrected_nearby(self, ranges: Ranges, feeds: list[Feed]) -> dict[str, Array]:
        """Biases that make up for the mean error of rounded weights on rounded inputs, layer by layer."""
        near = Nearby(self._shop, self._weights, self._threads)
        found: dict[str, Array] = {}
        for errors in near.errors(near.measure(ranges, feeds)).values():
            for key, error in errors.items():
                bias = self._shop.bias(key)
                found[key] = np.asarray((0.0 if bias is None else bias) - error, np.float32)
        return found


def _equalized(shop: Workshop, feeds: list[Feed], progress: Progress, threads: int) -> Workshop:
    """The model with the channel scaling that suits it best."""
    judge = Judge.of(shop.model, feeds, threads)
    best, least = shop, np.inf
    for strength in progress.over(_STRENGTHS, lambda _: "Scaling channels"):
        other = (
            shop.on(equalize(shop.model, shop.shapes, shop.placed.sites, feeds, strength, threads))
            if strength
            else shop
        )
        seen = observe(other.model, other.watches(), feeds, threads=threads)
        weights = rounded(other, 8)
        ranges = {name: choose_range(o, "minmax") for name, o in seen.items()}
        noise = judge.noise(other.build(Choice(weights, ranges, corrected(other, weights, seen))))
        if noise < least:
            best, least = other, noise
    return best


def _fed_back(
    shop: Workshop, data: Dataset, settings: QuantizeStatic, progress: Progress, threads: int
) -> dict[str, LayerWeights]:
    bits = 7 if settings.reduce_range else 8
    found = rounded(shop, bits)
    if not (shop.grid.per_channel and shop.grid.symmetric):
        return found
    feeds = first_samples(data, _ROUNDED)
    moments = layer_moments(
        shop.model,
        list(shop.layers.values()),
        feeds,
        progress.part(0.0, 0.6),
        total=len(feeds),
        threads=threads,
    )
    # Layers that share weights share their integers: these suit what all of them read.
    sharing: dict[tuple[object, ...], list[str]] = {}
    for key, moment in moments.items():
        sharing.setdefault((shop.layers[key].inputs[1], moment.shape), []).append(key)
    for keys in progress.part(0.6, 1.0).over(list(sharing.values()), lambda ks: f"Rounding {ks[0]}"):
        axis, moment = out_axis(shop.layers[keys[0]]), np.sum([moments[key] for key in keys], axis=0)
        fitted = integers.fed_back(shop.weight(keys[0]), axis, bits, moment, damping=_DAMPING)
        found.update(dict.fromkeys(keys, fitted))
    return found
