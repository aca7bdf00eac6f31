"""Samples: from a DataSpec to streamed feeds and labels.

The one thing to know: a `Dataset` holds no samples. Every walk over `feeds` reads them anew, a batch at a
time, so that memory is bounded by one batch however large the file is.
"""

from studio.engine.dataset.core import Array, Batch, Dataset, Feed
from studio.engine.dataset.opening import model_inputs, open_data, open_for
from studio.engine.dataset.preview import describe_data

__all__ = [
    "Array",
    "Batch",
    "Dataset",
    "Feed",
    "describe_data",
    "model_inputs",
    "open_data",
    "open_for",
]
