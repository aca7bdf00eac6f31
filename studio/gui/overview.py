"""The native overview: the whole graph, however large, painted with as much detail as there is room for."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from time import perf_counter

from PySide6.QtCore import QEvent, QLineF, QPointF, QRectF, Qt, QTimer
from PySide6.QtGui import (
    QColor,
    QContextMenuEvent,
    QFontMetricsF,
    QHelpEvent,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QResizeEvent,
    QWheelEvent,
)
from PySide6.QtWidgets import QToolTip, QWidget

from studio.app.project import Version
from studio.gui.canvas import Canvas, Direction, Paint
from studio.gui.graph_layout import LANE, Place, layered
from studio.gui.theme import Theme, contrast, mix
from studio.records.model import Outline, OutlineNode

_BOX = (122.0, 40.0)
_MARGIN = 40.0
_CHUNK_SECONDS = 0.008  # of layout between two events
_CHUNK = 1000  # boxes or lines made at a time
_TILE = 1500.0  # side of the squares that nodes and edges are sorted into
_WORDS_AT, _ROUND_AT = 0.45, 0.2  # zoom from which boxes have words, and round corners
_MOST, _LEAST = 2.5, 0.003


class Overview(Canvas):
    """Draws an `Outline`. Drag or scroll to move, Ctrl+wheel to zoom, click to select."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._outline = Outline(nodes=(), edges=())
        self._boxes: list[QRectF] = []
        self._lines: list[QLineF] = []
        self._tiles, self._line_tiles = Tiles(), Tiles()
        self._all = QRectF()
        self._of_layer: dict[str, list[int]] = {}
        self._paints: dict[str, Paint] = {}
        self._selected: set[int] = set()
        self._found: list[int] = []
        self._shown = -1
        self._chosen: tuple[str, ...] = ()
        self._direction: Direction = "horizontal"
        self._work: Generator[None, None, None] | None = None
        self._zoom, self._origin = 1.0, QPointF()  # widget place = scene place * zoom + origin
        self._touched = False
        self._drag: tuple[QPointF, QPointF] | None = None
        self._steps = QTimer(self, interval=0)
        self._steps.timeout.connect(self._lay_out_more)
        self.setAccessibleName("Overview of the graph")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMouseTracking(True)
        theme.changed.connect(self.update)

    # ------------------------------------------------------------ what the panel asks

    def open(self, version: Version) -> None:
        """Lay the version's outline out, a little between two events, then draw it."""
        self._outline = _without_constants(version.outline or Outline(nodes=(), edges=()))
        self._of_layer = _by_layer(self._outline.nodes, [layer.name for layer in version.layers])
        self._touched = False
        self._boxes, self._lines, self._found = [], [], []
        self._tiles, self._line_tiles = Tiles(), Tiles()
        self._selected = set()
        self._start()

    def paint_layers(self, paints: dict[str, Paint]) -> None:
        """Colour layers."""
        self._paints = paints
        self.update()

    def select(self, layers: Sequence[str], *, reveal: bool) -> None:
        """Mark layers."""
        self._chosen = tuple(layers)
        self._selected = {index for name in layers for index in self._of_layer.get(name, ())}
        if reveal and layers and self._boxes:
            for index in self._of_layer.get(layers[-1], ())[:1]:
                self._bring_into_sight(self._boxes[index])
        self.update()

    def search(self, text: str, which: int) -> None:
        """Mark and show what holds the text."""
        wanted = text.lower()
        nodes = enumerate(self._outline.nodes)
        self._found = (
            [
                i
                for i, n in nodes
                if wanted in n.name.lower() or wanted in n.op.lower() or wanted in n.key.lower()
            ]
            if wanted
            else []
        )
        self._shown = self._found[which % len(self._found)] if self._found else -1
        if self._shown >= 0 and self._boxes:
            self._zoom_to(max(self._zoom, _WORDS_AT), QPointF(self.width() / 2, self.height() / 2))
            self._bring_into_sight(self._boxes[self._shown])
        self.update()
        self.found.emit(len(self._found))

    def fit(self) -> None:
        """Show the whole graph."""
        box = self._extent()
        if box.isEmpty() or self.width() < 10 or self.height() < 10:
            return
        room = box.adjusted(-_MARGIN, -_MARGIN, _MARGIN, _MARGIN)
        self._zoom = min(1.0, self.width() / room.width(), self.height() / room.height())
        self._origin = QPointF(self.width() / 2, self.height() / 2) - room.center() * self._zoom
        self.update()

    def zoom(self, factor: float) -> None:
        """Larger or smaller about the middle."""
        self._touched = True
        self._zoom_to(self._zoom * factor, QPointF(self.width() / 2, self.height() / 2))

    def set_direction(self, direction: Direction) -> None:
        """Lay out from left to right or from top to bottom."""
        if direction != self._direction:
            self._direction = direction
            self._touched = False
            self._start()

    # ------------------------------------------------------------ layout

    def _start(self) -> None:
        room = max(self.width(), 1) / max(self.height(), 1)
        aspect = room if self._direction == "horizontal" else 1 / room
        self._work = self._lay_out(aspect)
        self._steps.start()
        self.update()

    def _lay_out_more(self) -> None:
        end = perf_counter() + _CHUNK_SECONDS
        while self._work is not None and perf_counter() < end:
            try:
                next(self._work)
            except StopIteration:
                self._work = None
                self._steps.stop()

    def _lay_out(self, aspect: float) -> Generator[None, None, None]:
        outline = self._outline
        laid = yield from layered(len(outline.nodes), outline.edges, aspect)
        yield
        places = laid.places
        if self._direction == "vertical":
            places = tuple((across * _BOX[0] / LANE * 1.25, along * 0.6) for along, across in places)
        width, height = _BOX
        boxes: list[QRectF] = []
        lines: list[QLineF] = []
        tiles, line_tiles = Tiles(), Tiles()
        for start in range(0, len(places), _CHUNK):
            for x, y in places[start : start + _CHUNK]:
                boxes.append(QRectF(x - width / 2, y - height / 2, width, height))
                tiles.add(boxes[-1])
            yield
        for start in range(0, len(outline.edges), _CHUNK):
            for tail, head in outline.edges[start : start + _CHUNK]:
                lines.append(_line(places[tail], places[head], self._direction))
                line_tiles.add(QRectF(lines[-1].p1(), lines[-1].p2()).normalized())
            yield
        self._boxes, self._lines, self._tiles, self._line_tiles = boxes, lines, tiles, line_tiles
        self._all = _around(places)
        self.fit()
        self.select(self._chosen, reveal=False)
        self.ready.emit(len(boxes))

    def _extent(self) -> QRectF:
        return self._all if self._boxes else QRectF()

    # ------------------------------------------------------------ painting

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Edges, then boxes by colour, then words where they are legible."""
        painter = QPainter(self)
        tokens = self._theme.tokens
        painter.fillRect(self.rect(), QColor(tokens.canvas))
        if not self._boxes:
            painter.setPen(QColor(tokens.dim))
            words = (
                "Laying the graph out …"
                if self._work is not None
                else "The outline of the graph is not known."
            )
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, words)
            return
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, self._zoom >= _ROUND_AT / 2)
        painter.translate(self._origin)
        painter.scale(self._zoom, self._zoom)
        seen = self._scene_rect()
        self._paint_lines(painter, seen)
        visible = self._tiles.within(seen)
        self._paint_boxes(painter, visible)
        if self._zoom >= _WORDS_AT:
            self._paint_words(painter, [i for i in visible if self._boxes[i].intersects(seen)])
        self._paint_marks(painter)

    def _paint_lines(self, painter: QPainter, seen: QRectF) -> None:
        color = mix(
            (self._theme.tokens.canvas, self._theme.tokens.dim), 0.75 if self._zoom >= _ROUND_AT else 0.45
        )
        painter.setPen(QPen(color, 1.3 if self._zoom > 0.6 else 0))
        painter.drawLines([self._lines[i] for i in self._line_tiles.within(seen)])

    def _paint_boxes(self, painter: QPainter, visible: Iterable[int]) -> None:
        by_color: dict[str, list[QRectF]] = {}
        neutral = self._theme.tokens.raised if self._zoom >= _ROUND_AT else self._theme.tokens.line
        for index in visible:
            paint = self._paints.get(self._outline.nodes[index].layer)
            color = paint.ground if paint and paint.ground else neutral
            by_color.setdefault(color, []).append(self._boxes[index])
        edge = QPen(QColor(self._theme.tokens.line), 1)
        painter.setPen(edge if self._zoom >= _ROUND_AT else Qt.PenStyle.NoPen)
        for color, boxes in by_color.items():
            painter.setBrush(QColor(color))
            if self._zoom >= _ROUND_AT:
                for box in boxes:
                    painter.drawRoundedRect(box, 5, 5)
            else:
                painter.drawRects(boxes)

    def _paint_words(self, painter: QPainter, visible: Iterable[int]) -> None:
        strong = self._theme.font(12)
        strong.setWeight(strong.Weight.DemiBold)
        small = self._theme.font(10)
        metrics = QFontMetricsF(small)
        for index in visible:
            node, box = self._outline.nodes[index], self._boxes[index]
            paint = self._paints.get(node.layer)
            ground = QColor(paint.ground) if paint and paint.ground else self._theme.color("raised")
            ink = QColor(paint.ink) if paint and paint.ground else self._theme.color("text")
            dim = self._theme.color("dim")
            painter.setFont(strong)
            painter.setPen(ink)
            painter.drawText(box.adjusted(4, 3, -4, -18), Qt.AlignmentFlag.AlignCenter, node.op)
            painter.setFont(small)
            painter.setPen(dim if not (paint and paint.ground) and contrast(dim, ground) >= 4.5 else ink)
            name = metrics.elidedText(node.name or node.key, Qt.TextElideMode.ElideMiddle, box.width() - 10)
            painter.drawText(box.adjusted(4, 20, -4, -3), Qt.AlignmentFlag.AlignCenter, name)

    def _paint_marks(self, painter: QPainter) -> None:
        """Marks are at least two pixels wide and boxes four pixels large, at any zoom."""
        painter.setBrush(Qt.BrushStyle.NoBrush)
        for indices, token, style in (
            (self._found, "caution", Qt.PenStyle.DashLine),
            (self._selected, "accent", Qt.PenStyle.SolidLine),
        ):
            pen = QPen(self._theme.color(token), 2.5)
            pen.setCosmetic(True)
            pen.setStyle(style)
            painter.setPen(pen)
            grow = max(0.0, 4 / self._zoom - _BOX[1]) / 2
            for index in indices:
                painter.drawRoundedRect(self._boxes[index].adjusted(-grow, -grow, grow, grow), 5, 5)
        if self._shown >= 0:
            painter.setPen(QPen(self._theme.color("caution"), 4 / self._zoom))
            painter.drawRoundedRect(self._boxes[self._shown], 5, 5)

    # ------------------------------------------------------------ where things are

    def _scene_rect(self) -> QRectF:
        start = -self._origin / self._zoom
        return QRectF(start.x(), start.y(), self.width() / self._zoom, self.height() / self._zoom)

    def node_at(self, place: QPointF) -> OutlineNode | None:
        """The node under a place of the widget; far out, the nearest within a few pixels."""
        scene = (place - self._origin) / self._zoom
        reach = 4 / self._zoom
        near = QRectF(scene.x() - reach, scene.y() - reach, 2 * reach, 2 * reach)
        hits = [i for i in self._tiles.within(near) if self._boxes[i].intersects(near)]
        if not hits:
            return None
        best = min(hits, key=lambda i: (self._boxes[i].center() - scene).manhattanLength())
        return self._outline.nodes[best]

    def place_of(self, layer: str) -> QPointF | None:
        """The middle of a layer's first node, in the widget; None when it is not drawn."""
        indices = self._of_layer.get(layer)
        if not indices or not self._boxes:
            return None
        return self._boxes[indices[0]].center() * self._zoom + self._origin

    def layers_drawn(self) -> tuple[str, ...]:
        """Layers that have a place, in no order."""
        return tuple(self._of_layer) if self._boxes else ()

    def _bring_into_sight(self, box: QRectF) -> None:
        if not self._scene_rect().contains(box):
            self._origin = QPointF(self.width() / 2, self.height() / 2) - box.center() * self._zoom
            self._touched = True

    def _zoom_to(self, zoom: float, about: QPointF) -> None:
        zoom = min(_MOST, max(_LEAST, zoom))
        scene = (about - self._origin) / self._zoom
        self._zoom = zoom
        self._origin = about - scene * zoom
        self.update()

    # ------------------------------------------------------------ Qt's events

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Keep the whole graph in sight until the user moves."""
        super().resizeEvent(event)
        if not self._touched:
            self.fit()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """The beginning of a click or a drag."""
        self._drag = (event.position(), self._origin)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Drag the graph."""
        if self._drag is None or not event.buttons():
            over = self.node_at(event.position())
            self.setCursor(Qt.CursorShape.PointingHandCursor if over else Qt.CursorShape.ArrowCursor)
            return
        start, origin = self._drag
        moved = event.position() - start
        if self._touched or moved.manhattanLength() > 4:
            self._touched = True
            self._origin = origin + moved
            self.setCursor(Qt.CursorShape.ClosedHandCursor)
            self.update()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        """A press that did not move is a click."""
        if self._drag is None:
            return
        start, _ = self._drag
        self._drag = None
        if (
            event.position() - start
        ).manhattanLength() > 4 or event.button() is not Qt.MouseButton.LeftButton:
            return
        node = self.node_at(event.position())
        keys = Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier
        self.picked.emit(node.layer if node else "", bool(event.modifiers() & keys))

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:
        """The menu of a layer."""
        node = self.node_at(QPointF(event.pos()))
        if node is not None and node.layer:
            self.menu_asked.emit(node.layer, event.globalPos())

    def wheelEvent(self, event: QWheelEvent) -> None:
        """The wheel zooms about the pointer; with Shift it moves sideways."""
        self._touched = True
        delta = event.angleDelta()
        if event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            self._origin += QPointF(delta.y() or delta.x(), 0)
            self.update()
        else:
            self._zoom_to(self._zoom * math.pow(1.0015, delta.y()), event.position())

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Arrows move, plus and minus zoom, Space shows everything."""
        moves = {
            Qt.Key.Key_Left: (60, 0), Qt.Key.Key_Right: (-60, 0), Qt.Key.Key_Up: (0, 60), Qt.Key.Key_Down: (0, -60),
        }  # fmt: skip
        if event.key() in moves:
            self._touched = True
            self._origin += QPointF(*moves[Qt.Key(event.key())])
            self.update()
        elif event.key() in {Qt.Key.Key_Plus, Qt.Key.Key_Minus}:
            self.zoom(1.25 if event.key() == Qt.Key.Key_Plus else 0.8)
        elif event.key() == Qt.Key.Key_Space:
            self.fit()
        else:
            super().keyPressEvent(event)

    def event(self, event: QEvent) -> bool:
        """Tooltips of nodes."""
        if isinstance(event, QHelpEvent):
            node = self.node_at(QPointF(event.pos()))
            paint = self._paints.get(node.layer) if node else None
            words = paint.words if paint else f"{node.op}\n{node.name or node.key}" if node else ""
            QToolTip.showText(event.globalPos(), words, self)
            return True
        return super().event(event)


def _without_constants(outline: Outline) -> Outline:
    """Constants belong to what uses them, as in Netron."""
    kept = [i for i, node in enumerate(outline.nodes) if node.op != "Constant" or node.layer]
    new = {old: i for i, old in enumerate(kept)}
    edges = tuple((new[a], new[b]) for a, b in outline.edges if a in new and b in new)
    return Outline(nodes=tuple(outline.nodes[i] for i in kept), edges=edges)


def _by_layer(nodes: Sequence[OutlineNode], layers: Sequence[str]) -> dict[str, list[int]]:
    """The nodes of every layer; a layer inside a subgraph is shown by the node that holds the subgraph."""
    found: dict[str, list[int]] = {}
    holders: dict[str, int] = {}
    for index, node in enumerate(nodes):
        if node.layer:
            found.setdefault(node.layer, []).append(index)
        holders.setdefault(node.name or node.key, index)
    for layer in layers:
        if layer not in found:
            for cut in (i for i, character in enumerate(layer) if character == "/"):
                if layer[:cut] in holders:
                    found[layer] = [holders[layer[:cut]]]
                    break
    return found


def _line(tail: Place, head: Place, direction: Direction) -> QLineF:
    """From the side of one box to the facing side of another."""
    half = _BOX[0] / 2 if direction == "horizontal" else _BOX[1] / 2
    if direction == "horizontal":
        return QLineF(tail[0] + half, tail[1], head[0] - half, head[1])
    return QLineF(tail[0], tail[1] + half, head[0], head[1] - half)


def _around(places: Sequence[Place]) -> QRectF:
    """The rectangle of all boxes."""
    width, height = _BOX
    left, right = min((x for x, _ in places), default=0), max((x for x, _ in places), default=0)
    top, bottom = min((y for _, y in places), default=0), max((y for _, y in places), default=0)
    return QRectF(left - width / 2, top - height / 2, right - left + width, bottom - top + height)


class Tiles:
    """Indices of rectangles by the squares they touch, so that only what is seen need be looked at."""

    def __init__(self) -> None:
        self._tiles: dict[tuple[int, int], list[int]] = {}
        self._count = 0

    def add(self, box: QRectF) -> None:
        """Add the next rectangle."""
        columns = range(math.floor(box.left() / _TILE), math.floor(box.right() / _TILE) + 1)
        rows = range(math.floor(box.top() / _TILE), math.floor(box.bottom() / _TILE) + 1)
        for column in columns:
            for row in rows:
                self._tiles.setdefault((column, row), []).append(self._count)
        self._count += 1

    def within(self, seen: QRectF) -> Iterable[int]:
        """Indices of what may be in a rectangle, each once."""
        columns = range(math.floor(seen.left() / _TILE), math.floor(seen.right() / _TILE) + 1)
        rows = range(math.floor(seen.top() / _TILE), math.floor(seen.bottom() / _TILE) + 1)
        if len(columns) * len(rows) >= len(self._tiles):
            return range(self._count)
        return {index for column in columns for row in rows for index in self._tiles.get((column, row), ())}
