"""Outputs and intermediate values of a model, feed by feed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from studio.base.progress import Progress
from studio.engine.execute.exposing import expose
from studio.engine.execute.sessions import Array, run, session
from studio.engine.graph import Model


def outputs(
    model: Model | Path | bytes,
    feeds: Iterable[Mapping[str, Array]],
    progress: Progress | None = None,
    *,
    total: int = 0,
    threads: int = 0,
) -> Iterator[list[Array]]:
    """The outputs of a model feed by feed; nothing is held.

    Args:
        model: what to run.
        feeds: what to run it on, read one at a time.
        progress: ticked before each run.
        total: how many feeds there are, for the share that is ticked; 0 = not known.
        threads: intra-op threads; 0 = the runtime's choice.

    Raises:
        StudioError: the runtime fails.
        Cancelled: at a tick.
    """
    sess = session(model, threads=threads)
    for done, feed in enumerate(feeds):
        if progress is not None:
            progress.tick(done / total if total else 0.0, f"run {done + 1}")
        yield run(sess, feed)


def stream(
    model: Model,
    names: Sequence[str],
    feeds: Iterable[Mapping[str, Array]],
    progress: Progress | None = None,
    threads: int = 0,
    *,
    total: int = 0,
) -> Iterator[dict[str, Array]]:
    """Intermediate values, feed by feed; one feed's values are held at a time.

    A copy of the model gets the values as extra outputs, so fusions across them do not happen and
    the values are those of the unfused graph. A name that is an input is taken from the feed.

    A value inside a subgraph is named with its graph's path, `path/name`, or by its name alone where the main
    graph has none of it. Of an If, the values of the branch that ran are given, and the names of the other are
    missing from that feed's dict. In a Loop or Scan, the values of all iterations are stacked along a new first axis.

    Args:
        model: left as it is.
        names: of values.
        feeds: what to run on, read one at a time.
        progress: ticked before each run.
        threads: intra-op threads; 0 = the runtime's choice.
        total: how many feeds there are, for the share that is ticked; 0 = not known.

    Raises:
        StudioError: a name is no value of the model, or the runtime fails.
        Cancelled: at a tick.
    """
    exposed = expose(model, names)
    sess = session(exposed.model, threads=threads)
    asked = list(dict.fromkeys(exposed.outputs.values()))
    for done, feed in enumerate(feeds):
        if progress is not None:
            progress.tick(done / total if total else 0.0, f"run {done + 1}")
        found = dict(zip(asked, run(sess, feed, asked) if asked else [], strict=True))
        values = {}
        for name in dict.fromkeys(names):
            if name not in exposed.outputs:
                values[name] = feed[name]
            elif name not in exposed.branched or found[exposed.outputs[name]].size:
                values[name] = found[exposed.outputs[name]]
        yield values
