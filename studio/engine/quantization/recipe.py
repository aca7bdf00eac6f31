"""The quick way to the numbers of a static int8 model, and what both ways share.

A repair is kept only where it lowers the output error that is measured on calibration data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.base.progress import Progress
from studio.engine.dataset import Dataset
from studio.engine.quantization import repair
from studio.engine.quantization import weights as integers
from studio.engine.quantization.calibrate import Calibrator, Observed, choose_range, observe
from studio.engine.quantization.qdq import LayerWeights
from studio.engine.quantization.search import Judge
from studio.engine.quantization.static import Choice, Workshop
from studio.records.steps import QuantizeStatic

Array: TypeAlias = npt.NDArray[Any]

# Samples that candidates are compared on.
_GLANCED = 6
# Calibrators that are compared.
_QUICK: tuple[Calibrator, ...] = ("minmax", "mse")
# Samples a run: onnxruntime holds all activations that statistics are taken of until its end.
_BATCH = 1


def fast(
    shop: Workshop, data: Dataset, settings: QuantizeStatic, progress: Progress, threads: int
) -> tuple[Choice, float]:
    """One pass over the data for ranges and means; the better of two calibrators; biases corrected if that helps.

    Also gives the noise that is measured in the answers, as a share of their power.

    Args:
        shop: the float form and the places of its integers.
        data: calibration samples.
        settings: of the step.
        progress: of it all.
        threads: of the runtime.
    """
    kinds = _QUICK if settings.calibrator == "auto" else (settings.calibrator,)
    seen = observed(shop, data, progress.part(0.0, 0.7), threads, samples=kinds != ("minmax",), settle=True)
    weights = rounded(shop, 7 if settings.reduce_range else 8)
    biases = corrected(shop, weights, seen)
    judge = Judge(shop.model, data.take(_GLANCED).feeds(_BATCH), threads)
    best, least = Choice(weights), np.inf
    for kind in progress.part(0.7, 0.95).over(kinds, lambda kind: f"Trying {kind} ranges"):
        ranges = {k: choose_range(o, kind, settings.percentile) for k, o in seen.items()}
        choice = Choice(weights, ranges, biases)
        noise = judge.noise(shop.build(choice))
        if noise < least:
            best, least = choice, noise
    plain = Choice(weights, best.ranges)
    progress.tick(0.95, "Comparing biases")
    uncorrected = judge.noise(shop.build(plain))
    return (plain, uncorrected) if uncorrected < least else (best, least)


def observed(
    shop: Workshop, data: Dataset, progress: Progress, threads: int, *, samples: bool, settle: bool = False
) -> dict[str, Observed]:
    """What the sites hold over the calibration data; `settle`: as many of them as ranges take to settle."""
    return observe(
        shop.model,
        shop.watches(),
        data.feeds(_BATCH),
        progress,
        total=data.runs(_BATCH),
        threads=threads,
        samples=samples,
        settle=settle,
    )


def rounded(shop: Workshop, bits: int) -> dict[str, LayerWeights]:
    """The nearest integers for the weights of all layers."""
    return {key: integers.per_channel(shop.weight(key), shop.axis(key), bits) for key in shop.layers}


def corrected(
    shop: Workshop, weights: Mapping[str, LayerWeights], seen: Mapping[str, Observed]
) -> dict[str, Array]:
    """Biases that make up for the mean error of the rounded weights."""
    found: dict[str, Array] = {}
    for key, node in shop.layers.items():
        if node.op_type == "MatMul":
            continue
        lost = shop.weight(key) - weights[key].real()
        bias = shop.bias(key)
        delta = repair.mean_output(node, lost, seen[shop.source(key)].mean, shop.spatial(key))
        found[key] = np.asarray((0.0 if bias is None else bias) + delta, np.float32)
    return found
