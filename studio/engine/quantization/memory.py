"""How much memory calibration will take, said before it is done.

While a model is watched, onnxruntime holds every value that statistics are taken of until the end of the run, so about
the sum of all activations of one sample; weights lie there once as they are and once as kernels want them.
"""

from __future__ import annotations

from studio.base.units import file_size
from studio.engine.layers import Listing

# Of a session without weights and values; found on eight models of 0.3 to 90 MB.
_SESSION = 12_000_000
# What may be kept of one value over all samples (calibrate).
VALUES_KEPT = 2 * 32_768 * 4


def calibration_bytes(listing: Listing, kept: int) -> int | None:
    """Peak memory of calibrating a model, beyond what the process had before; None where sizes are not known.

    Args:
        listing: of the model, at the sizes that the samples have.
        kept: bytes of statistics that are gathered over all samples.
    """
    activations = listing.cost.activation_bytes
    if activations is None:
        return None
    return _SESSION + 2 * listing.cost.bytes + activations + kept


def in_words(listing: Listing, kept: int) -> list[str]:
    """The forecast as a sentence of a plan; none where sizes are not known."""
    forecast = calibration_bytes(listing, kept)
    return [] if forecast is None else [f"Calibration takes about {file_size(forecast)} of memory."]
