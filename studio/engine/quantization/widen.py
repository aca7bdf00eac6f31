"""Depthwise convolutions brought to widths that integer kernels like: a multiple of 16 channels.

onnxruntime's integer kernel takes 16 channels at a time and what is left one by one: 88 channels take longer than 128.
Channels of zeros are added where a depthwise convolution is wider than a few of these and not a multiple, to everything
between the convolutions that make and that read them. What the new channels hold is multiplied by zeros: the function
stays the same.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Model, constant, node_key
from studio.engine.quantization.simplify import array

Array: TypeAlias = npt.NDArray[Any]

_LANES = 16
# Share of channels that may be added.
_GROWTH = 1 / 3
# Operators that treat channels apart and alike.
_CHANNELWISE = {
    "Add", "Mul", "Sub", "Div", "Clip", "Relu", "LeakyRelu", "Sigmoid", "HardSwish", "HardSigmoid", "GlobalAveragePool",
    "AveragePool", "MaxPool",
}  # fmt: skip


def widen(model: Model, keys: set[str]) -> None:
    """Bring depthwise convolutions among the layers `keys` to a multiple of 16 channels, in place."""
    done: set[ir.Node] = set()
    for node in list(model.graph):
        if node_key(node) not in keys or node in done or not _is_depthwise(node):
            continue
        channels = _channels(node)
        wide = -(-channels // _LANES) * _LANES
        if wide == channels or wide - channels > _GROWTH * channels:
            continue
        region = _Region(channels)
        if region.grow(node):
            region.widen(model, wide)
            done |= region.inside


def _is_depthwise(node: ir.Node) -> bool:
    if node.op_type != "Conv" or not _stored(node):
        return False
    group = node.attributes.get("group")
    return group is not None and group.as_int() == _channels(node) > 1


def _stored(conv: ir.Node) -> bool:
    """Whether a convolution's weight and bias are constants."""
    return all(constant(v) is not None for v in conv.inputs[1:] if v is not None)


def _channels(conv: ir.Node) -> int:
    weight = constant(conv.inputs[1])
    return 0 if weight is None else int(weight.shape.numpy()[0])


def _is_dense(node: ir.Node) -> bool:
    group = node.attributes.get("group")
    return node.op_type == "Conv" and (group is None or group.as_int() == 1) and _stored(node)


class _Region:
    """All values that must have as many channels as one depthwise convolution, and the nodes around them.

    Attributes:
        inside: nodes that read and make such values.
        makers / readers: dense convolutions at its ends.
    """

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._values: set[ir.Value] = set()
        self.inside: set[ir.Node] = set()
        self.makers: set[ir.Node] = set()
        self.readers: set[ir.Node] = set()

    def grow(self, node: ir.Node) -> bool:
        """Take in a depthwise convolution and all that hangs together with it; False where that does not end well."""
        self.inside.add(node)
        waiting = [node.inputs[0], node.outputs[0]]
        while waiting:
            value = waiting.pop()
            if value is None or value in self._values:
                continue
            producer = value.producer()
            if producer is None or value.is_graph_output():
                return False
            self._values.add(value)
            if _is_dense(producer):
                self.makers.add(producer)
            elif not self._enter(producer, waiting):
                return False
            for user, position in value.uses():
                if _is_dense(user) and position == 0:
                    self.readers.add(user)
                elif not self._enter(user, waiting):
                    return False
        return True

    def _enter(self, node: ir.Node, waiting: list[ir.Value | None]) -> bool:
        """Take in a node that treats channels apart."""
        if node in self.inside:
            return True
        self.inside.add(node)
        if _is_depthwise(node):
            if _channels(node) != self._channels:
                return False
            waiting += [node.inputs[0], node.outputs[0]]
            return True
        if node.op_type not in _CHANNELWISE or len(node.outputs) != 1:
            return False
        numbers = [array(v) for v in node.inputs if v is not None]
        if any(a is not None and a.size != 1 for a in numbers):
            return False
        waiting += [v for v in node.inputs if v is not None and constant(v) is None]
        waiting.append(node.outputs[0])
        return True

    def widen(self, model: Model, wide: int) -> None:
        """Give everything that has channels so many of them."""
        more = wide - self._channels
        for conv in self.makers:
            _pad(model, conv, 1, 0, more)
            _pad(model, conv, 2, 0, more)
        for conv in self.readers:
            _pad(model, conv, 1, 1, more)
        for conv in filter(_is_depthwise, list(self.inside)):
            _pad(model, conv, 1, 0, more)
            _pad(model, conv, 2, 0, more)
            conv.attributes["group"] = ir.AttrInt64("group", wide)
        for value in self._values:
            value.shape = None


def _pad(model: Model, conv: ir.Node, position: int, axis: int, more: int) -> None:
    """Add zeros to one axis of a convolution's weight or bias."""
    if position >= len(conv.inputs) or (value := conv.inputs[position]) is None:
        return
    numbers = np.asarray(array(value))
    widths = [(0, more if i == axis else 0) for i in range(numbers.ndim)]
    padded = edit.add_constant(model, edit.owner(conv), value.name or "wide", np.pad(numbers, widths))
    conv.replace_input_with(position, padded)
