"""Small first and last layers, which are better left in float.

What comes into a model and what goes out of it are floats. A small layer there gains nothing on integers: the
conversion costs more than the product, and its rounding is all noise. A first convolution over the three channels of
an image is the common case: onnxruntime's integer kernel is slower on its short rows than the float one. So it is with a
depthwise convolution behind it, whose input then needs no grid at all: mostly the one that costs the answer most.

Source: the habit of Zhou et al. 2016, "DoReFa-Net", §2.7, held to layers whose size and work do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from studio.engine.graph import constant, node_key
from studio.engine.quantization.simplify import sole_consumer
from studio.engine.quantization.static import Workshop

# Shares of all weights that first and last layers may have, and of the work that last ones may have.
_WEIGHTS, _WORK = 0.02, 0.01
# Rows of a first convolution up to this length are no faster on integers.
_SHORT = 64


def small_ends(shop: Workshop, work: Mapping[str, int]) -> dict[str, str]:
    """First and last layers to be left in float, with the reason in words.

    Args:
        shop: the layers that could run on integers.
        work: multiplications by layer.
    """
    total = sum(work.values())
    sizes = {key: _size(node) for key, node in shop.layers.items()}
    found: dict[str, str] = {}
    for key, node in shop.layers.items():
        if sizes[key] > _WEIGHTS * sum(sizes.values()):
            continue
        if node.op_type == "Conv" and _reads_input(node) and _row(node) <= _SHORT:
            row = _row(node)
            found[key] = f"it reads the model's input, {row} numbers at a time: integers would be slower"
            for behind in _depthwise_behind(node, shop):
                found[behind] = (
                    "depthwise behind the first layer: integers would be no faster, only less exact"
                )
        elif work[key] <= _WORK * total and _writes_output(node, shop):
            found[key] = "it is small and makes the model's output: integers would only add noise"
    return found


def _size(node: ir.Node) -> int:
    weight = constant(node.inputs[1])
    return 0 if weight is None else int(weight.size)


def _row(node: ir.Node) -> int:
    """How many numbers one output of a convolution is made of."""
    weight = constant(node.inputs[1])
    assert weight is not None
    return int(np.prod(weight.shape.numpy()[1:]))


def _depthwise_behind(node: ir.Node, shop: Workshop) -> list[str]:
    """The depthwise convolutions that follow a layer, each the only reader of the one before."""
    found: list[str] = []
    while True:
        readers = _readers(node, shop)
        if len(readers) != 1:
            return found
        node = readers[0]
        weight = constant(node.inputs[1])
        if node.op_type != "Conv" or weight is None or weight.shape[1] != 1 or _row(node) > _SHORT:
            return found
        found.append(node_key(node))


def _readers(node: ir.Node, shop: Workshop) -> list[ir.Node]:
    """The layers that read what a layer makes, whatever lies between."""
    found: dict[ir.Node, None] = {}
    waiting, seen = [node], {node}
    while waiting:
        for value in waiting.pop().outputs:
            for user, _ in value.uses():
                if node_key(user) in shop.layers:
                    found[user] = None
                elif user not in seen:
                    seen.add(user)
                    waiting.append(user)
    return list(found)


def _reads_input(node: ir.Node) -> bool:
    """Whether nothing but elementwise arithmetic lies between the model's input and a layer."""
    value = node.inputs[0]
    while value is not None and not value.is_graph_input():
        producer = value.producer()
        if producer is None or producer.op_type not in {
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Transpose",
            "Pad",
            "Cast",
        }:
            return False
        computed = [v for v in producer.inputs if v is not None and constant(v) is None]
        if len(computed) != 1:
            return False
        value = computed[0]
    return value is not None


def _writes_output(node: ir.Node, shop: Workshop) -> bool:
    """Whether no other layer comes between a layer and the model's output."""
    value = node.outputs[0]
    while not value.is_graph_output():
        user = sole_consumer(value)
        if user is None or node_key(user) in shop.layers or not user.outputs:
            return False
        value = user.outputs[0]
    return True
