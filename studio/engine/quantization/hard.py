"""HardSwish in one node again, wherever it has stayed in float.

Equation: HardSwish(x) = x · clip(x + 3, 0, 6) / 6. On integers the single steps are what kernels compute; in float
onnxruntime makes one node part of the convolution before it, and of four nodes none. Exporters write the four, too.

Source: ONNX HardSwish (opset 14).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from studio.base.errors import StudioError
from studio.engine import edit
from studio.engine.graph import Model, raise_opset
from studio.engine.quantization.placement import limits, scalar_step
from studio.engine.quantization.simplify import sole_consumer

_OPSET = 14


def contract_hard_swish(model: Model) -> Model:
    """The model with one node for every HardSwish that is written in several; the model itself where there is none.

    Args:
        model: changed in place, unless its opset is raised.
    """
    if not any(_matched(node) for node in model.graph):
        return model
    try:
        result = raise_opset(model, _OPSET) if model.opset < _OPSET else model
    except StudioError:  # an operator has no equal there: then things stay as they were written
        return model
    for node in list(result.graph):
        found = _matched(node)
        if found is not None:
            source, last = found
            new = edit.make_node(
                result, "HardSwish", [source], name=last.name or "hard_swish", dtype=ir.DataType.FLOAT
            )
            edit.replace_node(last, [new], [new.outputs[0]])
    edit.remove_dead(result)
    return result


def _matched(clip: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    """What HardSwish reads and its last node, where `clip` is the one in the middle."""
    if clip.op_type != "Clip" or limits(clip) != (0.0, 6.0):
        return None
    shift = clip.inputs[0].producer() if clip.inputs[0] is not None else None
    if shift is None or shift.op_type != "Add" or sole_consumer(shift.outputs[0]) is None:
        return None
    source = next((v for v in shift.inputs if v is not None and scalar_step(shift, v) == (1.0, 3.0)), None)
    value, factor, gated = clip.outputs[0], 1.0, False
    while source is not None and (node := sole_consumer(value)) is not None:
        step = scalar_step(node, value)
        if step is not None and step[1] == 0.0:
            factor *= step[0]
        elif node.op_type == "Mul" and not gated and set(node.inputs) == {value, source}:
            gated = True
        else:
            return None
        if gated and np.isclose(6 * factor, 1.0, rtol=1e-5):
            return source, node
        value = node.outputs[0]
    return None
