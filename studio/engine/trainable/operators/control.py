"""Operators that run subgraphs. A subgraph is a compiled program that shares the values of its surroundings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from studio.engine.trainable.operators.registry import Call, axis_of, control


@control("If")
def if_(call: Call, env: list[Any], condition: Tensor) -> Any:
    """One branch or the other."""
    branch = call.attributes["then_branch" if bool(condition) else "else_branch"]
    return tuple(branch.run(env, ()))


@control("Loop")
def loop(call: Call, env: list[Any], trips: Tensor | None, condition: Tensor | None, *carried: Any) -> Any:
    """Repeats while a condition holds, at most `trips` times; scanned outputs are stacked."""
    body = call.attributes["body"]
    limit = None if trips is None else int(trips.item())
    alive = True if condition is None else bool(condition)
    state = list(carried)
    scanned: list[list[Tensor]] = [[] for _ in range(len(body.outputs) - 1 - len(state))]
    done = 0
    while alive and (limit is None or done < limit):
        going, *rest = body.run(env, (torch.tensor(done), torch.tensor(alive), *state))
        alive = bool(going)
        state, new = rest[: len(state)], rest[len(state) :]
        for items, item in zip(scanned, new, strict=True):
            items.append(item)
        done += 1
    return (*state, *(torch.stack(items) if items else torch.zeros(0) for items in scanned))


@control("Scan")
def scan(call: Call, env: list[Any], *inputs: Any) -> Any:
    """Walks along an axis with a state. Before operator set 9 there is a batch axis first."""
    if call.version < 9:
        lengths, rest = inputs[0], inputs[1:]
        rows = [
            _scan(call, env, [v[i] for v in rest], None if lengths is None else int(lengths[i]))
            for i in range(rest[-1].shape[0])
        ]
        return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
    return _scan(call, env, list(inputs), None)


def _scan(call: Call, env: list[Any], inputs: list[Tensor], length: int | None) -> tuple[Tensor, ...]:
    body, count = call.attributes["body"], call.attributes["num_scan_inputs"]
    state, sequences = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    axes = call.get("scan_input_axes") or [0] * count
    backwards = call.get("scan_input_directions") or call.get("directions") or [0] * count
    axes = [axis_of(a, s.ndim) for a, s in zip(axes, sequences, strict=True)]
    total = sequences[0].shape[axes[0]] if length is None else length
    made = len(body.outputs) - len(state)
    scanned: list[list[Tensor]] = [[] for _ in range(made)]
    for t in range(total):
        at = [
            s.select(a, total - 1 - t if b else t) for s, a, b in zip(sequences, axes, backwards, strict=True)
        ]
        result = body.run(env, (*state, *at))
        state = result[: len(state)]
        for items, item in zip(scanned, result[len(state) :], strict=True):
            items.append(item)
    out_axes = call.get("scan_output_axes") or [0] * made
    reverse = call.get("scan_output_directions") or [0] * made
    outputs = []
    for items, axis, turned in zip(scanned, out_axes, reverse, strict=True):
        stacked = torch.stack(items[::-1] if turned else items, axis)
        if length is not None and length < sequences[0].shape[axes[0]]:
            missing = sequences[0].shape[axes[0]] - length
            stacked = torch.cat((stacked, stacked.new_zeros(missing, *stacked.shape[1:])))
        outputs.append(stacked)
    return (*state, *outputs)


@control("SequenceMap")
def sequence_map(call: Call, env: list[Any], first: list[Any], *others: Any) -> Any:
    """Runs a body once per element."""
    body = call.attributes["body"]
    results = [
        body.run(env, (item, *(o[i] if isinstance(o, list) else o for o in others)))
        for i, item in enumerate(first)
    ]
    return tuple([r[i] for r in results] for i in range(len(body.outputs)))
