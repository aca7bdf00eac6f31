"""Would a model answer alike elsewhere? Run without graph optimization, and as a processor without VNNI would.

Rewriting a graph changes the order of sums, and may fuse a quantized layer otherwise than was meant; older x86 processors
saturate sums of 8-bit products (`quantization/saturation`). Both are compared with the answers of the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from studio.base.progress import Progress
from studio.engine import execute
from studio.engine.accuracy import Fidelity, final_operator, kind_of
from studio.engine.dataset import Dataset, Feed
from studio.engine.graph import Model, load
from studio.engine.layers import list_layers
from studio.engine.quantization import kernels, saturation
from studio.records.measure import OutputError, Portability

# Samples that all forms are run on.
_SAMPLES = 8


def portability(
    model: Model | Path, data: Dataset, progress: Progress, threads: int = 0, called: str = "calibration data"
) -> Portability | None:
    """How a model answers without graph optimization and without VNNI; None where no output is a tensor.

    Args:
        model: any.
        data: a few of its samples are run.
        progress: of all of it.
        threads: of the runtime.
        called: what the data are called beside a figure.

    Raises:
        StudioError: the model does not run, or not on these data.
        Cancelled: at any tick.
    """
    model = model if isinstance(model, Model) else load(model)
    progress.tick(0.0, "Running without graph optimization")
    sess = execute.session(model, threads=threads)
    names = [o.name for o in sess.get_outputs() if o.type.startswith("tensor(")]
    feeds = list(data.take(_SAMPLES).feeds(1))
    if not names or not feeds:
        return None
    where = "random inputs" if data.random else called
    usual = [execute.run(sess, feed, names) for feed in progress.part(0.0, 0.2).over(feeds)]
    plain = _answers(model, feeds, names, threads, progress.part(0.2, 0.5))
    optimization = _error(model, usual, plain, where)
    at_risk = _at_risk(model)
    if not at_risk:
        return Portability(optimization=optimization)
    progress.tick(0.5, "Emulating a processor without VNNI")
    largest = saturation.largest_codes(model, at_risk, feeds, threads)
    twin, beyond = saturation.saturating_twin(model, at_risk, largest)
    answers = _answers(twin, feeds, [*names, *beyond.values()], threads, progress.part(0.6, 1.0))
    worst = np.max([[float(a) for a in one[len(names) :]] for one in answers], axis=0, initial=0.0)
    listed = {layer.record.key: name for name, layer in list_layers(model).nodes.items() if not layer.path}
    return Portability(
        optimization=optimization,
        saturation=_error(model, plain, [one[: len(names)] for one in answers], where),
        saturated=tuple(listed[key] for key, peak in zip(beyond, worst, strict=True) if peak > 0),
    )


def _answers(
    model: Model, feeds: Sequence[Feed], names: list[str], threads: int, progress: Progress
) -> list[list[execute.Array]]:
    sess = execute.session(model, threads=threads, optimize="off")
    return [execute.run(sess, feed, names) for feed in progress.over(feeds)]


def _error(
    model: Model,
    wanted: Sequence[Sequence[execute.Array]],
    found: Sequence[Sequence[execute.Array]],
    called: str,
) -> OutputError:
    import msgspec

    fidelity = Fidelity(kind_of(wanted[0][0], None, final_operator(model)))
    for one, other in zip(wanted, found, strict=True):
        fidelity.add(one, other, 1)
    return msgspec.structs.replace(fidelity.result(), data=called)


def _at_risk(model: Model) -> list[saturation.Product]:
    """Layers that run on integer kernels here and whose sums may leave 16 bits."""
    fast = {kernel.layer for kernel in kernels.report(model) if kernel.integer}
    listed = list_layers(model).nodes
    keys = [layer.record.key for name, layer in listed.items() if name in fast and not layer.path]
    return saturation.products(model, keys)
