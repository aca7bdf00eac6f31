"""What each site does to the model's answer by itself: the float model, with a switch at every site.

Equation: noise(site) = Σ (y − ŷ)² / Σ y² over the outputs, ŷ with that site alone on its grid and the biases of the layers
that read it corrected. Such noises add up, nearly, so they tell what leaving a site in float would gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit, execute
from studio.engine.graph import copy
from studio.engine.quantization.calibrate import Feed
from studio.engine.quantization.qdq import site_grid
from studio.engine.quantization.search import expose_scores, share_of_noise
from studio.engine.quantization.static import Workshop, counterpart

Array: TypeAlias = npt.NDArray[Any]


class Alone:
    """A float model whose sites can be put on grids one by one.

    Args:
        shop: the float model and its placement.
        sites: which get a switch.
        feeds: what to run on.
        threads: of the runtime.
    """

    def __init__(self, shop: Workshop, sites: Sequence[str], feeds: Sequence[Feed], threads: int = 0) -> None:
        self._shop, self._feeds = shop, feeds
        self._numbers = {name: number for number, name in enumerate(sites)}
        self._model = copy(shop.model)
        nodes = dict(zip(shop.model.graph, self._model.graph, strict=True))
        self._off: dict[str, Array] = {}
        for key, node in shop.layers.items():
            if node.op_type != "MatMul":
                self._open_bias(nodes[node], key)
        for name, number in self._numbers.items():
            self._switch(counterpart(shop.placed.sites[name].last, nodes, self._model), number)
        expose_scores(self._model)
        self._session = execute.session(self._model, threads=threads)
        self._wanted = [self._run(feed, self._off) for feed in feeds]

    def noise(self, on: Mapping[str, tuple[tuple[float, float], Mapping[str, Array]]]) -> float:
        """The share of noise in the outputs.

        Args:
            on: for each site that is put on a grid its range, and the mean error that it makes by the layer it reads.
        """
        fed = dict(self._off)
        for site, (bounds, errors) in on.items():
            grid = site_grid(self._shop.placed.sites[site], *bounds)
            number = self._numbers[site]
            fed[f"on_{number}"] = np.asarray(True)
            fed[f"scale_{number}"] = np.asarray(grid.dq_scale, np.float32)
            fed[f"zero_{number}"] = np.asarray(grid.dq_zero, np.uint8)
            for key, error in errors.items():
                fed[f"bias_{key}"] = (fed[f"bias_{key}"] - error).astype(np.float32)
        return share_of_noise(self._wanted, [self._run(feed, fed) for feed in self._feeds])

    def _run(self, feed: Feed, extra: Mapping[str, Array]) -> list[Array]:
        return execute.run(self._session, {**feed, **extra})

    def _open_bias(self, node: ir.Node, key: str) -> None:
        """Make a layer's bias an input of the model."""
        bias = self._shop.bias(key)
        if bias is None:
            bias = np.zeros(self._shop.out_channels(key), np.float32)
        value = self._input(f"bias_{key}", ir.DataType.FLOAT, bias.shape)
        self._off[f"bias_{key}"] = bias
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, value)

    def _switch(self, value: ir.Value, number: int) -> None:
        scale = self._input(f"scale_{number}", ir.DataType.FLOAT)
        zero = self._input(f"zero_{number}", ir.DataType.UINT8)
        on = self._input(f"on_{number}", ir.DataType.BOOL)
        self._off[f"scale_{number}"] = np.asarray(1.0, np.float32)
        self._off[f"zero_{number}"] = np.asarray(0, np.uint8)
        self._off[f"on_{number}"] = np.asarray(False)
        codes = self._node("QuantizeLinear", [value, scale, zero], ir.DataType.UINT8)
        rough = self._node("DequantizeLinear", [codes.outputs[0], scale, zero])
        chosen = self._node("Where", [on, rough.outputs[0], value])
        edit.replace_uses(value, chosen.outputs[0], keep=(codes, chosen))
        producer = value.producer()
        graph = self._model.graph
        if producer is None:
            graph.insert_before(graph[0], [codes, rough, chosen])
        else:
            graph.insert_after(producer, [codes, rough, chosen])

    def _node(self, op: str, inputs: list[ir.Value | None], kind: ir.DataType = ir.DataType.FLOAT) -> ir.Node:
        return edit.make_node(self._model, op, inputs, name="alone", dtype=kind)

    def _input(self, name: str, kind: ir.DataType, shape: tuple[int, ...] = ()) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(kind))
        self._model.graph.inputs.append(value)
        return value
