"""Three presets that suit any model: which treatment each kind of layer gets.

Convolutions gain from static int8, and so do the matrix products beside them; where products do most of the work, ranges
taken at every run (dynamic int8) answer better. Embeddings and recurrent layers store 8-bit weights. Without calibration
data, what would need them stores its weights in 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

from studio.records.model import Layer
from studio.records.steps import AnySettings, QuantizeDynamic, QuantizeStatic, QuantizeWeights, Step

Preset: TypeAlias = Literal["fast", "careful", "small"]
TITLES: dict[Preset, str] = {"fast": "Fast", "careful": "Careful", "small": "Small"}
SUMMARIES: dict[Preset, str] = {
    "fast": "INT8 in seconds: a quarter of the size, faster on most processors.",
    "careful": "INT8 with every choice measured on the calibration data: the best answers, in minutes.",
    "small": "4-bit weights for matrix products and embeddings, careful INT8 for convolutions: the smallest file that runs.",
}

# What layers get that refuse what is chosen for them.
FALLBACK = QuantizeWeights(bits=8)

_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_PRODUCTS = {"MatMul", "Gemm"}


def treatments(
    preset: Preset, layers: Sequence[Layer], *, calibrated: bool
) -> list[tuple[AnySettings, tuple[str, ...]]]:
    """Settings, each with the layers that get them, in the order of a chain.

    Args:
        preset: which.
        layers: of the whole model; those that hold no float weights, or cannot be treated, are left out.
        calibrated: calibration data are there.
    """
    found: dict[AnySettings, list[str]] = {}
    convolutional = _work(layers, _CONVOLUTIONS) > _work(layers, _PRODUCTS)
    for layer in layers:
        if layer.untreatable or layer.dtype != "float32":
            continue
        settings = _settings(preset, layer.op, convolutional=convolutional, calibrated=calibrated)
        found.setdefault(settings, []).append(layer.name)
    return [(settings, tuple(found[settings])) for settings in sorted(found, key=order)]


def steps(preset: Preset, layers: Sequence[Layer], *, calibrated: bool) -> tuple[Step, ...]:
    """A preset as the steps of a recipe for one model; none where it holds nothing to quantize."""
    chosen = treatments(preset, layers, calibrated=calibrated)
    return tuple(Step(settings=settings, layers=names) for settings, names in chosen)


def _settings(preset: Preset, op: str, *, convolutional: bool, calibrated: bool) -> AnySettings:
    product = op in _PRODUCTS
    if preset == "small" and (op == "Gather" or (product and not convolutional)):
        return QuantizeWeights(bits=4, preset="careful" if calibrated else "fast")
    if op == "Conv" or (product and convolutional):
        if not calibrated:
            return QuantizeWeights(bits=8)
        return QuantizeStatic(preset="fast" if preset == "fast" else "careful")
    if op == "ConvTranspose":
        return QuantizeWeights(bits=8)
    return QuantizeDynamic(preset="careful" if calibrated and preset != "fast" else "fast")


def _work(layers: Iterable[Layer], operators: set[str]) -> int:
    """Multiplications in layers of these operators; their weights where nothing better is known."""
    return sum(layer.cost.macs or layer.cost.parameters for layer in layers if layer.op in operators)


def order(settings: AnySettings) -> int:
    """Static int8 first: it watches the values between layers, which are floats only then."""
    kinds = (QuantizeStatic, QuantizeDynamic, QuantizeWeights)
    return next((i for i, kind in enumerate(kinds) if isinstance(settings, kind)), len(kinds))
