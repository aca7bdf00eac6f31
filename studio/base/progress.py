"""How long work tells its listener how far it is, and learns that it should stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from studio.base.errors import Cancelled

T = TypeVar("T")


class Progress:
    """Reports a share done (0..1) with words, and raises `Cancelled` when asked to stop.

    Args:
        report: called with (share, words); share is 0..1.
        cancelled: asked at every tick; True stops the work.
    """

    def __init__(
        self,
        report: Callable[[float, str], None] = lambda _share, _words: None,
        cancelled: Callable[[], bool] = lambda: False,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        self._report, self._cancelled, self._low, self._high = report, cancelled, low, high

    def tick(self, share: float, words: str = "") -> None:
        """Say that `share` (0..1) of this part is done, in `words`.

        Raises:
            Cancelled: the listener asked to stop.
        """
        if self._cancelled():
            raise Cancelled
        self._report(self._low + (self._high - self._low) * min(1.0, max(0.0, share)), words)

    def part(self, low: float, high: float) -> Progress:
        """A progress for the part of this work between the shares `low` and `high`."""
        span = self._high - self._low
        return Progress(self._report, self._cancelled, self._low + span * low, self._low + span * high)

    def over(self, items: Iterable[T], words: Callable[[T], str] = lambda _item: "") -> Iterator[T]:
        """Iterate over a sized collection with a tick before each item and one at the end."""
        total = len(items) if isinstance(items, Sized) else 0
        for done, item in enumerate(items):
            self.tick(done / total if total else 0.0, words(item))
            yield item
        self.tick(1.0)
