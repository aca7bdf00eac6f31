"""Trained weights back into the model: same nodes, same names, same order, only those numbers change."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from studio.engine import edit, graph
from studio.engine.graph import Model
from studio.engine.trainable.module import GraphModule, Weight
from studio.engine.trainable.values import numpy_of


def write_back(module: GraphModule) -> Model:
    """A copy of the module's model that holds the weights as they are now.

    A weight that did not change keeps its very tensor.
    """
    result = graph.copy(module.model)
    places = {
        (path, value.name): value
        for path, inner in graph.graphs(result)
        for value in (
            *inner.initializers.values(),
            *(v for n in inner if graph.is_constant_node(n) for v in n.outputs),
        )
    }
    for weight in module.weights.values():
        array = stored(weight)
        if array is not None:
            edit.set_constant(places[weight.held.path, weight.held.value.name], array)
    for slot, held in module.moving.items():
        array = numpy_of(module.value(slot), held.tensor.dtype)
        if not np.array_equal(array, held.tensor.numpy()):
            edit.set_constant(places[held.path, held.value.name], array)
    return result


def stored(weight: Weight) -> np.ndarray[Any, Any] | None:
    """A weight in the model's own type; None where it is the same as before, bit for bit."""
    before = weight.held.tensor
    with torch.no_grad():
        array = np.asarray(numpy_of(weight.current, before.dtype))
    old = before.numpy()
    return None if array.dtype == old.dtype and np.array_equal(array, old, equal_nan=True) else array
