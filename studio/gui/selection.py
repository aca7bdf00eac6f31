"""The selected layers: one object that the table, the graph and the inspector all watch."""

from __future__ import annotations

from collections.abc import Iterable

from PySide6.QtCore import QObject, Signal


class Selection(QObject):
    """Which layers are selected, in the order they were chosen, and which one is current.

    Signals:
        changed: the layers or the current one are others than before; carries the source
            (any object; usually the panel that set it), so that a panel can ignore its own news.
        revealed: a layer is to be brought into sight, by name; it is selected already.
    """

    changed = Signal(object)
    revealed = Signal(str)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._layers: tuple[str, ...] = ()
        self._current = ""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the selected layers."""
        return self._layers

    @property
    def current(self) -> str:
        """The layer that details are shown of; '' when nothing is selected."""
        return self._current

    def set(self, layers: Iterable[str], source: object = None, current: str = "") -> None:
        """Select exactly these layers.

        Args:
            layers: names; repeated ones count once.
            source: who selects; handed on by `changed`.
            current: which of them is current; '' keeps the current one if it is still selected,
                else takes the last.
        """
        chosen = tuple(dict.fromkeys(layers))
        if not current or current not in chosen:
            current = self._current if self._current in chosen else (chosen[-1] if chosen else "")
        if (chosen, current) == (self._layers, self._current):
            return
        self._layers, self._current = chosen, current
        self.changed.emit(source)

    def reveal(self, layer: str) -> None:
        """Bring a layer into sight wherever layers are drawn, selecting it if it is not."""
        if layer not in self._layers:
            self.set((layer,))
        self.revealed.emit(layer)

    def clear(self, source: object = None) -> None:
        """Select nothing."""
        self.set((), source)
