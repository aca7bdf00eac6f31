"""How a cell is painted: text by weight, bars with heat, treatments as chips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import QModelIndex, QObject, QPersistentModelIndex, QPointF, QRect, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QPen
from PySide6.QtWidgets import QStyle, QStyledItemDelegate, QStyleOptionViewItem

from studio.gui.figures import COLUMNS, chips, kept
from studio.gui.layer_table.model import LayerModel
from studio.gui.theme import SMALL_PX, Theme, contrast
from studio.records.steps import Settings, Slot

ROW_HEIGHT = 26
CARET_WIDTH = 24  # at the right of a treatment, where a click opens the menu
PADDING = 6  # left and right of what a cell shows; the style sheet gives headers the same
_CHIP_HEIGHT, _CHIP_PADDING, _CHIP_GAP = 17, 6, 4
_BAR_HEIGHT = 8
_DIM_COLUMNS = {"op", "dtype", "kernel", "output"}
# Plain numbers: Python's flags would take a third of the painting.
_SELECTED, _HOVERED = QStyle.StateFlag.State_Selected.value, QStyle.StateFlag.State_MouseOver.value
_FOCUSED = QStyle.StateFlag.State_HasFocus.value
_MIDDLE = Qt.AlignmentFlag.AlignVCenter.value
_LEFT, _RIGHT = Qt.AlignmentFlag.AlignLeft.value | _MIDDLE, Qt.AlignmentFlag.AlignRight.value | _MIDDLE


@dataclass(frozen=True)
class Ground:
    """The colours of one kind of row."""

    fill: QColor
    ink: QColor
    dim: QColor  # never under 4.5 : 1 on `fill`


class LayerDelegate(QStyledItemDelegate):
    """Paints all cells of the layer table."""

    def __init__(self, theme: Theme, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._text_font = theme.font()
        self._chip_font = theme.font(SMALL_PX)
        self._metrics = QFontMetrics(self._text_font)
        self._chip_metrics = QFontMetrics(self._chip_font)
        self._take_colors()
        theme.changed.connect(self._take_colors)

    def sizeHint(self, _option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex) -> QSize:
        """Rows are equally high; a column's width is the table's business."""
        return QSize(self._metrics.horizontalAdvance(str(index.data() or "")) + 2 * PADDING, ROW_HEIGHT)

    def paint(
        self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> None:
        """Paint one cell."""
        model = index.model()
        assert isinstance(model, LayerModel)
        rect: QRect = option.rect
        state: int = option.state.value
        column, row = COLUMNS[index.column()], index.row()
        pointed = bool(state & (_SELECTED | _HOVERED))
        ground = self._selected if state & _SELECTED else self._hovered if state & _HOVERED else self._plain
        painter.fillRect(rect, ground.fill)
        painter.setPen(self._line)
        painter.drawLine(rect.left(), rect.bottom(), rect.right(), rect.bottom())
        if state & _FOCUSED:
            painter.setPen(self._focus)
            painter.drawRect(rect.adjusted(0, 0, -1, -1))
        if column.id == "sensitivity":
            self._paint_bar(painter, rect, model, row, ground)
        elif column.id == "treatment":
            self._paint_treatment(painter, rect, model, row, ground, caret=pointed)
        else:
            untreated = column.id == "after" and model.layer(row).name not in model.known.after
            ink = ground.dim if untreated or column.id in _DIM_COLUMNS else ground.ink
            cut = Qt.TextElideMode.ElideMiddle if column.id == "layer" else Qt.TextElideMode.ElideRight
            self._paint_text(painter, rect, model.text(row, column), ink, right=column.numeric, cut=cut)

    # ------------------------------------------------------------ inside

    def _take_colors(self) -> None:
        color = self._theme.color
        self._plain, self._hovered, self._selected = (
            self._ground(color(name)) for name in ("panel", "raised", "selection")
        )
        self._line = QPen(color("line"))
        self._focus = QPen(color("accent"), 1)

    def _ground(self, fill: QColor) -> Ground:
        faint, full = self._theme.color("dim"), self._theme.color("text")
        return Ground(fill, full, faint if contrast(faint, fill) >= 4.5 else full)

    def _paint_text(
        self,
        painter: QPainter,
        cell: QRect,
        text: str,
        ink: QColor,
        *,
        right: bool = False,
        cut: Qt.TextElideMode = Qt.TextElideMode.ElideRight,
    ) -> None:
        rect = cell.adjusted(PADDING, 0, -PADDING, 0)
        if self._metrics.horizontalAdvance(text) > rect.width():
            text = self._metrics.elidedText(text, cut, rect.width())
        painter.setFont(self._text_font)
        painter.setPen(ink)
        painter.drawText(rect, _RIGHT if right else _LEFT, text)

    def _paint_bar(self, painter: QPainter, rect: QRect, model: LayerModel, row: int, ground: Ground) -> None:
        layer = model.layer(row)
        score = model.known.scores.get(layer.name)
        if not model.known.scanned or (score is not None and score.refused):
            self._paint_text(painter, rect, "refused" if score else "–", ground.dim)
            return
        width = min(rect.width() - 2 * PADDING, 180)
        top = rect.center().y() - _BAR_HEIGHT / 2 + 0.5
        track = QRectF(rect.left() + PADDING, top, max(8, width), _BAR_HEIGHT)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, True)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self._theme.color("track"))
        painter.drawRoundedRect(track, 2, 2)
        share = model.share(layer.name)
        if share is not None:
            painter.setBrush(self._theme.heat(share))
            track.setWidth(max(3.0, track.width() * share))
            painter.drawRoundedRect(track, 2, 2)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)

    def _paint_treatment(
        self, painter: QPainter, rect: QRect, model: LayerModel, row: int, ground: Ground, *, caret: bool
    ) -> None:
        layer, known = model.layer(row), model.known
        room = rect.adjusted(0, 0, -CARET_WIDTH + PADDING, 0) if caret else rect
        staged = chips(layer, known)
        if not staged:
            self._paint_text(painter, room, kept(layer), ground.dim)
        inner = room.adjusted(PADDING, 0, -PADDING, 0)
        left, brief = inner.left(), not self._fit([settings for settings, _ in staged], inner.width())
        for settings, refused in staged:
            words = settings.brief if brief else settings.chip
            if refused and len(staged) == 1:
                words += " · refused"
            left = self._paint_chip(painter, left, inner, words, settings.slot, refused=refused)
        if caret:
            self._paint_caret(painter, rect, ground.dim)

    def _fit(self, settings: Sequence[Settings], width: int) -> bool:
        """Whether chips in full words lie beside each other."""
        words = sum(self._chip_metrics.horizontalAdvance(s.chip) + 2 * _CHIP_PADDING for s in settings)
        return words + _CHIP_GAP * (len(settings) - 1) <= width

    def _paint_chip(
        self, painter: QPainter, left: int, inside: QRect, words: str, slot: Slot, *, refused: bool
    ) -> int:
        """Paint a chip and return where the next one begins."""
        room = inside.right() - left - 2 * _CHIP_PADDING
        if room < 12:
            return left
        fill, ink = self._theme.chip(slot)
        words = self._chip_metrics.elidedText(words, Qt.TextElideMode.ElideRight, room)
        width = self._chip_metrics.horizontalAdvance(words) + 2 * _CHIP_PADDING
        box = QRectF(left, inside.center().y() - _CHIP_HEIGHT / 2 + 0.5, width, _CHIP_HEIGHT)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, True)
        painter.setPen(QPen(self._theme.color("bad"), 1) if refused else Qt.PenStyle.NoPen)
        painter.setBrush(fill)
        painter.drawRoundedRect(box, _CHIP_HEIGHT / 2, _CHIP_HEIGHT / 2)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
        font = QFont(self._chip_font)
        font.setStrikeOut(refused)
        painter.setFont(font)
        painter.setPen(ink)
        painter.drawText(box, Qt.AlignmentFlag.AlignCenter, words)
        return left + int(width) + _CHIP_GAP

    def _paint_caret(self, painter: QPainter, rect: QRect, ink: QColor) -> None:
        x, y = rect.right() - CARET_WIDTH / 2, rect.center().y() + 0.5
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, True)
        painter.setPen(QPen(ink, 1.4))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawPolyline([QPointF(x - 4, y - 2), QPointF(x, y + 2), QPointF(x + 4, y - 2)])
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
