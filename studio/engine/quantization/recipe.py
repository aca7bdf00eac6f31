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
from studio.engine.quantization.qdq import LayerWeights
from studio.engine.quantization.search import Judge
from studio.engine.quantization.static import Choice, Workshop
from studio.records.steps import QuantizeStatic

Array: TypeAlias = npt.NDArray[Any]

# Samples that candidates are compared on.
_JUDGED = 16


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
        """One pass over the data for ranges and means; biases corrected if that helps."""
        calibrator: Calibrator = "minmax" if settings.calibrator == "auto" else settings.calibrator
        seen = self._observe(self.progress.part(0.0, 0.7), samples=calibrator != "minmax")
        ranges = {k: choose_range(o, calibrator, settings.percentile) for k, o in seen.items()}
        self._weights = self._rounded(7 if settings.reduce_range else 8, "max")
        plain = Choice(self._weights, ranges)
        corrected = Choice(self._weights, ranges, self._biases(seen))
        self.progress.tick(0.7, "Comparing")
        judge = Judge(self.shop.model, self.data.take(_JUDGED).feeds(), self.threads)
        best = judge.best(
            (name, self.shop.build(c)) for name, c in (("corrected", corrected), ("plain", plain))
        )
        self.progress.tick(1.0)
        return corrected if best == "corrected" else plain

    def careful(self, settings: QuantizeStatic) -> Choice:
        """As `fast`, with the best of several calibrators and weight ranges."""
        return self.fast(settings)

    def _observe(self, progress: Progress, *, samples: bool) -> dict[str, Observed]:
        return observe(
            self.shop.model,
            self.shop.watches(),
            self.data.feeds(),
            progress,
            total=self.data.runs(),
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
