"""How long every layer takes when the model gets narrower, on this machine: measured once, kept, interpolated.

Time does not follow the multiply-accumulates: kernels work in blocks, narrow layers wait for memory, and what lies
between layers takes its share. So a few drafts of the model, all groups narrowed alike, run under the runtime's
profiler, fused kernels and all. A layer's time then hangs on the geometric mean of the shares that its axes keep.

What was measured lies in the user's cache folder, so that a plan made twice is the same plan twice.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import msgspec
import onnx_ir as ir
import platformdirs

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.engine.dataset import Feed
from studio.engine.graph import constant, graphs
from studio.engine.groups.cut import cut_twins
from studio.engine.groups.grouping import Grouping
from studio.engine.latency import Protocol, measure_latency
from studio.engine.layers import Listing, list_layers
from studio.engine.profile import profile_layers
from studio.records.base import Record, decode, encode

_EDITION = 3  # of the rule that rounds widths: what was measured under another one is measured anew
SHARES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
_QUICK = Protocol(rounds_per_block=8, minimum=48, maximum=120, half_width=0.01, budget_s=3.0, limit_s=15.0)


class Stair(Record, frozen=True, kw_only=True):
    """One draft: the width that each group kept, milliseconds of each layer, and of all that is no layer."""

    kept: dict[str, int]
    layers: dict[str, float]
    other: float


class Aim(Record, frozen=True, kw_only=True):
    """In which way channels were spread, and at which share of what it counts, so that a measured time came out."""

    way: str
    share: float


class Staircase(Record, frozen=True, kw_only=True):
    """Drafts of one model, the whole one first; `aims` says what kept which budget of measured time (as text)."""

    stairs: tuple[Stair, ...]
    aims: dict[str, Aim] = msgspec.field(default_factory=dict)

    def curve(self, layer: str) -> tuple[float, ...]:
        """Milliseconds of a layer in every draft; no draft takes longer than a wider one."""
        return _falling(tuple(stair.layers.get(layer, 0.0) for stair in self.stairs))

    def rest(self, layers: set[str]) -> tuple[float, ...]:
        """Milliseconds of all else in every draft."""
        whole = (stair.other + sum(stair.layers.values()) for stair in self.stairs)
        mine = (sum(stair.layers.get(name, 0.0) for name in layers) for stair in self.stairs)
        return _falling(tuple(a - b for a, b in zip(whole, mine, strict=True)))


def _falling(times: tuple[float, ...]) -> tuple[float, ...]:
    found: list[float] = []
    for ms in times:
        found.append(min(ms, found[-1]) if found else ms)
    return tuple(found)


def place(listing: Listing, feed: Feed, threads: int) -> Path:
    """The file that holds what was measured of models of this structure, on such inputs, on this machine."""
    import onnxruntime as ort

    digest = hashlib.blake2b(digest_size=16)
    machine = (_EDITION, platform.machine(), platform.processor(), os.cpu_count(), threads, ort.__version__)
    shapes = sorted((name, array.shape) for name, array in feed.items())
    digest.update(repr((machine, shapes)).encode())
    for _path, graph in graphs(listing.model):
        for node in graph:
            digest.update(repr((node.op_type, node.domain, _numbers(node), _names(node))).encode())
    return Path(platformdirs.user_cache_dir("featherweight", appauthor=False)) / "widths" / digest.hexdigest()


def _numbers(node: ir.Node) -> list[tuple[str, object]]:
    kinds = {ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING}
    return [(a.name, a.value) for a in node.attributes.values() if a.type in kinds]


def _names(node: ir.Node) -> list[object]:
    """What a node reads: names, and of constants types and shapes as well."""
    found: list[object] = [v.name for v in (*node.inputs, *node.outputs) if v is not None]
    tensors = [constant(v) for v in node.inputs]
    return found + [(str(t.dtype), tuple(t.shape.numpy())) for t in tensors if t is not None]


def known(file: Path) -> Staircase | None:
    """What was measured before; None where nothing was, or where it cannot be read."""
    try:
        return decode(file.read_bytes(), Staircase)
    except (OSError, StudioError):
        return None


def keep(file: Path, staircase: Staircase) -> None:
    """Keep what was measured; where the folder cannot be written, it is measured anew next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        draft.write_bytes(encode(staircase))
        draft.replace(file)
    except OSError:
        return


def measure(
    listing: Listing, grouping: Grouping, widths: Mapping[float, Mapping[str, int]], feed: Feed, threads: int,
    progress: Progress,
) -> Staircase:  # fmt: skip
    """Profile a draft at each of the given widths (by share, the whole model first)."""
    stairs = []
    for number, (share, kept) in enumerate(widths.items()):
        here = progress.part(number / len(widths), (number + 1) / len(widths))
        here.tick(0.0, f"Time the layers at {share:.0%} of their width")
        draft = list_layers(
            cut_twins(grouping.trace, grouping.narrowed(kept)).copy, dict(listing.input_sizes)
        )
        found = profile_layers(draft, feed, threads, here)
        layers = {row.layer: row.ms for row in found.layers}
        stairs.append(Stair(kept=dict(kept), layers=layers, other=found.other_ms))
    return Staircase(stairs=tuple(stairs))


def timed(
    listing: Listing,
    grouping: Grouping,
    kept: Mapping[str, int],
    feed: Feed,
    threads: int,
    progress: Progress,
) -> tuple[float, bool]:
    """The share of the model's running time that a draft takes, interleaved; whether the machine was busy."""
    draft = cut_twins(grouping.trace, grouping.narrowed(kept)).copy
    _, found = measure_latency([listing.model, draft], feed, threads, progress, _QUICK)
    return (1 / found.ratio if found.ratio else 1.0), found.busy
