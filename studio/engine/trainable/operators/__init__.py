"""Every operator the interpreter knows, by (domain, name).

An operator is a function `(call, *inputs) -> value | tuple of values` over torch tensors; missing optional
inputs are None. Importing this package fills the registry.
"""

from studio.engine.trainable.operators import (  # noqa: F401 - imported for what they register
    control,
    convolution,
    elementwise,
    indexing,
    layout,
    microsoft,
    normalization,
    quantization,
    randomness,
    recurrent,
    reduction,
    sequences,
    signal,
    vision,
)
from studio.engine.trainable.operators.registry import Call, Operator, find, find_control

__all__ = ["Call", "Operator", "find", "find_control"]
