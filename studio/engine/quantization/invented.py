"""Made-up samples for models that read numbers of table rows (tokens): the real ones with other rows in them.

A few dozen texts show a layer too few directions to fit thousands of weights to. Texts in which rare tokens are replaced
by any others keep length, padding and the frequent tokens, and show the layers many more inputs. Nothing is known of
their answers, and nothing needs to be: the original model gives them.

Source: the random inputs of Liu et al. 2024, "LLM-QAT" (data-free), §2.1, mixed with the user's samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from studio.engine.graph import Model, constant

Array: TypeAlias = npt.NDArray[Any]
Feed: TypeAlias = Mapping[str, Array]

# A token that so large a share of the samples has belongs to their form: it stays.
_COMMON = 0.5
# Where less can be replaced there is nothing to gain.
_ENOUGH = 0.25
_PASSED = {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten"}


def table_inputs(model: Model) -> dict[str, int]:
    """Inputs that are row numbers of a stored table, and how many rows that has."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        waiting = [value]
        while waiting:
            for user, position in waiting.pop().uses():
                table = constant(user.inputs[0])
                if user.op_type == "Gather" and position == 1 and table is not None:
                    if len(table.shape) == 2 and table.dtype.numpy().kind in "fV":
                        rows = int(table.shape.numpy()[0])
                        found[value.name or ""] = min(rows, found.get(value.name or "", rows))
                elif user.op_type in _PASSED and position == 0:
                    waiting.append(user.outputs[0])
    return found


def invent(model: Model, feeds: Sequence[Feed], copies: int, seed: int) -> list[Feed]:
    """`copies` made-up feeds for each of the given ones, all first copies first; none where little can be replaced."""
    tables = {n: rows for n, rows in table_inputs(model).items() if all(n in feed for feed in feeds)}
    loose = {
        n: [_loose(array, common) for array in arrays] for n, (arrays, common) in _seen(tables, feeds).items()
    }
    loose = {n: masks for n, masks in loose.items() if np.mean([m.mean() for m in masks]) >= _ENOUGH}
    if not loose:
        return []
    rng = np.random.default_rng(seed)
    made: list[Feed] = []
    for _ in range(copies):
        for number, feed in enumerate(feeds):
            changed = dict(feed)
            for name, masks in loose.items():
                drawn = rng.integers(0, tables[name], feed[name].shape).astype(feed[name].dtype)
                changed[name] = np.where(masks[number], drawn, feed[name])
            made.append(changed)
    return made


def _seen(tables: Mapping[str, int], feeds: Sequence[Feed]) -> dict[str, tuple[list[Array], Array]]:
    """By input: its arrays, and the row numbers that most samples have."""
    found = {}
    for name, rows in tables.items():
        arrays = [feed[name] for feed in feeds]
        count, total = np.zeros(rows, np.int64), 0
        for sample in (
            s for array in arrays for s in array.reshape(-1, array.shape[-1] if array.ndim else 1)
        ):
            present = np.unique(sample)
            count[present[(present >= 0) & (present < rows)]] += 1
            total += 1
        found[name] = (arrays, np.flatnonzero(count > _COMMON * total))
    return found


def _loose(array: Array, common: Array) -> Array:
    """Which entries may be replaced."""
    return ~np.isin(array, common)
