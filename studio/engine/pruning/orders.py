"""What a criterion says of a group, and what it may look at: the order of its channels, the layers that read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from studio.engine.groups.atoms import Array
from studio.engine.pruning.linear import Linear
from studio.engine.pruning.moments import Statistics


@dataclass(frozen=True)
class Order:
    """Channels of a group (indices) from the first to go to the last, and the error when the first k are gone.

    Attributes:
        channels: (width,).
        error: (width + 1,), ascending from 0; relative to the power of what reads the group.
        damping: with which the other channels make up best for those that go, relative to the mean diagonal of H.
    """

    channels: Array
    error: Array
    damping: float = 0.1


@dataclass(frozen=True)
class Reader:
    """A layer that reads a group.

    Attributes:
        node, view: it, and its linear map.
        w: its matrix (rows, cols).
        statistics: of its input.
        centred: it has a bias, which makes up for means.
        columns: of every channel (width, per channel).
    """

    node: ir.Node
    view: Linear
    w: Array
    statistics: Statistics
    centred: bool
    columns: Array

    def moments(self, half: int | None = None) -> Array:
        """H (cols, cols)."""
        return np.asarray(self.statistics.moments(half, centred=self.centred)[0])
