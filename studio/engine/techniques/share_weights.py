"""Weight sharing: a layer's weights become numbers of entries in a small book of values.

w_i ≈ b[c_i] with b the 2^bits values that minimise Σ a_i (w_i − b[c_i])², found by Lloyd's iteration (one-dimensional
k-means); a_i is the mean square of what the weight is multiplied with where calibration data tell it, else 1. The
values need not lie evenly, so they follow a bell-shaped distribution better than integers do. Stored as
Gather(b, c), which every runtime unpacks to floats when it loads the model: the file is smaller, the arithmetic
and its memory stay as they are.

Source: Han, Mao, Dally 2016, *Deep Compression*, §3; Lloyd 1982, *Least Squares Quantization in PCM*.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit
from studio.engine.graph import Model, constant, copy, graphs, is_constant_node, raise_opset
from studio.engine.layers import LayerNode, Listing
from studio.engine.quantization.moments import CELLS, layer_moments
from studio.engine.quantization.promise import promise
from studio.engine.techniques.contract import Context
from studio.records.plan import Plan, Refusal
from studio.records.steps import Settings, ShareWeights, Step

Array: TypeAlias = npt.NDArray[Any]

_NARROW_OPSET = 21  # the first with 4-bit integers
_ITERATIONS = 60
_SAVES = 4  # times as many weights as entries: below that the book weighs too much


class Codebooks:
    """See the module."""

    settings: type[Settings] = ShareWeights

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`."""
        bits = _bits(step)
        chosen = set(step.layers)
        refusals = [
            Refusal(layer=n, reason=why)
            for n in step.layers
            if (why := _why_not(listing.nodes[n], bits, chosen))
        ]
        refused = {r.layer for r in refusals}
        words = {n: f"{bits}-bit numbers of {2**bits} shared values" for n in step.layers if n not in refused}
        drafted = _written(listing, list(words), bits, None) if words else None
        notes = [
            "The file shrinks; the runtime unpacks the weights when it loads them, so it gets no faster."
        ]
        if drafted is not None and drafted.opset > listing.model.opset:
            notes.append(
                f"The opset is raised from {listing.model.opset} to {drafted.opset} for 4-bit numbers."
            )
        del context
        return promise(listing, step, drafted, words, refusals, notes if words else ())

    def draft(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Drafting.draft`."""
        del context
        return _written(listing, [a.layer for a in plan.actions], _bits(plan.step), None)

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        return _written(listing, [a.layer for a in plan.actions], _bits(plan.step), context)


def _bits(step: Step) -> int:
    return cast("ShareWeights", step.settings).bits


def _why_not(layer: LayerNode, bits: int, chosen: Collection[str]) -> str:
    """Why a layer's weights cannot share values; '' when they can."""
    tensor = constant(layer.weight)
    if layer.quantized or tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return f"its weights are {layer.record.dtype}, not float32"
    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in layer.between):
        return "its weights pass through quantization already"
    if tensor.size < _SAVES * 2**bits:
        return f"it has only {tensor.size} weights: a book of {2**bits} values would take as much as is saved"
    others = [name for name in layer.record.shared_with if name not in chosen]
    if others:
        return f"its weights are also those of {others[0]}, which was not chosen"
    return ""


# ------------------------------------------------------------------ writing


def _written(listing: Listing, names: Sequence[str], bits: int, context: Context | None) -> Model:
    """A copy with the named layers' weights behind books; blank ones without a context."""
    model = copy(listing.model)
    if bits <= 4:
        model = raise_opset(model, _NARROW_OPSET)
    places = {
        (path, value.name): value
        for path, graph in graphs(model)
        for value in (
            *graph.initializers.values(),
            *(node.outputs[0] for node in graph if is_constant_node(node)),
        )
    }
    weighing = {} if context is None else _importance(listing, names, context)
    done: set[tuple[str, str | None]] = set()
    for number, name in enumerate(names):
        if context is not None:
            context.progress.tick(0.5 + 0.5 * number / len(names), f"{name}: {2**bits} shared values")
        for weight in listing.nodes[name].weights:
            place = _place(weight, listing.model)
            if place not in done and _fits(weight, bits):
                done.add(place)
                _write(model, places[place], bits, context is None, weighing.get(name))
        if context is not None:
            context.treated(model, name, f"{name}: {2**bits} shared values")
    edit.remove_dead(model)
    return model


def _fits(weight: ir.Value, bits: int) -> bool:
    tensor = constant(weight)
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size >= _SAVES * 2**bits


def _place(value: ir.Value, model: Model) -> tuple[str, str | None]:
    """Path of the graph that holds a constant, and its name."""
    home = value.graph
    return next((path for path, graph in graphs(model) if graph is home), ""), value.name


def _write(model: Model, value: ir.Value, bits: int, blank: bool, weighing: Array | None) -> None:
    """Let every user of a stored weight use the values that its numbers stand for."""
    tensor = constant(value)
    home = value.graph
    assert tensor is not None
    assert isinstance(home, ir.Graph)
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if blank:
        codes, book = np.zeros(shape, np.uint8), np.zeros(2**bits, np.float32)
    else:
        codes, book = shared(tensor.numpy(), bits, weighing)
    name = value.name or "weight"
    stored = codes.astype(ml_dtypes.uint4) if bits <= 4 else codes
    numbers = edit.add_constant(model, home, f"{name}_numbers", stored)
    values = edit.add_constant(model, home, f"{name}_values", book)
    whole = edit.make_node(
        model,
        "Cast",
        [numbers],
        {"to": int(ir.DataType.INT32)},
        name=f"{name}_widen",
        dtype=ir.DataType.INT32,
    )
    gather = edit.make_node(
        model, "Gather", [values, whole.outputs[0]], {"axis": 0}, name=f"{name}_shared", dtype=tensor.dtype
    )
    for made in (whole, gather):
        made.outputs[0].shape = ir.Shape(shape)
    maker = value.producer()
    if maker is not None:
        home.insert_after(maker, [whole, gather])
    elif len(home):
        home.insert_before(home[0], [whole, gather])
    edit.replace_uses(value, gather.outputs[0])


# ------------------------------------------------------------------ values


def _importance(listing: Listing, names: Sequence[str], context: Context) -> Mapping[str, Array]:
    """Σ x² of what each weight is multiplied with, in the shape of the weights, for layers where it is known."""
    data = context.calibration
    layers = {n: listing.nodes[n] for n in names}
    plain = {
        n: layer
        for n, layer in layers.items()
        if not layer.path and not layer.between and layer.node.op_type not in CELLS
    }
    if data is None or data.random or not plain:
        return {}
    moments = layer_moments(
        listing.model, [layer.node for layer in plain.values()], data.feeds(), context.progress.part(0.0, 0.5),
        total=data.runs(), threads=context.threads,
    )  # fmt: skip
    found = {}
    for name, layer in plain.items():
        known, tensor = moments.get(layer.record.key), constant(layer.weight)
        if known is None or tensor is None or layer.out_axis is None or layer.position != 1:
            continue
        shape = [int(d) for d in tensor.shape.numpy()]
        out = shape.pop(layer.out_axis)
        squares = np.diagonal(known, axis1=1, axis2=2)  # (groups, k)
        rows = np.repeat(squares, out // len(squares), axis=0).reshape(out, *shape)
        found[name] = np.moveaxis(rows, 0, layer.out_axis)
    return found


def shared(weights: Array, bits: int, weighing: Array | None = None) -> tuple[Array, Array]:
    """(numbers of entries in the shape of the weights, the 2^bits values) with the least weighed squared error.

    Args:
        weights: of any shape.
        bits: 1 to 8.
        weighing: how much each weight's error counts; None = all alike.

    Source: Lloyd 1982; sums over stretches of the sorted weights make an iteration as cheap as the book is short.
    """
    flat = np.asarray(weights, np.float64).reshape(-1)
    book = np.unique(flat)
    if len(book) > 2**bits:
        order = np.argsort(flat, kind="stable")
        ranked = flat[order]
        places = (np.arange(2**bits) + 0.5) / 2**bits
        even, crowded = np.linspace(ranked[0], ranked[-1], 2**bits), np.quantile(ranked, places)
        book = _lloyd(ranked, np.ones(len(flat)), (even + crowded) / 2)
        if weighing is not None:
            share = np.asarray(weighing, np.float64).reshape(-1)[order]
            # What calibration never fed still counts a little.
            book = _lloyd(ranked, share + max(float(share.mean()), 1e-30) * 1e-3, book)
    book = np.unique(book.astype(np.float32))
    codes = np.searchsorted((book[1:].astype(np.float64) + book[:-1]) / 2, flat).astype(np.uint8)
    padded = np.concatenate([book, np.full(2**bits - len(book), book[-1], np.float32)])
    return codes.reshape(weights.shape), padded


def _lloyd(ranked: Array, share: Array, book: Array) -> Array:
    """Better values for sorted weights whose errors count by their share, from a start."""
    mass, moment = (np.concatenate(([0.0], np.cumsum(v))) for v in (share, share * ranked))
    for _ in range(_ITERATIONS):
        edges = np.concatenate(([0], np.searchsorted(ranked, (book[1:] + book[:-1]) / 2), [len(ranked)]))
        weight, total = mass[edges[1:]] - mass[edges[:-1]], moment[edges[1:]] - moment[edges[:-1]]
        better = np.sort(np.where(weight > 0, total / np.where(weight > 0, weight, 1), book))
        if np.array_equal(better, book):
            break
        book = better
    return book
