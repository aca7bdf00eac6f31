"""Time of every layer, by onnxruntime's own profiler, mapped back from fused kernels.

The runtime fuses, reorders and renames before it runs. So a copy of the model gets a token in every node name
and output name (`@17@`); the runtime keeps them in what it builds (a Conv in the blocked layout is called
`@18@0_nchwc` after the output of the Relu that it swallowed). A kernel is then responsible for the nodes
whose tokens it carries, and for all nodes upstream of those that no other kernel carries. What maps to no layer
(element-wise work, reordering, conversions at borders) is told as a sum.

The total is that of all kernels; what the profiler itself costs between them is left out.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import onnx_ir as ir

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.engine.dataset import Feed, open_for
from studio.engine.execute import run, session
from studio.engine.graph import Model, copy, graphs, load
from studio.engine.layers import Listing, list_layers
from studio.records.measure import DataSpec, LayerTime
from studio.records.task import Profile, Profiled

_TOKEN = re.compile(r"@(\d+)@")
_SUFFIX = "_kernel_time"
_WARM_UPS, _RUNS, _BUDGET_S, _EVENTS = 3, 30, 3.0, 100_000
# Their events contain those of the nodes inside.
_CONTAINERS = {"If", "Loop", "Scan"}
# Between layouts; they bear the name of what they convert, but are none of it.
_BORDERS = {"ReorderInput", "ReorderOutput"}


@dataclass(frozen=True)
class _Kernel:
    """What the runtime ran: its name, and its time per run."""

    name: str
    ms: float


@dataclass(frozen=True)
class _Owner:
    """Which layers a kernel works for, and whether it computes them or only converts for them."""

    kernel: str
    layers: tuple[str, ...]
    computes: bool


def profile(task: Profile, progress: Progress) -> Profiled:
    """Run a model under the profiler and say how long each layer takes.

    Raises:
        StudioError: the model or the data cannot be used.
        Cancelled: at any tick.
    """
    progress.tick(0.0, "reading the model")
    sizes = dict(task.input_sizes)
    listing = list_layers(load(Path(task.model)), sizes)
    spec = task.evaluation or DataSpec(kind="random", limit=1)
    feed = open_for(listing.model, spec, sizes).first()
    return profile_layers(listing, feed, task.threads, progress)


def profile_layers(listing: Listing, feed: Feed, threads: int, progress: Progress) -> Profiled:
    """Layer times of a listed model on one feed: medians over runs, in the order of the layers."""
    marked = _marked(listing.model)
    with tempfile.TemporaryDirectory(prefix="featherweight-") as name:
        folder = Path(name)
        optimized = folder / "optimized.onnx"
        sess = session(marked, threads=threads, profile_prefix=str(folder / "profile"), optimized=optimized)
        events = _run(sess, feed, progress, sum(1 for _, graph in graphs(listing.model) for _ in graph))
        kernels = _kernels(events)
        owners = _owners(listing, Model(ir.load(optimized)))
    return _report(listing, kernels, owners)


def _marked(model: Model) -> Model:
    """A copy whose nodes and their outputs carry their number as a token."""
    marked = copy(model)
    for number, node in enumerate(_all_nodes(marked)):
        node.name = f"@{number}@"
        for position, value in enumerate(node.outputs):
            if value.name:
                value.name = f"@{number}@{position}"
    return marked


def _all_nodes(model: Model) -> Iterable[ir.Node]:
    for _path, graph in graphs(model):
        yield from graph


def _run(sess: Any, feed: Feed, progress: Progress, nodes: int) -> list[dict[str, Any]]:
    """The profiler's events of some runs."""
    runs = max(1, min(_RUNS, _EVENTS // max(1, nodes)))
    started = time.monotonic()
    for done in range(_WARM_UPS + runs):
        progress.tick(0.2 + 0.7 * done / (_WARM_UPS + runs), f"profiled run {done + 1}")
        run(sess, feed)
        if done >= _WARM_UPS and time.monotonic() - started > _BUDGET_S:
            break
    path = Path(sess.end_profiling())
    try:
        events = json.loads(path.read_bytes())
    except ValueError as error:
        raise StudioError("The runtime's profile cannot be read", str(error)) from error
    return [event for event in events if isinstance(event, dict)]


def _kernels(events: list[dict[str, Any]]) -> list[_Kernel]:
    """Kernels with their median time over the runs; warm-ups left out."""
    runs = sorted(
        (int(e["ts"]), int(e["ts"]) + int(e["dur"])) for e in events if e.get("name") == "model_run"
    )[_WARM_UPS:]
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(runs))
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX):
            continue
        op = str(event.get("args", {}).get("op_name", ""))
        index = _position(int(event["ts"]), runs)
        if index is not None and op not in _CONTAINERS:
            spent[name.removesuffix(_SUFFIX)][index] += event["dur"] / 1000
    return [_Kernel(name, median(times)) for name, times in spent.items()]


def _position(moment: int, runs: list[tuple[int, int]]) -> int | None:
    """Which run a moment falls into."""
    for index, (start, end) in enumerate(runs):
        if start <= moment <= end:
            return index
    return None


def _owners(listing: Listing, optimized: Model) -> dict[str, _Owner]:
    """Which layers every kernel works for, by its name."""
    originals = list(_all_nodes(listing.model))
    number = {id(node): i for i, node in enumerate(originals)}
    main = {number[id(layer.node)]: layer.record.name for layer in listing.nodes.values()}
    beside = _beside(listing, number)
    built = list(_all_nodes(optimized))
    carried = {id(node): _tokens(node) for node in built}
    taken = {token for tokens in carried.values() for token in tokens}
    owners: dict[str, _Owner] = {}
    for node in built:
        if node.op_type in _BORDERS:
            continue
        nodes = sorted(_upstream(carried[id(node)], taken, originals, number))
        computed = tuple(dict.fromkeys(main[i] for i in nodes if i in main))
        helped = tuple(dict.fromkeys(beside[i] for i in nodes if i in beside))
        owners[node.name or ""] = _Owner(_kernel_text(node), computed or helped, bool(computed))
    return owners


def _beside(listing: Listing, number: Mapping[int, int]) -> dict[int, str]:
    """The layer of every node that belongs to one without being its main node: Q/DQ around it, its bias."""
    found: dict[int, str] = {}
    for path, graph in graphs(listing.model):
        keys = {
            key: layer.record.name
            for layer in listing.nodes.values()
            if layer.path == path
            for key in layer.record.nodes[1:]
        }
        for node in graph:
            name = next((keys[v.name] for v in node.outputs if v.name in keys), None)
            if name is not None:
                found[number[id(node)]] = name
    return found


def _tokens(node: ir.Node) -> set[int]:
    texts = [node.name or "", *(value.name or "" for value in node.outputs)]
    return {int(token) for text in texts for token in _TOKEN.findall(text)}


def _upstream(
    tokens: set[int], taken: set[int], originals: list[ir.Node], number: Mapping[int, int]
) -> set[int]:
    """The nodes of `tokens` and, going upstream, those that no kernel carries."""
    found = {token for token in tokens if token < len(originals)}
    waiting = list(found)
    while waiting:
        for value in originals[waiting.pop()].inputs:
            maker = value.producer() if value is not None else None
            index = number.get(id(maker))
            if index is not None and index not in taken and index not in found:
                found.add(index)
                waiting.append(index)
    return found


def _kernel_text(node: ir.Node) -> str:
    """'FusedConv', 'MatMulNBits'; 'NchwcConv' for a Conv in the blocked layout."""
    prefix = {"com.microsoft.nchwc": "Nchwc", "com.ms.internal.nhwc": "Nhwc"}.get(node.domain, "")
    return f"{prefix}{node.op_type}"


def _report(listing: Listing, kernels: list[_Kernel], owners: Mapping[str, _Owner]) -> Profiled:
    """Sum kernels up to layers; a kernel of many layers is divided by their weights."""
    total = sum(kernel.ms for kernel in kernels)
    ms: dict[str, float] = defaultdict(float)
    main: dict[str, _Owner] = {}
    for kernel in kernels:
        owner = owners.get(kernel.name)
        if owner is None:
            continue
        weights = [max(1, listing.nodes[name].record.cost.parameters) for name in owner.layers]
        for name, weight in zip(owner.layers, weights, strict=True):
            ms[name] += kernel.ms * weight / sum(weights)
            if owner.computes or name not in main:
                main[name] = owner
    rows = tuple(
        LayerTime(
            layer=layer.name,
            ms=ms[layer.name],
            share=ms[layer.name] / total if total else 0.0,
            kernel=main[layer.name].kernel,
            also=tuple(other for other in main[layer.name].layers if other != layer.name),
        )
        for layer in listing.layers
        if layer.name in ms
    )
    return Profiled(layers=rows, other_ms=max(0.0, total - sum(row.ms for row in rows)), total_ms=total)
