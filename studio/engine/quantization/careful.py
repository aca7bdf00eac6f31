"""The careful way to the numbers of a static int8 model: every choice is measured on the model's answer.

Weights are rounded with error feedback; every site gets the range that does least to the answer; the few layers around
values that 8 bits would spoil it with stay in float; ways to choose ranges and biases are compared on the finished model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.base.progress import Progress
from studio.engine.dataset import Dataset
from studio.engine.quantization import weights as integers
from studio.engine.quantization.calibrate import Calibrator, Feed, Observed, choose_range, observe
from studio.engine.quantization.equalize import equalize
from studio.engine.quantization.islands import find_islands
from studio.engine.quantization.moments import layer_moments
from studio.engine.quantization.nearby import Nearby
from studio.engine.quantization.qdq import LayerWeights, out_axis
from studio.engine.quantization.recipe import corrected, observed, rounded
from studio.engine.quantization.search import Judge
from studio.engine.quantization.static import Choice, Workshop
from studio.engine.quantization.survey import survey
from studio.records.steps import QuantizeStatic

Array: TypeAlias = npt.NDArray[Any]
Ranges: TypeAlias = Mapping[str, tuple[float, float]]

# Numbers in the samples that candidates are compared on, that single values are tried on, that moments are taken of.
_JUDGED, _SURVEYED, _ROUNDED = 3_000_000, 600_000, 5_000_000
_FEWEST, _MOST = 1, 64
# Strengths of channel scaling that are compared.
_STRENGTHS = (0.0, 0.5, 0.75)
# Samples a run: onnxruntime holds all activations that statistics are taken of until its end.
_BATCH = 4
# The sites of a model are tried in so many stretches.
_STRETCHES = 6


@dataclass(frozen=True)
class Outcome:
    """What was found.

    Attributes:
        shop: the layers that run on integers.
        choice: their numbers.
        kept: layers left in float, with the SQNR in dB of the answer that their noisiest value would leave.
    """

    shop: Workshop
    choice: Choice
    kept: Mapping[str, float]


def careful(
    shop: Workshop,
    data: Dataset,
    settings: QuantizeStatic,
    progress: Progress,
    threads: int,
    work: Mapping[str, int] | None = None,
) -> Outcome:
    """Numbers for a model, and which layers had better stay in float.

    Args:
        shop: the float form and the places of its integers.
        data: calibration samples.
        settings: of the step.
        progress: of it all.
        threads: of the runtime.
        work: multiplications by layer; None = all layers are to run on integers.
    """
    shop = _equalized(shop, _samples(data, _JUDGED), progress.part(0.0, 0.05), threads)
    seen = observed(shop, data, progress.part(0.05, 0.15), threads, samples=True)
    weights = _fed_back(shop, data, settings, progress.part(0.15, 0.3), threads)
    few = _samples(data, _SURVEYED)
    findings = survey(shop, weights, seen, few, progress.part(0.3, 0.8), threads)
    kept: dict[str, float] = {}
    if work is not None:
        kept = find_islands(shop, findings, work)
        if kept:
            shop = shop.without(kept)
            weights = {key: weights[key] for key in shop.layers}
    bounds = {name: finding.bounds for name, finding in findings.items()}
    search = _Search(shop, weights, seen, _samples(data, _JUDGED), threads)
    choice = search.best(bounds, few, settings, progress.part(0.8, 1.0))
    return Outcome(shop, choice, kept)


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
        self._shop, self._weights, self._seen, self._threads = shop, weights, seen, threads
        self._judge = Judge(shop.model, feeds, threads)

    def best(self, bounds: Ranges, few: list[Feed], settings: QuantizeStatic, progress: Progress) -> Choice:
        """The best ranges, stretch by stretch, and the best biases."""
        kinds: tuple[Calibrator, ...] = ("minmax", "mse", "percentile")
        if settings.calibrator != "auto":
            kinds = (settings.calibrator,)
        every: list[Ranges] = [bounds] if settings.calibrator == "auto" else []
        every += [
            {k: choose_range(o, kind, settings.percentile) for k, o in self._seen.items()} for kind in kinds
        ]
        plain = corrected(self._shop, self._weights, self._seen)
        ways: list[Mapping[str, Array]] = [plain, self._corrected_nearby(every[0], few), {}]
        progress.tick(0.0, "Comparing ranges and biases")
        least, ranges = np.inf, every[0]
        biases: Mapping[str, Array] = plain
        for option in ways:
            if (noise := self._noise(every[0], option)) < least:
                least, biases = noise, option
        names = list(self._shop.placed.sites)
        size = max(1, -(-len(names) // _STRETCHES))
        stretches = [names[i : i + size] for i in range(0, len(names), size)] if len(every) > 1 else []
        for stretch in progress.over([names, *stretches], lambda _: "Choosing ranges"):
            for other in every:
                tried = {**ranges, **{name: other[name] for name in stretch}}
                if tried != ranges and (noise := self._noise(tried, biases)) < least:
                    least, ranges = noise, tried
        for option in (*ways, self._corrected_nearby(ranges, few)):
            if (noise := self._noise(ranges, option)) < least:
                least, biases = noise, option
        return Choice(self._weights, ranges, biases)

    def _noise(self, ranges: Ranges, biases: Mapping[str, Array]) -> float:
        return self._judge.noise(self._shop.build(Choice(self._weights, ranges, biases)))

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
    judge = Judge(shop.model, feeds, threads)
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
    if not shop.per_channel:
        return found
    feeds = _samples(data, _ROUNDED)
    moments = layer_moments(
        shop.model,
        list(shop.layers.values()),
        feeds,
        progress.part(0.0, 0.6),
        total=len(feeds),
        threads=threads,
    )
    for key in progress.part(0.6, 1.0).over(list(moments), lambda k: f"Rounding {k}"):
        found[key] = integers.fed_back(shop.weight(key), out_axis(shop.layers[key]), bits, moments[key])
    return found


def _samples(data: Dataset, numbers: int) -> list[Feed]:
    """The first samples that hold about so many numbers, in small batches."""
    first = next(iter(data.take(max(1, data.batch_size(1))).feeds(1)))
    each = max(1, sum(array.size for array in first.values()) // data.batch_size(1))
    count = int(np.clip(numbers // each, _FEWEST, _MOST))
    return list(data.take(max(count, data.batch_size(1))).feeds(_BATCH))
