"""The teacher's answers, in onnxruntime, remembered where samples come again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from studio.engine import execute
from studio.engine.graph import Model, copy
from studio.engine.training.samples import Sample

_KEPT_BYTES = 1_000_000_000


class Teacher:
    """Answers for batches.

    Args:
        model: never changed by training.
        names: outputs and inner values of the main graph that are asked for.
        threads: of the runtime.
        device: where the answers are wanted.
    """

    def __init__(
        self, model: Model, names: Sequence[str], threads: int, device: torch.device | str = "cpu"
    ) -> None:
        exposed = copy(model)
        present = {v.name for v in exposed.graph.outputs}
        for node in exposed.graph:
            for value in node.outputs:
                if value.name in names and value.name not in present:
                    exposed.graph.outputs.append(value)
        self._session = execute.session(exposed, threads=threads)
        self._names, self._device = list(names), device
        self._single = all(i.shape and i.shape[0] == 1 for i in self._session.get_inputs())
        self._kept: dict[str, np.ndarray[Any, Any]] = {}
        self.remember(0)

    def remember(self, count: int) -> None:
        """Expect so many samples that may come again by number."""
        self._count, self._known, self._kept = count, np.zeros(count, bool), {}

    def answers(self, sample: Sample) -> dict[str, Tensor]:
        """Outputs and inner values for a batch."""
        numbers = sample.numbers
        if numbers is None or not self._count:
            return self._torch(self._run(sample))
        if not self._known[numbers].all():
            found = self._run(sample)
            if not self._keep(found, numbers):
                self._count = 0
                return self._torch(found)
        return self._torch({n: a[numbers] for n, a in self._kept.items()})

    def _run(self, sample: Sample) -> dict[str, Any]:
        feed = execute.fitted(self._session, sample.feed)
        rows = min(len(a) for a in feed.values()) if self._single else 1
        if rows == 1:
            return self._run_once(feed)
        parts = [self._run_once({n: a[i : i + 1] for n, a in feed.items()}) for i in range(rows)]
        return {n: np.concatenate([part[n] for part in parts]) for n in self._names}

    def _run_once(self, feed: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self._names, execute.run(self._session, feed, self._names), strict=True))

    def _keep(self, found: dict[str, Any], numbers: np.ndarray[Any, Any]) -> bool:
        if not self._kept:
            rows = {n: a for n, a in found.items() if a.ndim and len(a) == len(numbers)}
            if (
                len(rows) != len(found)
                or sum(a.nbytes for a in rows.values()) / len(numbers) * self._count > _KEPT_BYTES
            ):
                return False
            self._kept = {n: np.zeros((self._count, *a.shape[1:]), a.dtype) for n, a in rows.items()}
        for name, array in found.items():
            if array.shape[1:] != self._kept[name].shape[1:]:
                return False
            self._kept[name][numbers] = array
        self._known[numbers] = True
        return True

    def _torch(self, found: dict[str, Any]) -> dict[str, Tensor]:
        return {
            n: torch.from_numpy(np.asarray(a, np.float32) if a.dtype.kind == "f" else a).to(self._device)
            for n, a in found.items()
        }
