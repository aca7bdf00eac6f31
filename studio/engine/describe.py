"""What the inspector shows of one layer: its weights, what a treatment would make of them, its activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.engine.dataset import Dataset
from studio.engine.execute import stream
from studio.engine.graph import constant
from studio.engine.layers import LayerNode, Listing, count_numbers, float_weights
from studio.engine.pruning import zeros
from studio.engine.quantization import grids, weight_only
from studio.records import steps
from studio.records.task import ChannelRange, Histogram, LayerDetail, RankSpectrum

Array = npt.NDArray[Any]

_BINS = 128
_MAX_VALUES = 4_000_000  # a histogram of more weights than this is one of an even sample
_MAX_CHANNELS = 4096
_MAX_GRID = 256
_MAX_RANKS = 256
_SAMPLES = 16
_VALUES_PER_RUN = 65_536


def describe_layer(
    listing: Listing,
    name: str,
    settings: steps.AnySettings | None = None,
    data: Dataset | None = None,
    progress: Progress | None = None,
) -> LayerDetail:
    """Histogram, ranges by channel, grid and error of one layer's weights; histograms of its activations.

    Args:
        listing: the model.
        name: of the layer.
        settings: a treatment whose grid and error are asked for.
        data: samples to take activations from.
        progress: ticked while the model runs.

    Raises:
        StudioError: there is no such layer.
    """
    layer = listing.nodes.get(name)
    if layer is None:
        raise StudioError(f"No layer is called '{name}'")
    counted = count_numbers(layer.weight, layer.zero_point, layer.out_axis)
    inputs, outputs = _activations(listing, layer, data, progress or Progress())
    weights = float_weights(layer)
    detail = LayerDetail(
        layer=name,
        sparsity=counted.zeros / counted.values if counted is not None and counted.values else None,
        inputs=inputs,
        outputs=outputs,
    )
    if weights is None or not weights.size:
        return detail
    detail = replace(detail, weights=histogram(weights), channels=_ranges(weights, layer))
    if settings is None or layer.quantized:
        refused = "its weights are quantized already" if settings is not None else ""
        return replace(detail, refused=refused)
    if not np.isfinite(weights).all():
        return replace(detail, refused="its weights hold NaN or infinities")
    if isinstance(settings, steps.Factorize):
        return _factorised(detail, listing, name, settings)
    after, grid = _treated(weights, layer, settings)
    if after is None:
        return detail
    return replace(
        detail,
        grid=tuple(float(g) for g in grid),
        clipped=_clipped(weights, grid),
        sqnr_db=grids.sqnr_db(weights, after),
    )


def _factorised(detail: LayerDetail, listing: Listing, name: str, settings: steps.Factorize) -> LayerDetail:
    """With the spectrum of the weights, or why there is none."""
    from studio.engine.techniques.factorize import why_not
    from studio.engine.techniques.spectra import spectra

    reason = why_not(listing, name)
    if reason:
        return replace(detail, refused=reason)
    layers = {name: listing.nodes[name]}
    found = spectra(listing, layers, None, Progress(), 0, 0, settings.form)[name]
    ranks = np.unique(np.linspace(0, len(found.tail) - 1, min(len(found.tail), _MAX_RANKS)).astype(int))
    lost = found.tail[ranks] / max(float(found.tail[0]), 1e-30)
    return replace(
        detail,
        spectrum=RankSpectrum(
            ranks=tuple(ranks.tolist()), lost=tuple(lost.tolist()), break_even=found.break_even
        ),
    )


def _clipped(weights: Array, grid: Array) -> float | None:
    """Share of weights that lie more than half a step outside of the grid."""
    if len(grid) < 2:
        return None
    half = (grid[1] - grid[0]) / 2
    return float(np.mean((weights < grid[0] - half) | (weights > grid[-1] + half)))


def histogram(values: Array) -> Histogram | None:
    """Counts over equal bins; None without finite values. A large array is sampled evenly."""
    flat = values.reshape(-1)[:: max(1, values.size // _MAX_VALUES)]
    flat = flat[np.isfinite(flat)]
    if not flat.size:
        return None
    low, high = float(flat.min()), float(flat.max())
    if low == high:
        return Histogram(low=low, high=high, counts=(int(flat.size),))
    counts, _edges = np.histogram(flat.astype(np.float64), bins=_BINS, range=(low, high))
    return Histogram(low=low, high=high, counts=tuple(int(c) for c in counts))


def _ranges(weights: Array, layer: LayerNode) -> tuple[ChannelRange, ...]:
    """Smallest and largest weight by output channel."""
    axis = 1 if layer.node.op_type == "MatMulNBits" else layer.out_axis
    if axis is None or weights.shape[axis] > _MAX_CHANNELS:
        return ()
    others = tuple(i for i in range(weights.ndim) if i != axis)
    low, high = weights.min(axis=others), weights.max(axis=others)
    return tuple(ChannelRange(low=float(a), high=float(b)) for a, b in zip(low, high, strict=True))


# ------------------------------------------------------------------ treated


def _treated(weights: Array, layer: LayerNode, settings: steps.AnySettings) -> tuple[Array | None, Array]:
    """The weights after a treatment (None: their number changes), and the grid of the widest channel."""
    none = np.zeros(0, np.float32)
    match settings:
        case steps.Fp16():
            return weights.astype(np.float16).astype(np.float32), none
        case steps.Sparsify():
            return _sparse(weights, layer, settings), none
        case steps.QuantizeWeights():
            return _in_blocks(weights, layer, settings)
        case steps.QuantizeDynamic() | steps.QuantizeStatic():
            return _per_channel(weights, layer.out_axis if settings.per_channel else None, 8)
        case steps.Qat():
            return _per_channel(weights, layer.out_axis, settings.weights)
        case _:
            return None, none


def _sparse(weights: Array, layer: LayerNode, settings: steps.Sparsify) -> Array | None:
    """By magnitude; what calibration data would choose instead is not asked here."""
    scores = np.abs(weights)
    if settings.pattern == "free":
        return np.where(zeros.smallest(scores, settings.ratio), 0, weights)
    if layer.in_axis is None:
        return None
    keep, of = (int(part) for part in settings.pattern.split(":"))
    along = np.moveaxis(scores, layer.in_axis, -1)
    if along.shape[-1] % of:
        return None
    mask = zeros.pattern(along.reshape(-1, along.shape[-1]), of - keep, of).reshape(along.shape)
    return np.where(np.moveaxis(mask, -1, layer.in_axis), 0, weights)


def _per_channel(weights: Array, axis: int | None, bits: int) -> tuple[Array, Array]:
    others = None if axis is None else tuple(i for i in range(weights.ndim) if i != axis)
    grid = grids.symmetric(weights, others, bits)
    widest = int(np.argmax(grid.scale))
    return grid.snap(weights), _steps(grid.scale.flat[widest], grid.zero.flat[widest], grid.low, grid.high)


def _in_blocks(
    weights: Array, layer: LayerNode, settings: steps.QuantizeWeights
) -> tuple[Array | None, Array]:
    """Runs along the inputs of every output; of a table, along its rows."""
    if layer.out_axis is None:
        return None, np.zeros(0, np.float32)
    first = layer.in_axis if layer.record.op == "Gather" and layer.in_axis is not None else layer.out_axis
    ordered = np.moveaxis(weights, first, 0)
    rows = ordered.reshape(ordered.shape[0], -1)
    kind = weight_only.form(layer.node, settings)
    fitted = weight_only.fit(rows, settings.block, kind, settings, None, symmetric=settings.symmetric)
    widest = int(np.argmax(np.abs(fitted.scale)))
    grid = _steps(fitted.scale.flat[widest], fitted.zero.flat[widest], 0, 2**settings.bits - 1)
    return np.moveaxis(fitted.real().reshape(ordered.shape), 0, first), grid


def _steps(scale: float, zero: int, low: int, high: int) -> Array:
    """All numbers of one grid, in order."""
    return np.sort((np.arange(low, high + 1) - zero) * scale)[:_MAX_GRID]


# ------------------------------------------------------------------ activations


def _activations(
    listing: Listing, layer: LayerNode, data: Dataset | None, progress: Progress
) -> tuple[Histogram | None, Histogram | None]:
    """Histograms of the layer's input and output; None without data and for layers in subgraphs."""
    value = (
        layer.node.inputs[0 if layer.position else 1] if len(layer.node.inputs) > 1 else layer.node.inputs[0]
    )
    if data is None or layer.path or value is None or constant(value) is not None:
        return None, None
    names = (value.name or "", layer.node.outputs[0].name or "")
    seen: dict[str, list[Array]] = {name: [] for name in names}
    few = data.take(_SAMPLES)
    for found in stream(listing.model, names, few.feeds(), progress, total=few.samples):
        for name in names:
            flat = np.asarray(found[name]).reshape(-1)
            seen[name].append(flat[:: max(1, flat.size // _VALUES_PER_RUN)])
    first, second = (histogram(np.concatenate(seen[n])) if seen[n] else None for n in names)
    return first, second
