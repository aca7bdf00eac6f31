"""Which nodes are layers, what each costs, and the preflight of a model.

The one thing to know: a layer is one line of the table whatever form its node has. Weights are found
in initializers, Constant nodes and outer graphs, behind Identity, Cast, Transpose and Q/DQ nodes.
"""

from studio.engine.layers.find import LayerNode, Listing, list_layers
from studio.engine.layers.floats import float_weights
from studio.engine.layers.folding import with_weights_folded
from studio.engine.layers.inspect import describe, inspect, not_finite, outline
from studio.engine.layers.names import resolve_layers
from studio.engine.layers.precision import count_numbers
from studio.engine.layers.preflight import preflight

__all__ = [
    "LayerNode",
    "Listing",
    "count_numbers",
    "describe",
    "float_weights",
    "inspect",
    "list_layers",
    "not_finite",
    "outline",
    "preflight",
    "resolve_layers",
    "with_weights_folded",
]
