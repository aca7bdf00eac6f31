"""What a node and a model cost: multiply-accumulates, stored values, bytes, bytes of activations.

The one thing to know: the convention is that of the papers (mult-adds of convolutions, matrix products and
recurrent cells; padding counted; element-wise work, norms, pooling and data movement count nothing).
"""

from studio.engine.cost.rules import macs
from studio.engine.cost.sizes import (
    activation_bytes,
    constant_cost,
    model_cost,
    stored_values,
    tensor_bytes,
    used_bytes,
)

__all__ = [
    "activation_bytes",
    "constant_cost",
    "macs",
    "model_cost",
    "stored_values",
    "tensor_bytes",
    "used_bytes",
]
