"""Netron in a web view, driven through `resources/graph/boot.js`.

Nodes are keyed by their first output name, which ONNX makes unique in a graph; layers inside
subgraphs carry the graph's path in their names, which tells equal keys apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QCoreApplication, QObject, QPoint, Qt, QUrl, Signal, Slot
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QVBoxLayout, QWidget

from studio.app.project import Version
from studio.gui.canvas import Canvas, Direction, Paint
from studio.gui.graph_view.scheme import START, Files, is_ours, make_profile
from studio.gui.theme import Theme
from studio.records.model import Layer

_TOKENS = ("canvas", "panel", "raised", "line", "text", "dim", "accent", "caution")


class Bridge(QObject):
    """What the page tells; its slots are called by boot.js."""

    clicked_node = Signal(str, str, bool)
    menu_wanted = Signal(str, str, int, int)
    began = Signal()
    drawn = Signal(int)
    counted = Signal(str, int)
    broke = Signal(str)

    @Slot()
    def started(self) -> None:
        """The boot module is ready for commands."""
        self.began.emit()

    @Slot(str, str, bool)
    def clicked(self, key: str, path: str, adding: bool) -> None:
        """A node was clicked: its first output name and the path of its graph; '' for the ground."""
        self.clicked_node.emit(key, path, adding)

    @Slot(str, str, int, int)
    def menu(self, key: str, path: str, x: int, y: int) -> None:
        """A node was clicked with the other button, at this place of the page."""
        self.menu_wanted.emit(key, path, x, y)

    @Slot(int)
    def rendered(self, nodes: int) -> None:
        """A graph has been drawn."""
        self.drawn.emit(nodes)

    @Slot(str, int)
    def searched(self, text: str, found: int) -> None:
        """How many nodes hold the text."""
        self.counted.emit(text, found)

    @Slot(str)
    def failed(self, words: str) -> None:
        """Netron could not open the model."""
        self.broke.emit(words)


class NetronView(Canvas):
    """The graph as Netron draws it. Makes the web engine: create it after the window is shown."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        from PySide6.QtWebChannel import QWebChannel
        from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineSettings
        from PySide6.QtWebEngineWidgets import QWebEngineView

        class Page(QWebEnginePage):
            def acceptNavigationRequest(
                self, url: QUrl | str, _kind: QWebEnginePage.NavigationType, _main: bool
            ) -> bool:
                return is_ours(QUrl(url))

            def javaScriptConsoleMessage(self, *_message: object) -> None:
                pass  # Netron's notes are not for the terminal

        self._theme = theme
        self._files = Files()
        self._waiting: list[str] = []  # commands until the page is up
        self._started = False
        self._number = 0
        self._options: dict[str, object] = {"direction": "horizontal", "shapes": False}
        self._layers: dict[str, Layer] = {}
        self._by_key: dict[str, list[Layer]] = {}
        # Owned by the application: a profile must outlive its page, whoever deletes this widget.
        self._profile = make_profile(self._files, QCoreApplication.instance())
        self.page = Page(self._profile, self)
        self.page.destroyed.connect(self._profile.deleteLater)
        self.page.setBackgroundColor(theme.color("canvas"))
        settings, flags = self.page.settings(), QWebEngineSettings.WebAttribute
        for flag in (flags.LocalContentCanAccessFileUrls, flags.PluginsEnabled, flags.PdfViewerEnabled):
            settings.setAttribute(flag, False)
        self.bridge = Bridge(self)
        channel = QWebChannel(self.page)
        channel.registerObject("bridge", self.bridge)
        self.page.setWebChannel(channel)
        self._view: QWebEngineView | None = QWebEngineView(self)
        self._view.setPage(self.page)
        self._view.setContextMenuPolicy(Qt.ContextMenuPolicy.NoContextMenu)
        self._view.setAcceptDrops(False)  # a model dropped here is the window's
        self._view.setAccessibleName("Graph of the model")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._view)
        self.setFocusProxy(self._view)
        self._connect()
        self.page.load(QUrl(START))

    def _connect(self) -> None:
        self.bridge.began.connect(self._begin)
        self.bridge.clicked_node.connect(self._clicked)
        self.bridge.menu_wanted.connect(self._ask_menu)
        self.bridge.drawn.connect(self.ready)
        self.bridge.counted.connect(lambda _text, count: self.found.emit(count))
        self.bridge.broke.connect(self.failed)
        self.page.renderProcessTerminated.connect(lambda _status, _code: self._died())
        self.page.loadFinished.connect(lambda ok: None if ok else self.lost.emit("its page did not load"))
        self._theme.changed.connect(self._recolor)

    # ------------------------------------------------------------ what the panel asks

    def open(self, version: Version) -> None:
        """Draw the weightless copy of a version."""
        self._number += 1
        self._layers = {layer.name: layer for layer in version.layers}
        self._by_key = {}
        for layer in version.layers:
            for key in layer.nodes or (layer.key,):
                self._by_key.setdefault(key, []).append(layer)
        address = self._files.offer(Path(version.stripped), self._number)
        self._call("open", address, f"{version.name}.onnx", self._options)

    def paint_layers(self, paints: dict[str, Paint]) -> None:
        """Colour layers."""
        rows = [[n, self._keys(n), p.ground, p.ink, p.words] for n, p in paints.items() if n in self._layers]
        self._call("color", rows)

    def select(self, layers: Sequence[str], *, reveal: bool) -> None:
        """Mark layers."""
        rows = [[name, self._keys(name)] for name in layers if name in self._layers]
        self._call("select", rows, reveal)

    def search(self, text: str, which: int) -> None:
        """Mark and show what holds the text."""
        self._call("search", text, which)

    def fit(self) -> None:
        """Show the whole graph."""
        self._call("fit")

    def zoom(self, factor: float) -> None:
        """Larger or smaller."""
        self._call("zoom", factor)

    def set_direction(self, direction: Direction) -> None:
        """Lay out from left to right or from top to bottom."""
        self._set_option("direction", direction)

    def set_shapes(self, shown: bool) -> None:
        """Write tensor shapes beside the lines."""
        self._set_option("shapes", shown)

    def shut(self) -> None:
        """End the page before its profile, else Qt warns and the render process lingers."""
        if self._view is None:
            return
        self._view.setPage(None)  # type: ignore[arg-type]
        self._view = None
        self.page.deleteLater()

    # ------------------------------------------------------------ inside

    def _set_option(self, name: str, value: object) -> None:
        if self._options[name] == value:
            return
        self._options[name] = value
        self._call("setOptions", self._options)

    def _keys(self, layer: str) -> list[str]:
        found = self._layers[layer]
        return list(found.nodes or (found.key,))

    def _call(self, name: str, *arguments: object) -> None:
        script = f"window.studio.{name}({', '.join(json.dumps(a) for a in arguments)}); undefined"
        if not self._started:
            self._waiting.append(script)
        elif self._view is not None:
            self.page.runJavaScript(script)

    def _begin(self) -> None:
        self._started = True
        self._recolor()
        for script in self._waiting:
            self.page.runJavaScript(script)
        self._waiting.clear()

    def _clicked(self, key: str, path: str, adding: bool) -> None:
        self.picked.emit(self._layer_at(key, path), adding)

    def _ask_menu(self, key: str, path: str, x: int, y: int) -> None:
        layer = self._layer_at(key, path)
        if layer:
            self.menu_asked.emit(layer, self.mapToGlobal(QPoint(x, y)))

    def _layer_at(self, key: str, path: str) -> str:
        """The layer that a node belongs to; '' for none."""
        found = self._by_key.get(key, [])
        if len(found) > 1 and path:
            found = [layer for layer in found if layer.name.startswith(f"{path}/")] or found
        return found[0].name if found else ""

    def _recolor(self) -> None:
        if self._view is None:
            return
        tokens = self._theme.tokens
        colors = {name: getattr(tokens, name) for name in _TOKENS}
        colors["edge"] = _between(tokens.dim, tokens.canvas).name()
        self.page.setBackgroundColor(self._theme.color("canvas"))
        self._call("theme", self._theme.dark, colors)

    def _died(self) -> None:
        self._started = False
        self.lost.emit("the web engine stopped")


def _between(a: str, b: str) -> QColor:
    one, other = QColor(a), QColor(b)
    return QColor(
        (one.red() * 2 + other.red()) // 3,
        (one.green() * 2 + other.green()) // 3,
        (one.blue() * 2 + other.blue()) // 3,
    )
