"""How loudly the model's output answers to errors at one group: measured, four probes a group.

An error of a tenth in the first layer of a stage travels through everything behind it, the same error in
a branch that is added to a trunk hardly shows. A probe takes a share of one group's channels away, with
the layers that read them making up for it, and compares the outputs. What makes up is learned on one half
of the samples and judged on the other: late layers would learn a few images by heart and seem to need no
channels. Between the probes the noise at the output follows the error at the readers; behind the last it
grows with its square, since nobody looked.

Noise is the squared error of the outputs relative to their power, of logits rather than of probabilities too: the
few samples that are probed are mostly beyond doubt, and their probabilities hide what happens to the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from studio.base.progress import Progress
from studio.engine.edit import set_constant
from studio.engine.execute import run, session
from studio.engine.graph import constant
from studio.engine.groups.atoms import Array
from studio.engine.groups.cut import Twins
from studio.engine.groups.grouping import Grouping
from studio.engine.groups.trace import Trace
from studio.engine.pruning.elimination import made_up
from studio.engine.pruning.oracle import watched
from studio.engine.pruning.orders import Order, Reader

_SHARES = (0.2, 0.5, 0.7, 0.9)  # of a group's channels
PROBES = len(_SHARES)


def heard(
    grouping: Grouping,
    readers: Mapping[str, Sequence[Reader]],
    orders: Mapping[str, Order],
    feeds: Sequence[Mapping[str, Array]],
    progress: Progress,
    threads: int = 0,
) -> dict[str, Order]:
    """Orders with the noise at the output in the place of the error at the readers, by group name.

    Groups that no layer with statistics reads keep their own errors.
    """
    trace = grouping.trace
    twins = Twins(trace.model)
    reference = _outputs(trace, twins, feeds, threads)
    found = dict(orders)
    for name in progress.over(list(readers), lambda n: f"Probe {n}"):
        order = orders[name]
        marks = [(0.0, 0.0)]
        for share in _SHARES:
            count = max(1, int(share * len(order.channels)))
            whole = _stored(readers[name], twins)
            for reader in readers[name]:
                _make_up(reader, _columns(reader, order, count), order.damping, twins)
            noise = _noise(reference, _outputs(trace, twins, feeds, threads))
            for value, tensor in whole.items():
                set_constant(value, tensor)
            marks.append((float(order.error[count]), max(noise, marks[-1][1])))
        found[name] = Order(order.channels, _curve(order.error, marks), order.damping)
    return found


def heard_together(
    grouping: Grouping,
    readers: Mapping[str, Sequence[Reader]],
    orders: Mapping[str, Order],
    gone: Mapping[str, int],
    feeds: Sequence[Mapping[str, Array]],
    threads: int = 0,
) -> float:
    """The noise at the output when several groups lose their first channels at once, so many each.

    Every layer makes up for what it reads as if those before it were whole: later ones would do better with
    what they really get, so this compares ways to cut and does not predict what refit leaves.
    """
    trace = grouping.trace
    lost: dict[ir.Node, tuple[Reader, float, list[Array]]] = {}
    for name, count in gone.items():
        for reader in readers.get(name, ()) if count else ():
            entry = lost.setdefault(reader.node, (reader, orders[name].damping, []))
            entry[2].append(_columns(reader, orders[name], count))
    twins = Twins(trace.model)
    for reader, damping, columns in lost.values():
        _make_up(reader, np.concatenate(columns), damping, twins)
    whole = _outputs(trace, Twins(trace.model), feeds, threads)
    return _noise(whole, _outputs(trace, twins, feeds, threads))


def _columns(reader: Reader, order: Order, count: int) -> Array:
    """Columns of the first channels to go."""
    return np.asarray(reader.columns[order.channels[:count]].reshape(-1))


def _curve(error: Array, marks: list[tuple[float, float]]) -> Array:
    """Noise for every error: through the marks, behind the last with the square."""
    at, noise = (np.array(column) for column in zip(*marks, strict=True))
    last = max(float(at[-1]), 1e-12)
    beyond = float(noise[-1]) * np.square(error / last)
    return np.asarray(np.maximum.accumulate(np.where(error > last, beyond, np.interp(error, at, noise))))


def unseen(feeds: Iterable[Mapping[str, Array]], samples: int) -> list[dict[str, Array]]:
    """Some of the samples that the first half of the statistics has not seen: every other feed, or half of one."""
    every = list(feeds)
    found: list[dict[str, Array]] = []
    left = samples
    for feed in every[1::2]:
        found.append({name: array[:left] if array.ndim else array for name, array in feed.items()})
        left -= max((len(array) for array in feed.values() if array.ndim), default=1)
        if left <= 0:
            break
    return found or [
        {name: array[len(array) // 2 :] if array.ndim else array for name, array in feed.items()}
        for feed in every
    ]


def _stored(readers: Sequence[Reader], twins: Twins) -> dict[ir.Value, ir.TensorProtocol]:
    """Weights and biases of layers in a copy, as they are."""
    values = (v for reader in readers for v in twins.nodes[reader.node].inputs[1:3] if v is not None)
    return {value: tensor for value in values if (tensor := constant(value)) is not None}


def _make_up(reader: Reader, columns: Array, damping: float, twins: Twins) -> None:
    """Take columns of one reader away in a copy, the others making up for them as one half of the samples says."""
    w = made_up(reader, columns, damping, 0)
    node = twins.nodes[reader.node]
    value = node.inputs[1]
    tensor = constant(value)
    if value is not None and tensor is not None:
        data = reader.view.weight(w[None]).astype(tensor.dtype.numpy())
        set_constant(value, ir.tensor(data, name=tensor.name))
    bias = constant(node.inputs[2]) if reader.centred and len(node.inputs) > 2 else None
    if bias is not None and node.inputs[2] is not None:
        shift = ((reader.w - w) @ reader.statistics.mean(0)[0]).reshape(bias.shape.numpy())
        set_constant(
            node.inputs[2], ir.tensor((bias.numpy() + shift).astype(bias.dtype.numpy()), name=bias.name)
        )


def _outputs(
    trace: Trace, twins: Twins, feeds: Sequence[Mapping[str, Array]], threads: int
) -> list[list[Array]]:
    """The last values in front of saturating operators, for every feed; the copy gets them as outputs."""
    exposed = twins.copy
    by_name = {v.name: v for node in exposed.graph for v in node.outputs}
    present = {v.name for v in exposed.graph.outputs}
    names = [twins.values[v].name or "" for v in watched(trace)]
    for name in names:
        if name not in present:
            exposed.graph.outputs.append(by_name[name])
            present.add(name)
    sess = session(exposed, threads=threads)
    return [run(sess, feed, names) for feed in feeds]


def _noise(reference: list[list[Array]], found: list[list[Array]]) -> float:
    """Mean over outputs of Σ(y − y₀)² / Σ(y₀ − ȳ₀)²."""
    shares = []
    for column in range(len(reference[0])):
        y0 = np.concatenate([row[column].reshape(-1) for row in reference]).astype(np.float64)
        y = np.concatenate([row[column].reshape(-1) for row in found]).astype(np.float64)
        power = float(np.square(y0 - y0.mean()).sum())
        if power > 0 and np.isfinite(power):
            shares.append(float(np.square(y - y0).sum()) / power)
    return float(np.mean(shares)) if shares else 0.0
