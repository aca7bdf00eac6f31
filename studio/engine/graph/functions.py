"""Functions that a model brings along, written out where they are called.

onnxruntime does the same before it runs a model. Afterwards every weight lies in a graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import onnx_ir as ir

from studio.base.errors import StudioError
from studio.engine.graph.model import Model

# Nested functions can stand for more nodes than any memory holds; models beyond this stay as they are.
_MAX_NODES = 100_000
# Where a runtime has kernels of its own, a function is only a fallback.
_STANDARD = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}


def inline_functions(model: Model) -> None:
    """Write every function out where it is called, in place, unless that would make the model huge.

    Raises:
        StudioError: a function calls itself.
    """
    functions = model.ir.functions
    if not functions:
        return
    total = sum(_written_out(n.op_identifier(), functions) for n in model.graph.all_nodes())
    if total > _MAX_NODES or not _inlinable(model):
        return
    from onnx_ir.passes.common import InlinePass

    InlinePass()(model.ir)


def _inlinable(model: Model) -> bool:
    """Whether all functions speak the model's own operator sets and replace nothing that a runtime knows."""
    versions = model.ir.opset_imports
    return all(
        f.domain not in _STANDARD and all(versions.get(d, v) == v for d, v in f.opset_imports.items())
        for f in model.ir.functions.values()
    )


def _written_out(name: ir.OperatorIdentifier, functions: Mapping[ir.OperatorIdentifier, ir.Function]) -> int:
    """How many nodes a call stands for."""
    open_calls: set[ir.OperatorIdentifier] = set()

    @cache
    def count(called: ir.OperatorIdentifier) -> int:
        if called not in functions:
            return 1
        if called in open_calls:
            raise StudioError(f"the function '{called[1]}' calls itself")
        open_calls.add(called)
        total = sum(count(n.op_identifier()) for n in functions[called].graph.all_nodes())
        open_calls.remove(called)
        return total

    return count(name)
