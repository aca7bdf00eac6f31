"""What must be rewritten in a node once axes are narrower. Said by the rules, done by `cut`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from studio.engine.groups.atoms import Axis


@dataclass(frozen=True)
class Rescaled:
    """Input `position` lists the sizes of the axes of `axes` (Reshape, Expand, ConstantOfShape, Resize)."""

    node: ir.Node
    position: int
    axes: tuple[Axis | None, ...]


@dataclass(frozen=True)
class Measured:
    """A Shape or Size node: what it says of `axes` must stay the original size."""

    node: ir.Node
    axes: tuple[Axis | None, ...]


@dataclass(frozen=True)
class Counted:
    """Attribute `name` is the length of `axis` (groups, hidden size, heads), times `share`."""

    node: ir.Node
    name: str
    axis: Axis


@dataclass(frozen=True)
class Parted:
    """A Split: the sizes of its parts along its axis."""

    node: ir.Node
    axis: int
    parts: tuple[Axis, ...]


@dataclass(frozen=True)
class Picked:
    """Positions `indices` of `labels` along `axis` are taken by a Slice or Gather."""

    node: ir.Node
    axis: int
    labels: Axis
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Padded:
    """A Pad: how much is added before and after along each axis with labels."""

    node: ir.Node
    before: tuple[Axis | None, ...]
    after: tuple[Axis | None, ...]


@dataclass(frozen=True)
class Scaled:
    """A default factor 1/√d that depends on `axis`: write the original down as attribute `name`."""

    node: ir.Node
    name: str
    axis: Axis
    value: float


Repair: TypeAlias = Rescaled | Measured | Counted | Parted | Picked | Padded | Scaled
