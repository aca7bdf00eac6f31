"""How the numbers of a static int8 model are found: a quick way and a careful one.

Each repair is kept only where it lowers the output error that is measured on calibration data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.base.progress import Progress
from studio.engine.dataset import Dataset
from studio.engine.quantization import grids, repair
from studio.engine.quantization import weights as integers
from studio.engine.quantization.calibrate import Calibrator, Observed, choose_range, observe
from studio.engine.quantization.moments import layer_moments
from studio.engine.quantization.qdq import LayerWeights, out_axis
from studio.engine.quantization.search import Judge
from studio.engine.quantization.static import Choice, Workshop
from studio.engine.quantization.suspects import local_quality, with_makers
from studio.records.steps import QuantizeStatic

Array: TypeAlias = npt.NDArray[Any]

# Samples that candidates are compared on.
_JUDGED = 16
_GLANCED = 8
# Calibrators that the quick way compares.
_QUICK: tuple[Calibrator, ...] = ("minmax", "mse")
# Samples a run: onnxruntime holds all activations that statistics are taken of until its end.
_BATCH = 4
# Samples that second moments are taken of.
_ROUNDED = 32
# The sites of a model are tried in so many stretches.
_STRETCHES = 6
# Layers whose inputs would have less than so many dB are kept in float, if that helps.
_THRESHOLDS = (0.0, 6.0, 10.0, 14.0, 18.0)
_KEPT_AT_MOST = 0.3
_GOOD = 10 ** (-24 / 10)


class Work:
    """One model being quantized.

    Args:
        shop: its float form and the places of its integers.
        data: calibration samples.
        progress: of the whole search.
        threads: of the runtime.
    """

    def __init__(self, shop: Workshop, data: Dataset, progress: Progress, threads: int) -> None:
        self.shop, self.data, self.progress, self.threads = shop, data, progress, threads
        self._weights: Mapping[str, LayerWeights] = {}

    def quality(self, key: str) -> float:
        """SQNR in dB of a layer's integer weights."""
        return grids.sqnr_db(self.shop.weight(key), self._weights[key].real())

    def fast(self, settings: QuantizeStatic) -> Choice:
        """One pass over the data for ranges and means; the better of two calibrators; biases corrected if that helps."""
        kinds = _QUICK if settings.calibrator == "auto" else (settings.calibrator,)
        seen = self._observe(self.progress.part(0.0, 0.7), samples=kinds != ("minmax",))
        self._weights = self._rounded(7 if settings.reduce_range else 8, "max")
        biases = self._biases(seen)
        judge = Judge(self.shop.model, self.data.take(_GLANCED).feeds(_BATCH), self.threads)
        best, least = Choice(self._weights), np.inf
        for kind in self.progress.part(0.7, 0.95).over(kinds, lambda kind: f"Trying {kind} ranges"):
            ranges = {k: choose_range(o, kind, settings.percentile) for k, o in seen.items()}
            choice = Choice(self._weights, ranges, biases)
            noise = judge.noise(self.shop.build(choice))
            if noise < least:
                best, least = choice, noise
        plain = Choice(self._weights, best.ranges)
        self.progress.tick(0.95, "Comparing biases")
        return plain if judge.noise(self.shop.build(plain)) < least else best

    def careful(self, settings: QuantizeStatic) -> Choice:
        """Error feedback in rounding, biases, and for every stretch of the model the calibrator that answers best."""
        bits = 7 if settings.reduce_range else 8
        seen = self._observe(self.progress.part(0.0, 0.2), samples=True)
        self._weights = self._fed_back(bits, self.progress.part(0.2, 0.5))
        biases = self._biases(seen)
        judge = Judge(self.shop.model, self.data.take(_JUDGED).feeds(_BATCH), self.threads)
        kinds: tuple[Calibrator, ...] = ("minmax", "mse", "percentile")
        if settings.calibrator != "auto":
            kinds = (settings.calibrator,)
        every = {c: {k: choose_range(o, c, settings.percentile) for k, o in seen.items()} for c in kinds}

        def noise(ranges: Mapping[str, tuple[float, float]], *, corrected: bool = True) -> float:
            return judge.noise(self.shop.build(Choice(self._weights, ranges, biases if corrected else {})))

        last = self.progress.part(0.5, 1.0)
        last.tick(0.0, "Comparing calibrators")
        best, ranges = min(((noise(r), r) for r in every.values()), key=lambda pair: pair[0])
        names = list(seen)
        size = max(1, -(-len(names) // _STRETCHES))
        stretches = [names[i : i + size] for i in range(0, len(names), size)] if len(every) > 1 else []
        for stretch in last.over(stretches, lambda _: "Choosing ranges"):
            for other in every.values():
                tried = {**ranges, **{name: other[name] for name in stretch}}
                if tried != ranges and (new := noise(tried)) < best:
                    best, ranges = new, tried
        plain = noise(ranges, corrected=False)
        return Choice(self._weights, ranges, {} if plain < best else biases)

    def kept_in_float(self) -> dict[str, float]:
        """Layers that 8-bit inputs would ruin, with the SQNR in dB that each would have; few, or none.

        Several thresholds are tried on a few samples; a lower one wins unless a higher one halves the output's noise.
        """
        few = self.data.take(_JUDGED // 2)
        seen = observe(
            self.shop.model,
            self.shop.watches(),
            few.feeds(_BATCH),
            self.progress.part(0.0, 0.3),
            threads=self.threads,
        )
        ranges = {k: choose_range(o, "minmax") for k, o in seen.items()}
        quality = local_quality(self.shop, ranges, few.take(4).feeds(1), self.threads)
        judge = Judge(self.shop.model, few.feeds(_BATCH), self.threads)
        chosen: dict[str, float] = {}
        least = np.inf
        for threshold in self.progress.part(0.3, 1.0).over(
            _THRESHOLDS, lambda _: "Looking for layers to keep in float"
        ):
            kept = with_makers(self.shop, [k for k, db in quality.items() if db < threshold])
            if (threshold and len(kept) <= len(chosen)) or len(kept) > _KEPT_AT_MOST * len(quality):
                continue
            shop = self.shop.without(kept)
            work = Work(shop, self.data, Progress(), self.threads)
            work._weights = work._rounded(8, "max")
            noise = judge.noise(shop.build(Choice(work._weights, ranges, work._biases(seen))))
            if noise < least / 2:
                chosen, least = {k: quality[k] for k in quality if k in kept}, noise
            if noise < _GOOD:
                break
        return chosen

    def _fed_back(self, bits: int, progress: Progress) -> dict[str, LayerWeights]:
        shop = self.shop
        found = self._rounded(bits, "max")
        if not shop.per_channel:
            return found
        data = self.data.take(_ROUNDED)
        moments = layer_moments(
            shop.model,
            list(shop.layers.values()),
            data.feeds(_BATCH),
            progress.part(0.0, 0.6),
            total=data.runs(_BATCH),
            threads=self.threads,
        )
        for key in progress.part(0.6, 1.0).over(list(moments), lambda k: f"Rounding {k}"):
            found[key] = integers.fed_back(shop.weight(key), out_axis(shop.layers[key]), bits, moments[key])
        return found

    def _observe(self, progress: Progress, *, samples: bool) -> dict[str, Observed]:
        return observe(
            self.shop.model,
            self.shop.watches(),
            self.data.feeds(_BATCH),
            progress,
            total=self.data.runs(_BATCH),
            threads=self.threads,
            samples=samples,
        )

    def _rounded(self, bits: int, search: integers.Search) -> dict[str, LayerWeights]:
        shop = self.shop
        return {k: integers.per_channel(shop.weight(k), shop.axis(k), bits, search) for k in shop.layers}

    def _biases(self, seen: Mapping[str, Observed]) -> dict[str, Array]:
        """Biases that make up for the mean error of the rounded weights."""
        found: dict[str, Array] = {}
        for key, node in self.shop.layers.items():
            if node.op_type == "MatMul":
                continue
            source = self.shop.source(key)
            dims = self.shop.shapes.of(source)
            size = (
                tuple(int(d) for d in dims[2:])
                if dims and all(isinstance(d, int) for d in dims[2:])
                else None
            )
            lost = self.shop.weight(key) - self._weights[key].real()
            bias = self.shop.bias(key)
            delta = repair.mean_output(node, lost, seen[source].mean, size)
            found[key] = np.asarray((0.0 if bias is None else bias) + delta, np.float32)
        return found
