"""Jobs and log lines as the faces show them."""

from __future__ import annotations

from typing import Literal, TypeAlias

from studio.records.base import Record
from studio.records.task import Failed

Failure: TypeAlias = Failed  # what, why, hint, details, bug
Kind: TypeAlias = Literal[
    "open", "compress", "measure", "profile", "scan", "export", "train", "search", "data", "save"
]
State: TypeAlias = Literal["waiting", "running", "cancelling", "done", "failed", "cancelled"]


class Job(Record, frozen=True, kw_only=True):
    """One piece of background work.

    Attributes:
        share: done, 0..1.
        words: what it is doing now, or how it ended.
        eta_s: seconds left, estimated from the share done; None while that is a guess.
        started / ended: seconds since the epoch.
        version: that it belongs to, or that it made.
        paused: it stands still until it is told to go on.
    """

    id: int
    title: str
    kind: Kind
    state: State = "waiting"
    share: float = 0.0
    words: str = ""
    eta_s: float | None = None
    started: float | None = None
    ended: float | None = None
    error: Failure | None = None
    version: int | None = None
    paused: bool = False

    @property
    def active(self) -> bool:
        """Whether it has not ended yet."""
        return self.state in {"waiting", "running", "cancelling"}


class LogLine(Record, frozen=True, kw_only=True):
    """One line of the log."""

    when: str  # '10:41:07', local time
    text: str
    level: Literal["note", "caution", "error"] = "note"
