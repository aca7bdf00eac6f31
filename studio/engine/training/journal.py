"""What a block reconstruction leaves on disk, so that a killed one goes on in the block it was at.

Kept are the integers of the blocks that are decided, and of the block at work what is learned and how far it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from studio.engine.training import checkpoint

if TYPE_CHECKING:
    from studio.engine.training.reconstruction import Rounding

_ADAM = ("step", "exp_avg", "exp_avg_sq")


class Journal:
    """The state of one reconstruction; what an earlier run has left is there when it is made.

    Args:
        path: None = nothing is kept.
        roundings: all of them, by name; those of decided blocks get their integers back.

    Attributes:
        errors: of the decided blocks, (before, after) each.
        steps: done in the block at work.
        seconds: spent in it.
    """

    def __init__(self, path: Path | None, roundings: Mapping[str, Rounding]) -> None:
        self._path, self._roundings = path, roundings
        self._pace = checkpoint.Pace()
        self.errors: list[tuple[float, float]] = []
        self.steps, self.seconds = 0, 0.0
        self._found: dict[str, Tensor] = {}
        found = checkpoint.load(path) if path is not None else None
        if found is not None and {n.split("/", 1)[1] for n in found[0] if n.startswith("fixed/")} <= set(
            roundings
        ):
            self._found, numbers = found
            self.errors = [(before, after) for before, after in numbers["errors"]]
            self.steps, self.seconds = numbers["steps"], numbers["seconds"]
        for name, level in self._found.items():
            if name.startswith("fixed/"):
                roundings[name.removeprefix("fixed/")].fixed = level

    def enter(self, names: Sequence[str], optimizer: torch.optim.Optimizer) -> None:
        """A block begins or goes on: what was learned in it is put back."""
        if not self.steps:
            return
        for name in names:
            push = self._roundings[name].push
            with torch.no_grad():
                push.copy_(self._found[f"push/{name}"])
            optimizer.state[push] = {key: self._found[f"adam/{key}/{name}"] for key in _ADAM}

    def went(self, names: Sequence[str], optimizer: torch.optim.Optimizer, seconds: float) -> None:
        """One more step in the block at work, which took so long so far; written where that is due."""
        self.steps, self.seconds = self.steps + 1, seconds
        if not self._pace.due:
            return
        learned: dict[str, Tensor] = {}
        for name in names:
            push = self._roundings[name].push
            learned[f"push/{name}"] = push
            learned |= {f"adam/{key}/{name}": optimizer.state[push][key] for key in _ADAM}
        self._write(learned, names)

    def decided(self, before: float, after: float) -> None:
        """The block at work is done."""
        self.errors.append((before, after))
        self.steps, self.seconds = 0, 0.0
        if self._pace.due:
            self._write({}, ())

    def close(self) -> None:
        """All blocks are decided."""
        self._write({}, ())

    def _write(self, learned: dict[str, Tensor], at_work: Sequence[str]) -> None:
        if self._path is None:
            return
        started = time.monotonic()
        fixed = {
            f"fixed/{n}": r.fixed
            for n, r in self._roundings.items()
            if r.fixed is not None and n not in at_work
        }
        numbers = {"errors": self.errors, "steps": self.steps, "seconds": self.seconds}
        checkpoint.save(self._path, fixed | learned, numbers)
        self._pace.wrote(time.monotonic() - started)
