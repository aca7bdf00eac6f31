"""Which widths are worth having: kernels work in blocks, and a few channels less can cost more than they save.

onnxruntime keeps the channels of images in blocks (of 16 with AVX-512, of 8 with AVX2). Measured on mobile, residual,
detection and keyword networks: a width that is no multiple of a block costs like the next one; one that is no multiple
of 4 leaves the layout, and with it a mobile network of 70 % of the channels ran slower than the whole one; below one
block, a layer reads its input the plain way, which costs pointwise convolutions more than they save (8 channels of 16:
0.7 times as fast). Matrix products only gain from whole blocks where they are wide.

Source: onnxruntime, `core/optimizer/nchwc_transformer.cc` (`TransformConv`).
"""

from __future__ import annotations

import math
from typing import Literal

import onnx_ir as ir

from studio.engine.groups.grouping import ChannelGroup, Grouping

# What a group's widths depend on: heads and grouped channels ('free'), channels of matrix products and recurrences
# ('matrix'), channels of images ('image'), those that only pointwise convolutions read ('pointwise').
Grain = Literal["free", "matrix", "image", "pointwise"]

_BLOCK = 16
_ALIGNED = 4
_WIDE = 64  # from here on, a block is a small step
_NEAR = 1 / 8  # of the width


def grain(grouping: Grouping, group: ChannelGroup) -> Grain:
    """What the widths of a group depend on."""
    if group.kind != "plain":
        return "free"
    nodes = {name: node for node, name in grouping.names.items()}
    members = [(nodes[m.layer], m.axis) for m in group.record.members if m.layer in nodes]
    images = [(node, axis, kernel) for node, axis in members if (kernel := _kernel(grouping, node))]
    if not images:
        return "matrix"
    read = [kernel for node, axis, kernel in images if axis == "in" and _groups(node) == 1]
    return "pointwise" if read and all(kernel == (1, 1) for kernel in read) else "image"


def _kernel(grouping: Grouping, node: ir.Node) -> tuple[int, ...]:
    """Height and width of an image convolution's kernel; nothing for other nodes."""
    dims = grouping.trace.dims(node.inputs[1]) if node.op_type == "Conv" else None
    return dims[2:] if dims is not None and len(dims) == 4 else ()


def _groups(node: ir.Node) -> int:
    attribute = node.attributes.get("group")
    return 1 if attribute is None else attribute.as_int()


def rounded(width: int, keep: float, round_to: int, minimum: int, grain: Grain) -> int:
    """The width to keep, about `keep` of `width` channels and at least `minimum`.

    Args:
        width: the whole group's.
        keep: how many channels are asked for.
        round_to: keep a multiple of this many; 0 = what is fast here.
        minimum: width that the group does not go below.
        grain: see `grain`.
    """
    wanted = max(keep, minimum)
    if round_to or grain == "free":
        return min(width, _up(wanted, round_to if grain != "free" else 1))
    if width >= _WIDE:
        return min(width, _up(wanted, _BLOCK))
    if width > _BLOCK and grain != "matrix":
        return _narrow(width, wanted, minimum)
    if grain == "pointwise":
        return width if width == _BLOCK else min(width, _up(wanted, _ALIGNED))
    return min(width, max(_up(wanted, 1), _BLOCK if width > _BLOCK else 1))


def _narrow(width: int, wanted: float, minimum: int) -> int:
    """A whole block where one is near, so that about as much goes as was asked; else what the layout allows."""
    blocks = [*(b for b in range(_BLOCK, width, _BLOCK) if b >= minimum), width]
    nearest = min(reversed(blocks), key=lambda block: abs(block - wanted))
    if nearest < width and abs(nearest - wanted) <= _NEAR * width:
        return nearest
    return min(width, max(_BLOCK, _up(wanted, _ALIGNED)))


def fewer(width: int, kept: int, round_to: int, minimum: int, grain: Grain, step: float) -> int:
    """The next smaller width worth having, at least about `step` channels fewer; `kept` where there is none."""
    wanted = kept - max(1.0, step)
    found = rounded(width, wanted, round_to, minimum, grain)
    while found >= kept and wanted > minimum:
        wanted -= 1
        found = rounded(width, wanted, round_to, minimum, grain)
    return min(found, kept)


def more(width: int, kept: int, round_to: int, grain: Grain) -> int:
    """The next larger width worth having; `kept` where there is none."""
    return next(
        (w for n in range(kept + 1, width + 1) if (w := rounded(width, n, round_to, 1, grain)) > kept), kept
    )


def _up(wanted: float, unit: int) -> int:
    return math.ceil(wanted / max(1, unit) - 1e-9) * max(1, unit)
