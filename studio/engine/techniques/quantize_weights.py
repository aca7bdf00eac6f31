"""Weight-only quantization: integers in blocks on disk, floats in the arithmetic.

w ≈ s_b (q − z_b) with one scale s_b (and zero point z_b) for every block b of weights along the inputs. Scales are
searched, and with calibration data every rounding error is made up for by the weights rounded after it.

Source: ONNX DequantizeLinear-21 (blocked); onnxruntime, ContribOperators.md, MatMulNBits, GatherBlockQuantized;
Frantar et al. 2023, "GPTQ".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import onnx_ir as ir

from studio.base.progress import Progress
from studio.engine.dataset import Dataset, open_for
from studio.engine.graph import Model, constant, node_key, real_inputs
from studio.engine.layers import LayerNode, Listing
from studio.engine.quantization import storage, weight_only
from studio.engine.quantization.blocks import Blocks
from studio.engine.quantization.grids import sqnr_db
from studio.engine.quantization.invented import invent, table_inputs
from studio.engine.quantization.moments import CELLS, layer_moments
from studio.engine.quantization.promise import promise
from studio.engine.quantization.scaling import Scaled, scale_inputs
from studio.engine.quantization.sequential import InOrder, Samples
from studio.engine.quantization.weight_only import Array, Target
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.plan import Plan, Refusal
from studio.records.steps import QuantizeWeights, Settings, Step

_AUTO = "The automatic form takes what runs."
# Samples that are held in memory at most, and how many are made up for each of them.
_HELD, _COPIES = 128, 3
# Samples of random tokens where there are none.
_MADE_UP = 32
# Rows with less than so large a share of the mean squared gradient have none.
_DEAD = 1e-9


class WeightOnly:
    """See the module."""

    settings: type[Settings] = QuantizeWeights
    treats_stored = True

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`."""
        settings = cast("QuantizeWeights", step.settings)
        refusals: list[Refusal] = []
        words: dict[str, str] = {}
        for name in step.layers:
            reason, hint = _why_not(listing.nodes[name]), ""
            if not reason:
                reason, hint = _no_such_grid(settings) or _no_such_form(listing.nodes[name], settings)
            if reason:
                refusals.append(Refusal(layer=name, reason=reason, hint=hint))
            else:
                words[name] = weight_only.describe(listing.nodes[name].node, settings)
        if not words:
            return promise(listing, step, None, {}, refusals)
        drafted = _write(listing.model, listing, settings, list(words), None, Context())
        return promise(listing, step, drafted, words, refusals, _notes(listing, settings, drafted, context))

    def draft(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Drafting.draft`."""
        del context
        settings = cast("QuantizeWeights", plan.step.settings)
        names = [a.layer for a in plan.actions]
        return _write(listing.model, listing, settings, names, None, Context())

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        settings = cast("QuantizeWeights", plan.step.settings)
        names = [a.layer for a in plan.actions]
        scaled = _scaled(listing, names, settings, context)
        if settings.preset == "careful" and context.calibration is not None:
            ready = _in_order(scaled, listing, settings, names, context)
            inside = {n.path for name in names if (n := listing.nodes[name]).path}
            moments = {k: m for k, m in scaled.moments.items() if any(k.startswith(f"{p}/") for p in inside)}
            return _write(scaled.model, listing, settings, names, moments, context, ready)
        return _write(scaled.model, listing, settings, names, scaled.moments, context)


def _no_such_grid(settings: QuantizeWeights) -> tuple[str, str] | None:
    """Why the asked grids do not exist, and what to do; None where they do."""
    if settings.symmetric and settings.zeros == "float":
        return "a symmetric grid has no zero points that could be floats", "Switch Symmetric off."
    if settings.symmetric and settings.solver == "hqq":
        return "HQQ looks for zero points, and a symmetric grid has none", "Switch Symmetric off."
    if settings.zeros == "float" and settings.bits == 8:
        return "onnxruntime takes float zero points of up to 4 bits only", "With 8 bits integers do as well."
    return None


def _no_such_form(layer: LayerNode, settings: QuantizeWeights) -> tuple[str, str]:
    """Why the asked form does not exist for a matrix product with so many bits, and what to do; empty where it does."""
    if storage.matrix_view(layer.node, 1) is None:
        return "", ""
    if settings.form == "qdq" and settings.bits < 4:
        return f"onnxruntime runs no DequantizeLinear in blocks on {settings.bits} bits", _AUTO
    if settings.form == "qdq" and settings.zeros == "float":
        return "the zero points of a DequantizeLinear are integers", _AUTO
    if settings.form == "matmulnbits" and settings.bits == 3:
        return "onnxruntime has no MatMulNBits for 3 bits", _AUTO
    return "", ""


def _why_not(layer: LayerNode) -> str:
    """Why a layer's weights cannot be stored as integers; '' when they can."""
    if layer.quantized:
        return "its weights are integers already"
    tensor = constant(layer.weight)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return f"its weights are {layer.record.dtype}, not float32"
    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in layer.between):
        return "its weights pass through quantization already"
    if tensor.size < weight_only.SMALLEST:
        return f"it has only {tensor.size} weights: scales would take as much as is saved"
    return ""


def _notes(listing: Listing, settings: QuantizeWeights, drafted: Model, context: Context) -> list[str]:
    notes = []
    if any(node.op_type == "MatMulNBits" for node in drafted.graph):
        notes.append(
            "Products on packed weights are faster than float ones in some models and slower in others, so the result is "
            "timed against the original; the unpacked form is always as fast as float."
        )
        if settings.zeros == "float":
            notes.append(
                "With float zero points onnxruntime unpacks the weights in every run: a half to a third of the speed."
            )
    if drafted.opset > listing.model.opset:
        notes.append(
            f"The opset is raised from {listing.model.opset} to {drafted.opset}: its operators and types need it."
        )
    if context.calibration is None and settings.preset == "careful":
        notes.append("Careful needs calibration data: without it the weights are rounded as in Fast.")
    elif context.calibration is None and settings.bits < 8:
        made_up = _made_up(listing, context.seed) is not None
        notes.append(
            "Without calibration data the rounding suits random tokens; real samples would make it better."
            if made_up
            else "With calibration data the rounding would be much better."
        )
    return notes


def _moments(
    listing: Listing, names: list[str], settings: QuantizeWeights, context: Context, progress: Progress
) -> Mapping[str, Array]:
    """Second moments of what the layers read, also of made-up tokens; none without either."""
    data = context.calibration
    if data is None and settings.bits < 8:
        data = _made_up(listing, context.seed)
    if data is None:
        return {}
    nodes = [listing.nodes[name].node for name in names]
    key = ("moments", id(context.calibration), tuple(id(n) for n in nodes))
    if key not in context.memo:
        context.memo[key] = layer_moments(
            listing.model, nodes, data.feeds(), progress, total=data.runs(), threads=context.threads
        )
    return cast("Mapping[str, Array]", context.memo[key])


def _made_up(listing: Listing, seed: int) -> Dataset | None:
    """Random tokens for a model that reads nothing else: what layers make of them is much like what texts give them.

    Random pictures or sounds are not: there the weights alone decide.
    """
    model = listing.model
    tables = table_inputs(model)
    floats = [v for v in real_inputs(model) if v.dtype is not None and v.dtype.is_floating_point()]
    if tables and not floats:
        return open_for(model, DataSpec(kind="random", limit=_MADE_UP, seed=seed), listing.input_sizes)
    return None


def _scaled(listing: Listing, names: list[str], settings: QuantizeWeights, context: Context) -> Scaled:
    """The model with inputs scaled where that pays, and the second moments of what its layers read.

    Without samples of the user's, made-up ones give the moments, but nothing is scaled by them.
    """
    wanted = settings.scale_inputs and context.calibration is not None and settings.bits < 8
    if settings.preset == "careful" and context.calibration is not None and not wanted:
        nodes = {name: listing.nodes[name] for name in names}  # others are fitted in order
        names = [name for name, node in nodes.items() if node.path or node.node.op_type in CELLS]
    moments = _moments(listing, names, settings, context, context.progress.part(0.0, 0.1 if wanted else 0.4))
    if not wanted:
        return Scaled(listing.model, moments, 0)
    keys = [layer.record.key for name in names if not (layer := listing.nodes[name]).path]
    scaled = scale_inputs(listing.model, keys, moments, settings, context.progress.part(0.1, 0.15))
    if scaled.layers:
        count = "1 layer" if scaled.layers == 1 else f"{scaled.layers} layers"
        context.note(f"Inputs of {count} are scaled, so that weights that meet large ones are rounded finer.")
    return scaled


def _in_order(
    scaled: Scaled, listing: Listing, settings: QuantizeWeights, names: list[str], context: Context
) -> dict[str, Blocks]:
    """Weights of the main graph, each fitted to what the layers before it have lost; by the name of their constant."""
    keys = [layer.record.key for name in names if not (layer := listing.nodes[name]).path]
    chosen = _samples(listing, keys, context)
    work = InOrder(scaled.model, keys, settings, chosen, context.threads, scaled.moments)
    return work.fit(context.progress.part(0.3, 0.9))


def _samples(listing: Listing, keys: list[str], context: Context) -> Samples:
    """The calibration samples, made-up ones for models that read tokens, and which rows of them matter."""
    data = context.calibration
    assert data is not None
    progress = context.progress.part(0.15, 0.3)
    feeds = [dict(feed) for feed in progress.over(data.take(_HELD).feeds(), lambda _: "Reading samples")]
    if len(feeds) == 1:  # two halves are compared
        feeds = _halves(feeds[0])
    made = invent(listing.model, feeds, _COPIES, context.seed)
    copies = 1 + len(made) // len(feeds)
    rows = {key: masks * copies for key, masks in _rows_that_matter(listing, keys, feeds, context).items()}
    return Samples([*feeds, *made], [i % 2 for i in range(len(feeds))] * copies, rows)


def _halves(feed: dict[str, Array]) -> list[dict[str, Array]]:
    """Two feeds of one whose inputs all have the samples on their first axis; else the feed twice."""
    lengths = {array.shape[0] if array.ndim else 0 for array in feed.values()}
    if len(lengths) == 1 and (length := lengths.pop()) > 1:
        parts = slice(0, length // 2), slice(length // 2, length)
        return [{name: array[part] for name, array in feed.items()} for part in parts]
    return [feed, feed]


def _rows_that_matter(
    listing: Listing, keys: list[str], feeds: list[dict[str, Array]], context: Context
) -> dict[str, list[Array]]:
    """By node key, for each feed: 1 for rows (tokens) with a gradient, 0 for those without (padding).

    Only products over rows within a sample are looked at; nothing where the model cannot be differentiated.
    """
    nodes = {node_key(n): n for n in listing.model.graph}
    names = {
        key: nodes[key].outputs[0].name or ""
        for key in keys
        if nodes[key].op_type == "MatMul" and len(listing.shapes.of(nodes[key].outputs[0]) or ()) > 2
    }
    if not names:
        return {}
    from studio.engine.trainable import gradients, unsupported

    if unsupported(listing.model):
        return {}
    found: dict[str, list[Array]] = {key: [] for key in names}
    probed = gradients(
        listing.model, list(dict.fromkeys(names.values())), feeds, context.seed, context.progress.part(0.2, 0.3),
        len(feeds),
    )  # fmt: skip
    for _values, felt in probed:
        for key, name in names.items():
            strength = np.square(felt[name].astype(np.float64)).sum(-1).reshape(-1)
            found[key].append((strength > _DEAD * strength.mean()).astype(np.uint8))
    return found


def _write(
    model: Model,
    listing: Listing,
    settings: QuantizeWeights,
    names: list[str],
    moments: Mapping[str, Array] | None,
    context: Context,
    ready: Mapping[str, Blocks] | None = None,
) -> Model:
    """A model of the listing's structure with the named layers' weights as integers; blank ones where `moments` is None."""
    targets = [Target(name, listing.nodes[name].record.key, listing.nodes[name].path) for name in names]
    writer = weight_only.Writer(
        model, settings, targets, moments, weight_only.layer_constants(listing), ready
    )
    progress = context.progress.part(0.4 if ready is None else 0.9, 1.0)
    for done, target in enumerate(targets):
        progress.tick(done / len(targets), f"{target.name}: {settings.bits} bits")
        pair = writer.write(target)
        words = f"{target.name}: int{settings.bits}"
        context.treated(
            writer.model, target.name, words if pair is None else f"{words}, {sqnr_db(*pair):.1f} dB"
        )
    return writer.finish()
