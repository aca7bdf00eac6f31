"""What an operator is, what it is told about its node, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import onnx_ir as ir
import torch

Operator: TypeAlias = Callable[..., Any]

_OPERATORS: dict[tuple[str, str], Operator] = {}


@dataclass
class Call:
    """One node as an operator sees it.

    Attributes:
        version: of the node's operator set.
        attributes: by name; tensors are torch tensors, graphs are compiled programs.
        input_types, output_types: ONNX types where the model states them, else None; torch tensors carry
            some types in wider ones (see `values`), so an operator that must know looks here.
        outputs: how many outputs the node has.
        promote: half floats are computed in float32.
        memory: what an operator may keep between runs (compiled function bodies).
    """

    op: str
    domain: str
    version: int
    attributes: dict[str, Any]
    input_types: tuple[ir.DataType | None, ...]
    output_types: tuple[ir.DataType | None, ...]
    outputs: int
    promote: bool = False
    memory: dict[Any, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or `default` where the node does not carry it."""
        return self.attributes.get(name, default)

    def float_type(self, dtype: ir.DataType) -> ir.DataType:
        """`dtype`, or float32 instead of a half float where halves are promoted."""
        if self.promote and dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            return ir.DataType.FLOAT
        return dtype


def operator(*names: str, domain: str = "") -> Callable[[Operator], Operator]:
    """Register a function as the operator of these names."""

    def register(function: Operator) -> Operator:
        for name in names:
            _OPERATORS[domain, name] = function
        return function

    return register


_CONTROL: dict[str, Operator] = {}


def control(*names: str) -> Callable[[Operator], Operator]:
    """Register an operator that runs subgraphs: it takes `(call, env, *inputs)`, `env` being all live values."""

    def register(function: Operator) -> Operator:
        for name in names:
            _CONTROL[name] = function
        return function

    return register


def find_control(domain: str, name: str) -> Operator | None:
    """The control operator of that name; None where none is known."""
    return _CONTROL.get(name) if domain in ("", "ai.onnx") else None


def find(domain: str, name: str) -> Operator | None:
    """The operator of that name; None where none is known."""
    return _OPERATORS.get(("" if domain == "ai.onnx" else domain, name))


def ints(value: torch.Tensor | None) -> list[int] | None:
    """A tensor of integers as a list; None stays None."""
    return None if value is None else [int(v) for v in value.reshape(-1).tolist()]


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis
