"""A copy without weights, for the graph view: names, types and dimensions only."""

from __future__ import annotations

from studio.engine.graph.model import Model, copy


def strip(model: Model) -> Model:
    """A copy of the model whose weights have names, types and dimensions, but no values."""
    return copy(model)
