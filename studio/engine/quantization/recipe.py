"""The quick way to the numbers of a static int8 model, and what both ways share.

Whole ranges, the nearest weights, and biases that make up for mean errors are good for most models; where they are not
so good, it is measured whether the biases had better stay as they are. Only where little of the answer is left then,
the values that spoil it are looked for, as the careful way does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.base.progress import Progress
from studio.engine.dataset import Dataset
from studio.engine.graph import Model
from studio.engine.quantization import repair
from studio.engine.quantization.calibrate import Calibrator, Feed, Observed, choose_range, observe
from studio.engine.quantization.felt import SAMPLES, Probe, felt_ranges
from studio.engine.quantization.islands import find_islands
from studio.engine.quantization.qdq import LayerWeights
from studio.engine.quantization.search import Judge
from studio.engine.quantization.static import Choice, Workshop
from studio.engine.quantization.survey import survey
from studio.records.steps import QuantizeStatic

Array: TypeAlias = npt.NDArray[Any]

# Noise in the answers (a share of their power) that is told, and above which the quick way looks closer.
POOR, _CLOSER = 10**-1.5, 10**-2.0
# With less noise than this corrected biases are taken unquestioned.
_GOOD = 10**-2.5
# Bytes of the samples that candidates are compared on, and their answers.
_GLANCED = 4_000_000
# Numbers in the samples that single values are tried on.
_SURVEYED = 1_200_000
_FEWEST, _MOST = 1, 64
# Multiplications that trying single values may take altogether; a processor core does some 10¹⁰ a second.
_EFFORT = 3e11
# Numbers in the samples that are run together, and how many these may be.
_TOGETHER, _MOST_TOGETHER = 200_000, 16
# What is tried where whole ranges are poor.
_NARROW: tuple[Calibrator, ...] = ("mse", "percentile")
# Samples a run: onnxruntime holds all activations that statistics are taken of until its end.
_BATCH = 1


@dataclass(frozen=True)
class Outcome:
    """What was found.

    Attributes:
        shop: the layers that run on integers.
        choice: their numbers.
        noise: in the answers, as a share of their power, measured on calibration samples.
        kept: layers left in float, with the SQNR in dB of the answer that their noisiest value would leave.
        built: the finished model, where it was built to be judged.
    """

    shop: Workshop
    choice: Choice
    noise: float
    kept: Mapping[str, float] = field(default_factory=dict)
    built: Model | None = None


def fast(
    shop: Workshop,
    data: Dataset,
    settings: QuantizeStatic,
    progress: Progress,
    threads: int,
    work: Mapping[str, int] | None = None,
    probe: Probe | None = None,
) -> Outcome:
    """One pass over the data for ranges and means, biases corrected unless that harms; more only where that is poor.

    Args:
        shop: the float form and the places of its integers.
        data: calibration samples.
        settings: of the step.
        progress: of it all.
        threads: of the runtime.
        work: multiplications by layer; None = all layers are to run on integers.
        probe: what finds gradients where ranges are to be chosen by them; None = not, or there are none.
    """
    auto, task_aware = settings.calibrator == "auto", settings.calibrator in {"answer", "gradient"}
    kind = calibrator_of(settings, probe)
    part = progress.part(0.0, 0.3 if auto or task_aware else 0.9)
    judge = Judge(threads, _MOST, _GLANCED)
    seen = observed(shop, data, part, threads, samples=kind != "minmax", judge=judge)
    weights = rounded(shop, 7 if settings.reduce_range else 8)
    ranges = {k: choose_range(o, kind, settings.percentile) for k, o in seen.items()}
    if settings.calibrator == "answer":
        few = first_samples(data, _SURVEYED)
        findings = survey(shop, weights, seen, few, progress.part(0.3, 0.9), threads)
        ranges = {name: finding.bounds for name, finding in findings.items()}
    felt: Mapping[str, tuple[float, float]] = {}
    if probe is not None:
        few = list(data.take(SAMPLES).feeds(1))
        felt = felt_ranges(shop, seen, few, probe, progress.part(0.3, 0.9))
    progress.tick(0.9 if not auto else 0.3, "Comparing biases")
    found = _better_biases(shop, weights, seen, ranges, judge)
    if felt:
        found = min(
            found, _better_biases(shop, weights, seen, felt, judge), key=lambda outcome: outcome.noise
        )
    if not auto or found.noise < _CLOSER or len(shop.layers) < 2:
        return found
    progress.tick(0.4, "Little of the answer is left: looking closer")
    kept: Mapping[str, float] = {}
    if work is not None:
        few = first_samples(data, _SURVEYED, affordable(shop, data, work, _EFFORT))
        findings = survey(shop, weights, seen, few, progress.part(0.4, 0.8), threads, thorough=False)
        numbers = found.choice
        kept = find_islands(shop, findings, work, lambda s: judge.noise(s.build(numbers.of(s.layers))))
        if len(kept) == len(shop.layers):
            return replace(found, kept=kept)
    less = shop.without(kept) if kept else shop
    watched = observe(less.model, less.watches(), judge.feeds, threads=threads, samples=True)
    every = [ranges, *({k: choose_range(o, kind) for k, o in watched.items()} for kind in _NARROW)]
    for tried in progress.part(0.8, 1.0).over(every, lambda _: "Comparing ranges"):
        other = _better_biases(less, {k: weights[k] for k in less.layers}, seen, tried, judge)
        if other.noise < found.noise:
            found = replace(other, kept=kept)
    return found


def calibrator_of(settings: QuantizeStatic, probe: Probe | None) -> Calibrator:
    """How ranges are chosen at first: whole ones where the answer decides afterwards."""
    match settings.calibrator:
        case "gradient":
            return "mse" if probe is None else "minmax"
        case "auto" | "answer":
            return "minmax"
        case kind:
            return kind


def _better_biases(
    shop: Workshop,
    weights: Mapping[str, LayerWeights],
    seen: Mapping[str, Observed],
    ranges: Mapping[str, tuple[float, float]],
    judge: Judge,
) -> Outcome:
    """Corrected biases, or the model's own where these answer better."""
    found: list[Outcome] = []
    for biases in (corrected(shop, weights, seen), {}):
        choice = Choice(weights, ranges, biases)
        model = shop.build(choice)
        found.append(Outcome(shop, choice, judge.noise(model), built=model))
        if found[-1].noise < _GOOD:
            break
    return min(found, key=lambda outcome: outcome.noise)


def affordable(shop: Workshop, data: Dataset, work: Mapping[str, int], effort: float) -> int:
    """How many samples every value of a model can be tried on.

    Args:
        shop: the model.
        data: samples, which may be larger than the sizes that the model's costs are counted at.
        work: multiplications by layer at those sizes.
        effort: multiplications altogether.
    """
    feed = next(iter(data.take(max(1, data.batch_size(1))).feeds(1)))
    real = sum(array.size for array in feed.values()) / data.batch_size(1)
    counted = [shop.shapes.of(name) or () for name in feed]
    sizes = sum(math.prod(d for d in dims if isinstance(d, int)) for dims in counted)
    growth = real / sizes if sizes else 1.0
    return int(effort / max(1.0, growth * sum(work.values()) * len(shop.placed.sites)))


def first_samples(data: Dataset, numbers: int, most: int = _MOST) -> list[Feed]:
    """The first samples that hold about so many numbers, in batches small enough for the memory that runs take.

    Args:
        data: is not read beyond these.
        numbers: in all of them together.
        most: samples; one is taken in any case.
    """
    first = next(iter(data.take(max(1, data.batch_size(1))).feeds(1)))
    each = max(1, sum(array.size for array in first.values()) // data.batch_size(1))
    count = int(np.clip(min(numbers // each, most), _FEWEST, _MOST))
    batch = int(np.clip(_TOGETHER // each, 1, _MOST_TOGETHER))
    return list(data.take(max(count, data.batch_size(1))).feeds(batch))


def observed(
    shop: Workshop,
    data: Dataset,
    progress: Progress,
    threads: int,
    *,
    samples: bool,
    judge: Judge | None = None,
) -> dict[str, Observed]:
    """What the sites hold over the calibration data; with a judge, who learns, until that has settled."""
    return observe(
        shop.model,
        shop.watches(),
        data.feeds(_BATCH),
        progress,
        total=data.runs(_BATCH),
        threads=threads,
        samples=samples,
        settle=judge is not None,
        judge=judge,
    )


def rounded(shop: Workshop, bits: int) -> dict[str, LayerWeights]:
    """The nearest integers for the weights of all layers."""
    return {key: shop.rounded(key, bits) for key in shop.layers}


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
