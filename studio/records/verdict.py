"""What a measurement means for the one who asked: a result that is slower, or answers otherwise elsewhere, is said to be so."""

from __future__ import annotations

from collections.abc import Sequence

from studio.base.units import percent
from studio.records.measure import Latency, Measurement, OutputError
from studio.records.steps import (
    AnySettings,
    Fp16,
    QuantizeDynamic,
    QuantizeStatic,
    QuantizeWeights,
    Sparsify,
)

_EQUAL_DB = 200.0  # stands for outputs that are equal
# Two sessions of one file differ by about so much.
_ALIKE = 0.03

# Noise elsewhere counts from a quarter of what the compression itself makes, and below so many dB in any case.
_FELT_DB, _POOR_DB = 6.0, 25.0


def cautions(measurement: Measurement | None, settings: Sequence[AnySettings] = ()) -> tuple[str, ...]:
    """What the measurement of a version says against it, a sentence each.

    Args:
        measurement: against the original; None = none yet.
        settings: of the steps that made the version.
    """
    if measurement is None:
        return ()
    slow = slowdown(measurement.latency, settings)
    return (*([slow] if slow else []), *elsewhere(measurement))


def elsewhere(measurement: Measurement) -> tuple[str, ...]:
    """Sentences on where else the version answers otherwise than here; empty where it answers alike."""
    found = measurement.portability
    if found is None:
        return ()
    words = []
    if _felt(found.saturation, measurement.error):
        assert found.saturation is not None
        layers = f"{len(found.saturated)} layer{'s' if len(found.saturated) > 1 else ''}"
        words.append(
            f"On x86 processors without VNNI sums of 8-bit products saturate in {layers}: the answers keep "
            f"{found.saturation.sqnr_db:.0f} dB of what they are here. 7-bit weights (reduce_range) answer alike everywhere; "
            "so does onnxruntime with session.x64quantprecision=1, slower."
        )
    if _felt(found.optimization, measurement.error):
        words.append(
            f"Without graph optimization the answers keep {found.optimization.sqnr_db:.0f} dB of what they are with it: other "
            "runtimes and versions may answer otherwise, too."
        )
    return tuple(words)


def _felt(change: OutputError | None, own: OutputError | None) -> bool:
    """Whether a change of the answers is more than a detail of what the version lost already."""
    if change is None:
        return False
    return change.sqnr_db < max(_POOR_DB, 0.0 if own is None else own.sqnr_db + _FELT_DB)


def slowdown(latency: Latency | None, settings: Sequence[AnySettings] = ()) -> str:
    """A sentence that a version runs slower than the original, and what to choose instead; '' where it does not.

    Args:
        latency: measured against the original.
        settings: of the steps that made the version.
    """
    if latency is None or latency.ratio is None or latency.ratio > 1 - _ALIKE:
        return ""
    if latency.ratio_high is not None and latency.ratio_high >= 1:
        return ""
    advice = next((words for s in reversed(settings) if (words := _advice(s))), "")
    doubt = " The machine was busy: measure again before deciding." if latency.busy else ""
    said = f"It runs slower than the original here: {latency.ratio:.2f}× its speed."
    return f"{said}{' ' if advice else ''}{advice}{doubt}"


def _advice(settings: AnySettings) -> str:
    match settings:
        case QuantizeWeights(bits=3):
            return "Three-bit weights save space alone; INT8 (dynamic or static) is what gets faster."
        case QuantizeWeights():
            return (
                "Weights alone save space and memory traffic, which pays in large models. The unpacked form is as fast as "
                "the original; for speed take INT8: dynamic for matrix products, static for convolutions."
            )
        case Fp16():
            return "Processors compute half precision no faster; INT8 (static or dynamic) usually is."
        case QuantizeDynamic(convolutions=True):
            return "Dynamic convolutions are slow: leave them out, or take static INT8."
        case QuantizeDynamic():
            return "Static INT8 has no ranges to find at every run; layers that gain nothing can be left in float."
        case QuantizeStatic():
            return (
                "Small layers between conversions gain nothing: treat only the large ones, or prune channels."
            )
        case Sparsify():
            return "Zeros give no speed in onnxruntime; pruning channels does."
        case _:
            return ""


def alike(error: OutputError | None) -> str:
    """How far outputs are from the reference's, and on what that was measured; '' where it was not."""
    if error is None:
        return ""
    if error.max_abs == 0 and error.sqnr_db >= _EQUAL_DB:
        return "equal"
    parts = [f"SQNR {error.sqnr_db:.1f} dB"]
    if error.agreement is not None:
        parts.append(f"agreement {percent(error.agreement)}")
    return ", ".join(parts) + f" (n={error.samples}, {error.data})"
