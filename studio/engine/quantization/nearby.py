"""What a site's grid does to the values computed from it next: the error that a range is chosen by.

Each site is put on its grid alone, and every node that reads it computes once more from the rough values. Since all sites
are tried side by side in one graph whose scales are fed, a range for every site costs one run of the model.

Equation: loss(site) = Σ over readers of mean over channels of min(1, Var(ŷ − y) / Var(y)), y what the reader computes.
By channel, since whatever follows looks at every channel alike; without the mean error where a bias makes up for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit, execute
from studio.engine.graph import constant, copy, node_key
from studio.engine.quantization.calibrate import Feed
from studio.engine.quantization.placement import LAYERS, MOVES, data_inputs, site_of
from studio.engine.quantization.qdq import LayerWeights, site_grid
from studio.engine.quantization.static import Workshop, counterpart

Array: TypeAlias = npt.NDArray[Any]
Ranges: TypeAlias = Mapping[str, tuple[float, float]]

# Variance below this share of the mean square is no signal.
_STEADY = 1e-4


@dataclass
class Reading:
    """How one node computes from a site, by output channel.

    Attributes:
        error / square: mean and mean square of ŷ − y.
        mean / power: of y.
    """

    error: Array
    square: Array
    mean: Array
    power: Array

    def loss(self, *, corrected: bool) -> float:
        """The share of noise, 0 to 1; `corrected`: a bias takes away the mean error."""
        noise = self.square - (np.square(self.error) if corrected else 0.0)
        signal = np.maximum(self.power - np.square(self.mean), _STEADY * self.power)
        return float(np.minimum(noise / np.maximum(signal, 1e-20), 1.0).mean())


class Nearby:
    """A model in which every site can be put on any grid by itself.

    Args:
        shop: the float model and its placement.
        weights: integers that the layers compute with; what is missing stays float.
        threads: of the runtime.
    """

    def __init__(self, shop: Workshop, weights: Mapping[str, LayerWeights], threads: int = 0) -> None:
        self._shop = shop
        self._weights = weights
        self._model = copy(shop.model)
        nodes = dict(zip(shop.model.graph, self._model.graph, strict=True))
        integer = set(shop.placed.nodes)
        self._sites: list[str] = []
        self._found: list[tuple[str, str, tuple[str, ...]]] = []
        results: list[ir.Value] = []
        for name, site in shop.placed.sites.items():
            readers = {n: None for n, _ in site.last.uses() if n in integer and n.op_type not in MOVES}
            readers = {n: None for n in readers if site.last in data_inputs(n)}
            if not readers:
                continue
            self._sites.append(name)
            source = counterpart(site.last, nodes, self._model)
            rough = self._rough(name, source)
            for reader in readers:
                found = self._watch(nodes[reader], node_key(reader), source, rough)
                self._found.append((name, node_key(reader), tuple(v.name or "" for v in found)))
                results.extend(found)
        self._model.graph.outputs.clear()
        self._model.graph.outputs.extend(results)
        edit.remove_dead(self._model)
        self._session = execute.session(self._model, threads=threads)

    def measure(self, ranges: Ranges, feeds: Sequence[Feed]) -> dict[tuple[str, str], Reading]:
        """Readings by (site, key of the reader) with every site on the grid of its range."""
        grids: dict[str, Array] = {}
        for number, name in enumerate(self._sites):
            grid = site_grid(self._shop.placed.sites[name], *ranges[name])
            grids[f"scale_{number}"] = np.asarray(grid.dq_scale, np.float32)
            grids[f"zero_{number}"] = np.asarray(grid.dq_zero, np.uint8)
        names = [name for _, _, group in self._found for name in group]
        sums: list[Array] = []
        for feed in feeds:
            got = [np.asarray(a, np.float64) for a in execute.run(self._session, {**feed, **grids}, names)]
            sums = got if not sums else [a + b for a, b in zip(sums, got, strict=True)]
        return {
            (site, reader): Reading(*(a.ravel() / len(feeds) for a in sums[4 * i : 4 * i + 4]))
            for i, (site, reader, _) in enumerate(self._found)
        }

    def losses(self, readings: Mapping[tuple[str, str], Reading]) -> dict[str, float]:
        """The loss by site."""
        found: dict[str, float] = {}
        for (site, reader), reading in readings.items():
            found[site] = found.get(site, 0.0) + reading.loss(corrected=self._biased(reader))
        return found

    def errors(self, readings: Mapping[tuple[str, str], Reading]) -> dict[str, dict[str, Array]]:
        """The mean error by output channel, by site and by the layer with a bias that reads it."""
        found: dict[str, dict[str, Array]] = {}
        for (site, reader), reading in readings.items():
            if self._biased(reader):
                found.setdefault(site, {})[reader] = reading.error
        return found

    def _biased(self, reader: str) -> bool:
        layer = self._shop.layers.get(reader)
        return layer is not None and layer.op_type != "MatMul"

    def _rough(self, name: str, source: ir.Value) -> ir.Value:
        number = self._sites.index(name)
        scale = ir.Value(name=f"scale_{number}", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT))
        zero = ir.Value(name=f"zero_{number}", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.UINT8))
        self._model.graph.inputs.extend([scale, zero])
        codes = self._add("QuantizeLinear", [source, scale, zero], {}, ir.DataType.UINT8)
        return self._add("DequantizeLinear", [codes, scale, zero], {})

    def _watch(self, node: ir.Node, key: str, source: ir.Value, rough: ir.Value) -> list[ir.Value]:
        """Outputs: mean and mean square of the error, and of the true values, by channel."""
        inputs = [rough if v is source else v for v in node.inputs]
        if key in self._weights:
            inputs[1] = edit.add_constant(self._model, self._model.graph, "nearby", self._weights[key].real())
        wanted, result = node.outputs[0], self._again(node, inputs)
        behind = site_of(wanted).first
        if behind is not wanted and node.op_type not in LAYERS:
            activation = behind.producer()
            assert activation is not None
            wanted, result = behind, self._again(activation, [result, *activation.inputs[1:]])
        axes = self._axes(node)
        error = self._add("Sub", [result, wanted], {})
        found = []
        for value in (error, wanted):
            found.append(self._mean(value, axes))
            found.append(self._mean(self._add("Mul", [value, value], {}), axes))
        return found

    def _axes(self, node: ir.Node) -> list[int]:
        """All but the channels'."""
        weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
        dims = self._shop.shapes.of(node.outputs[0])
        rank = len(weight.shape) if weight is not None else len(dims) if dims else 4
        if node.op_type in {"MatMul", "Gemm"} or rank < 3:
            return list(range(rank - 1))
        return [0, *range(2, rank)]

    def _mean(self, value: ir.Value, axes: list[int]) -> ir.Value:
        return self._add("ReduceMean", [value], {"axes": axes, "keepdims": 0}) if axes else value

    def _again(self, node: ir.Node, inputs: list[ir.Value | None]) -> ir.Value:
        return self._add(
            node.op_type, inputs, {key: attribute.value for key, attribute in node.attributes.items()}
        )

    def _add(
        self,
        op: str,
        inputs: list[ir.Value | None],
        attributes: dict[str, Any],
        kind: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        node = edit.make_node(self._model, op, inputs, attributes, name="nearby", dtype=kind)
        self._model.graph.append(node)
        return node.outputs[0]
