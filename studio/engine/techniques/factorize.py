"""Low-rank factorisation: a weight matrix becomes the product of two thin ones.

A layer computes y = x·W with W (in, out). With M the metric in which errors of y are judged,

    min_{rank r} E‖(y − ŷ)‖²_M   is solved by   ŷ = ȳ + (y − ȳ)·P·R,

P = L·V_r, R = V_rᵀ·L⁻¹, where M = L·Lᵀ and V_r are the leading eigenvectors of LᵀC L, C being the covariance
of y. So W becomes W·P (in, r) and R (r, out), the mean moves into the bias, and the error is the sum of the
eigenvalues that were left out. With M the Fisher information of y that error is twice the KL divergence
of the model's answer, the same unit in every layer, which lets one budget be shared out over all of them.

Without data C = WᵀW and M = 1: the plain singular value decomposition. A convolution is such a matrix
with in = C·kh·kw; it becomes a k×k convolution with r filters and a 1×1 convolution, or takes another form
(`conv_forms`).

Source: Eckart & Young 1936; Zhang, Zou, He, Sun 2016, *Accelerating Very Deep Convolutional Networks*,
§3.1 (response reconstruction); Hsu et al. 2022, *Language Model Compression with Weighted Low-Rank
Factorization* (Fisher weights).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from studio.engine import edit
from studio.engine.cost import macs, model_cost
from studio.engine.graph import Model, Shapes, constant, copy, graphs, holder
from studio.engine.layers import LayerNode, Listing
from studio.engine.techniques.contract import Context
from studio.engine.techniques.conv_forms import Form, between, cut, factor_shapes
from studio.engine.techniques.conv_forms import attributes as form_attributes
from studio.engine.techniques.spectra import Spectrum, matrix_of, spectra
from studio.records.model import Cost
from studio.records.plan import Action, Plan, Refusal
from studio.records.steps import Factorize, Settings, Step

Array: TypeAlias = npt.NDArray[Any]

_FLOATS = frozenset({"float32", "float16", "float64", "bfloat16"})


class LowRank:
    """See the module."""

    settings: type[Settings] = Factorize

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`; refuses layers that have no matrix and those that are better left whole."""
        settings = _settings(step)
        refusals = [Refusal(layer=n, reason=why) for n in step.layers if (why := why_not(listing, n))]
        refused = {r.layer for r in refusals}
        chosen = [n for n in step.layers if n not in refused]
        found = _spectra(listing, chosen, settings, context)
        ranks = choose_ranks(found, settings)
        refusals += [_left_whole(found[n], n) for n in chosen if n not in ranks]
        draft, shapes = rebuild(listing, ranks, found, None)
        return Plan(
            step=step,
            actions=tuple(_action(listing, n, r, found[n], draft, shapes) for n, r in ranks.items()),
            refusals=tuple(refusals),
            before=listing.cost,
            after=model_cost(draft, shapes) if ranks else listing.cost,
            notes=_notes(found, settings, context),
        )

    def draft(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Drafting.draft`."""
        found = _spectra(listing, [a.layer for a in plan.actions], _settings(plan.step), context)
        return rebuild(listing, _planned(plan), found, None)[0]

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        chosen = [n for n in plan.step.layers if not why_not(listing, n)]
        found = _spectra(listing, chosen, _settings(plan.step), context)
        return rebuild(listing, _planned(plan), found, context)[0]


def _settings(step: Step) -> Factorize:
    assert isinstance(step.settings, Factorize)
    return step.settings


def _planned(plan: Plan) -> dict[str, int]:
    """The ranks that a plan promises."""
    return {a.layer: int(a.what.split()[1]) for a in plan.actions}


def why_not(listing: Listing, name: str) -> str:
    """Why a layer cannot be factorised; '' when it can."""
    layer = listing.nodes[name]
    op, shape = layer.node.op_type, layer.record.weight_shape
    if op not in ("Conv", "Gemm", "MatMul"):
        return f"{op} weights are no matrix between an input and an output"
    if layer.quantized or layer.record.dtype not in _FLOATS:
        return f"its weights are {layer.record.dtype}; factorise before quantizing"
    if any(n.op_type != "Identity" for n in layer.between) or layer.perm is not None:
        return f"its weights pass through {layer.between[0].op_type} first"
    if layer.position != 1:
        return "its weights are the left operand"
    if layer.record.shared_with:
        return f"its weights are shared with {layer.record.shared_with[0]}"
    if op == "Conv" and _attribute(layer.node, "group", 1) != 1:
        return "a grouped convolution is already a product of small matrices"
    if op == "Gemm" and _attribute(layer.node, "transA", 0):
        return "its input is transposed"
    if any(layer.node.attributes[n].value != 1 for n in ("alpha", "beta") if n in layer.node.attributes):
        return "its product is scaled"
    if op == "MatMul" and len(shape) != 2:
        return "its weights are a stack of matrices"
    return ""


def _attribute(node: ir.Node, name: str, default: int) -> int:
    attr = node.attributes.get(name)
    return default if attr is None else int(attr.value)


def _spectra(
    listing: Listing, names: Sequence[str], settings: Factorize, context: Context
) -> Mapping[str, Spectrum]:
    """Spectra of the chosen layers; kept in the context's memo."""
    data = context.calibration if settings.data_aware else None
    if data is not None and data.random:
        data = None
    key = ("factorize", settings.form, data is not None)
    kept = context.memo.setdefault(key, {})
    assert isinstance(kept, dict)
    missing = [n for n in names if n not in kept]
    if missing:
        layers = {n: listing.nodes[n] for n in missing}
        kept.update(
            spectra(
                listing,
                layers,
                data,
                context.progress.part(0, 0.7),
                context.seed,
                context.threads,
                settings.form,
            )
        )
    return {n: kept[n] for n in names}


# ------------------------------------------------------------------ the budget


def choose_ranks(found: Mapping[str, Spectrum], settings: Factorize) -> dict[str, int]:
    """A rank for every layer that gets smaller by it.

    'even': the same share of parameters everywhere. 'sensitive': the ranks that minimise the summed
    error at the budget; layers for which a rank near break-even would be needed stay whole.
    """
    if settings.spread == "even":
        even = {n: _affordable(s, settings.params * s.size) for n, s in found.items()}
        return {n: r for n, r in even.items() if r < found[n].break_even}
    budget = settings.params * sum(s.size for s in found.values())
    low, high = -80.0, 80.0  # log of the price of one parameter
    for _ in range(60):
        price = math.exp((low + high) / 2)
        used = sum(_used(s, _best_rank(s, price)) for s in found.values())
        low, high = ((low + high) / 2, high) if used > budget else (low, (low + high) / 2)
    best = {n: _best_rank(s, math.exp(high)) for n, s in found.items()}
    return {n: r for n, r in best.items() if r is not None}


def _affordable(spectrum: Spectrum, weights: float) -> int:
    """The largest rank of so many weights that answers better than the one below it; at least the smallest such."""
    better = 1 + np.flatnonzero(np.diff(spectrum.tail) < 0)
    if not len(better):
        return 1
    fitting = better[spectrum.sizes[better] <= weights]
    return int(fitting[-1] if len(fitting) else better[0])


def _best_rank(spectrum: Spectrum, price: float) -> int | None:
    """The rank with the least error + price·parameters; None where the whole matrix is better."""
    cost = spectrum.tail + price * spectrum.sizes
    rank = 1 + int(np.argmin(cost[1:]))
    if rank >= spectrum.break_even or cost[rank] >= price * spectrum.size:
        return None
    return rank


def _used(spectrum: Spectrum, rank: int | None) -> int:
    return spectrum.size if rank is None else int(spectrum.sizes[rank])


def _left_whole(spectrum: Spectrum, name: str) -> Refusal:
    edge = spectrum.break_even
    return Refusal(
        layer=name,
        reason=f"left whole: below rank {edge} it would save, but the other layers can better spare it",
        hint="A smaller share of parameters, or the same share everywhere, factorises it too.",
    )


def _notes(found: Mapping[str, Spectrum], settings: Factorize, context: Context) -> tuple[str, ...]:
    notes = []
    if settings.data_aware and (context.calibration is None or context.calibration.random):
        notes.append(
            "Without calibration data the largest directions of the weights are kept, not those that matter."
        )
    blind = [n for n, s in found.items() if settings.data_aware and not s.measured]
    if blind and len(blind) < len(found):
        notes.append(f"{len(blind)} layers inside control flow were judged by their weights alone.")
    return tuple(notes)


def _action(
    listing: Listing, name: str, rank: int, spectrum: Spectrum, draft: Model, shapes: Shapes
) -> Action:
    layer = listing.nodes[name]
    before = layer.record.cost
    nodes = {(path, node.outputs[0].name): node for path, graph in graphs(draft) for node in graph}
    chain = [nodes[layer.path, layer.node.outputs[0].name]]
    inside: list[ir.Value] = []
    for _ in _chain_shapes(layer, spectrum.form, rank)[1:]:
        value = chain[0].inputs[0]
        maker = value.producer() if value is not None else None
        assert value is not None
        assert maker is not None
        chain.insert(0, maker)
        inside.append(value)
    added = spectrum.columns if spectrum.adds_bias else 0
    fewer = spectrum.size - int(spectrum.sizes[rank]) - added
    item = before.bytes // max(1, before.parameters)
    counted = [macs(node, shapes) for node in chain]
    made = [_values(value, shapes) for value in inside]
    whole = before.activation_bytes
    after = Cost(
        parameters=before.parameters - fewer,
        bytes=before.bytes - fewer * item,
        macs=None if None in counted else sum(c for c in counted if c is not None),
        activation_bytes=None
        if whole is None or None in made
        else whole + sum(m for m in made if m is not None) * item,
    )
    return Action(layer=name, what=f"rank {rank} of {len(spectrum.tail) - 1}", before=before, after=after)


def _values(value: ir.Value, shapes: Shapes) -> int | None:
    """How many numbers a value holds; None where that is not known."""
    dims = shapes.of(value)
    sizes = [] if dims is None else [d for d in dims if isinstance(d, int)]
    return math.prod(sizes) if dims is not None and len(sizes) == len(dims) else None


# ------------------------------------------------------------------ the rebuilt graph


def rebuild(
    listing: Listing, ranks: Mapping[str, int], found: Mapping[str, Spectrum], context: Context | None
) -> tuple[Model, Shapes]:
    """A copy with the chosen layers in two, and its shapes; weights are unset zeros without a context."""
    model = copy(listing.model)
    nodes = {(path, node.outputs[0].name): node for path, graph in graphs(model) for node in graph}
    dims, types = dict(listing.shapes.dims_by_name), dict(listing.shapes.types_by_name)
    for done, (name, rank) in enumerate(ranks.items()):
        layer = listing.nodes[name]
        if context is not None:
            context.progress.tick(0.7 + 0.3 * done / len(ranks), f"{name}: rank {rank}")
        node = nodes[layer.path, layer.node.outputs[0].name]
        inside = _split(model, node, layer, rank, found[name], draft=context is None)
        for value, known in zip(inside, _dims_between(listing, layer, rank, found[name].form), strict=False):
            dims[value.name or ""] = known
        for value in inside:
            types[value.name or ""] = listing.shapes.dtype(layer.node.outputs[0]) or layer.record.dtype
        if context is not None:
            context.treated(model, name, f"{name}: rank {rank}")
    shapes = replace(listing.shapes, dims={}, types={}, dims_by_name=dims, types_by_name=types)
    for name in ranks:  # what changed its shape under the same name
        value = listing.nodes[name].weight
        dims.pop(value.name or "", None)
    return model, _with_constants(model, shapes, dims)


def _dims_between(
    listing: Listing, layer: LayerNode, rank: int, form: Form
) -> tuple[tuple[int | str, ...], ...]:
    """The shapes of the values between the nodes; none where they are not known."""
    out, x = listing.shapes.of(layer.node.outputs[0]), listing.shapes.of(layer.node.inputs[0])
    if out is None or x is None:
        return ()
    if layer.node.op_type != "Conv":
        return ((*out[:-1], rank),)
    if form == "channels":
        return ((out[0], rank, *out[2:]),)
    return between(form, x, out, layer.record.weight_shape, rank)


def _with_constants(model: Model, shapes: Shapes, dims: dict[str, Any]) -> Shapes:
    for _path, graph in graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None and value.name:
                dims[value.name] = tuple(value.const_value.shape.numpy())
        for node in graph:
            if node.op_type == "Constant" and (tensor := constant(node.outputs[0])) is not None:
                dims[node.outputs[0].name or ""] = tuple(tensor.shape.numpy())
    return replace(shapes, dims_by_name=dims)


def _split(
    model: Model, node: ir.Node, layer: LayerNode, rank: int, spectrum: Spectrum, draft: bool
) -> list[ir.Value]:
    """Put nodes with all factors but the last before `node`, which gets the last; the values between them."""
    tensor = constant(layer.weight)
    assert tensor is not None
    dtype = tensor.dtype.numpy()
    shapes = _chain_shapes(layer, spectrum.form, rank)
    attributes = _chain_attributes(layer, spectrum.form, rank)
    offset = None
    if draft:
        weights = [_zeros(s, tensor.dtype) for s in shapes]
    else:
        parts, offset = _chain_weights(layer, spectrum, rank)
        weights = [ir.tensor(np.ascontiguousarray(p).astype(dtype)) for p in parts]
    base = node.name or node.outputs[0].name or node.op_type
    graph = edit.owner(node)
    inside: list[ir.Value] = []
    for own, factor in zip(attributes[:-1], weights[:-1], strict=True):
        added = edit.add_constant(model, graph, f"{base}_low_weight", factor)
        inputs = [node.inputs[0], added]
        new = edit.make_node(model, node.op_type, inputs, own, name=f"{base}_low", dtype=tensor.dtype)
        graph.insert_before(node, new)
        node.replace_input_with(0, new.outputs[0])
        inside.append(new.outputs[0])
    weight = holder(node.inputs[1])
    assert weight is not None
    edit.set_constant(weight, weights[-1])
    if node.op_type == "Conv":
        for name in ("auto_pad", "dilations", "pads", "strides", "kernel_shape"):
            node.attributes.pop(name, None)
        for name, value in attributes[-1].items():
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
    if spectrum.adds_bias or offset is not None:
        _move_mean(model, node, spectrum, offset, dtype)
    return inside


def _chain_shapes(layer: LayerNode, form: Form, rank: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of all weights, in the order in which they are applied."""
    tensor = constant(layer.weight)
    assert tensor is not None
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if form != "channels":
        return factor_shapes(form, shape, rank)
    if layer.node.op_type == "Conv":
        return (rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))
    if _attribute(layer.node, "transB", 0):
        return (rank, shape[1]), (shape[0], rank)
    return (shape[0], rank), (rank, shape[1])


def _chain_attributes(layer: LayerNode, form: Form, rank: int) -> tuple[dict[str, Any], ...]:
    """Attributes of all nodes; the last ones are those that a convolution gets instead of its own."""
    shape = layer.record.weight_shape
    if form != "channels":
        return form_attributes(form, layer.node, shape, rank)
    own = {n: a.value for n, a in layer.node.attributes.items() if n not in ("alpha", "beta")}
    return own, {"kernel_shape": [1] * (len(shape) - 2)}


def _chain_weights(layer: LayerNode, spectrum: Spectrum, rank: int) -> tuple[list[Array], Array | None]:
    """All weights, and what the bias must gain."""
    if spectrum.taken_apart is not None:
        return list(cut(spectrum.form, spectrum.taken_apart, layer.record.weight_shape, rank)), None
    left, right, offset = spectrum.factors(rank, matrix_of(layer))
    transposed = layer.node.op_type == "Conv" or _attribute(layer.node, "transB", 0)
    shapes = _chain_shapes(layer, "channels", rank)
    return [(m.T if transposed else m).reshape(s) for m, s in zip((left, right), shapes, strict=True)], offset


def _zeros(shape: tuple[int, ...], dtype: ir.DataType) -> ir.TensorProtocol:
    return ir.LazyTensor(
        lambda: ir.tensor(np.zeros(shape, dtype.numpy())), dtype=dtype, shape=ir.Shape(shape)
    )


def _move_mean(model: Model, node: ir.Node, spectrum: Spectrum, offset: Array | None, dtype: Any) -> None:
    """Add what the mean loses to the bias, or give the node a bias."""
    if spectrum.adds_bias:
        values = np.zeros(spectrum.columns, dtype) if offset is None else offset.astype(dtype)
        name = f"{node.name or node.outputs[0].name}_bias"
        bias = edit.add_constant(model, edit.owner(node), name, values)
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, bias)
    elif spectrum.bias and offset is not None:
        held = next(
            h for n in (node, *node.outputs[0].consumers()) for v in n.inputs
            if (h := holder(v)) is not None and h.name == spectrum.bias
        )  # fmt: skip
        tensor = constant(held)
        assert tensor is not None
        edit.set_constant(held, (tensor.numpy().astype(np.float64) + offset).astype(tensor.numpy().dtype))
