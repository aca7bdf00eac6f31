"""What the panel asks of whatever draws the graph: Netron or the native overview."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PySide6.QtCore import QPoint, Signal
from PySide6.QtWidgets import QWidget

from studio.app.project import Version

Direction = Literal["horizontal", "vertical"]


@dataclass(frozen=True)
class Paint:
    """The colours of one layer's nodes and the words of their tooltip; '' = as they are."""

    ground: str
    ink: str
    words: str


class Canvas(QWidget):
    """Draws one version's graph.

    Signals:
        picked: a layer was clicked, or '' for the ground; True adds to the selection.
        menu_asked: a layer was clicked with the other button, here on the screen.
        ready: a graph has been drawn; how many nodes.
        found: how many nodes the searched text is found in.
        failed: this version's graph cannot be drawn, in words.
        lost: nothing can be drawn any more, in words.
    """

    picked = Signal(str, bool)
    menu_asked = Signal(str, QPoint)
    ready = Signal(int)
    found = Signal(int)
    failed = Signal(str)
    lost = Signal(str)

    def open(self, version: Version) -> None:
        """Draw a version's graph."""
        raise NotImplementedError

    def paint_layers(self, paints: dict[str, Paint]) -> None:
        """Colour layers, by name; nodes of no layer stay neutral."""
        raise NotImplementedError

    def select(self, layers: Sequence[str], *, reveal: bool) -> None:
        """Mark these layers; `reveal` brings the last one into sight."""
        raise NotImplementedError

    def search(self, text: str, which: int) -> None:
        """Mark nodes that hold the text in name or operator, and show the `which`-th of them."""
        raise NotImplementedError

    def fit(self) -> None:
        """Show the whole graph."""
        raise NotImplementedError

    def zoom(self, factor: float) -> None:
        """Larger (above 1) or smaller."""
        raise NotImplementedError

    def set_direction(self, direction: Direction) -> None:
        """Lay the graph out from left to right, or from top to bottom."""
        raise NotImplementedError

    def set_shapes(self, shown: bool) -> None:
        """Write tensor shapes beside the lines, where the canvas can."""

    def shut(self) -> None:
        """Free what must be freed in order, before the window goes."""
