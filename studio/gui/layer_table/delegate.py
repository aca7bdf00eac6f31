"""How a cell is painted: text by weight, bars with heat, treatments as chips."""

from __future__ import annotations

from PySide6.QtCore import QModelIndex, QObject, QPersistentModelIndex, QPointF, QRect, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QPen
from PySide6.QtWidgets import QStyle, QStyledItemDelegate, QStyleOptionViewItem

from studio.gui.figures import COLUMNS, treatment_text
from studio.gui.layer_table.model import LayerModel
from studio.gui.theme import SMALL_PX, Theme, contrast

ROW_HEIGHT = 26
CARET_WIDTH = 24  # at the right of a treatment, where a click opens the menu
_PADDING = 9
_CHIP_HEIGHT, _CHIP_PADDING, _CHIP_GAP = 17, 7, 6
_BAR_HEIGHT = 8
_DIM_COLUMNS = {"op", "dtype", "kernel", "output"}


class LayerDelegate(QStyledItemDelegate):
    """Paints all cells of the layer table."""

    def __init__(self, theme: Theme, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._text_font = theme.font()
        self._chip_font = theme.font(SMALL_PX)

    def sizeHint(self, _option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex) -> QSize:
        """Rows are equally high; a column's width is the table's business."""
        width = QFontMetrics(self._text_font).horizontalAdvance(str(index.data() or ""))
        return QSize(width + 2 * _PADDING, ROW_HEIGHT)

    def paint(
        self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> None:
        """Paint one cell."""
        model = index.model()
        assert isinstance(model, LayerModel)
        rect: QRect = option.rect
        state: QStyle.StateFlag = option.state
        selected = bool(state & QStyle.StateFlag.State_Selected)
        tokens = self._theme.tokens
        painter.save()
        ground = QColor(tokens.selection if selected else tokens.panel)
        if state & QStyle.StateFlag.State_MouseOver and not selected:
            ground = QColor(tokens.raised)
        painter.fillRect(rect, ground)
        painter.setPen(QColor(tokens.line))
        painter.drawLine(rect.bottomLeft(), rect.bottomRight())
        if state & QStyle.StateFlag.State_HasFocus:
            painter.setPen(QPen(QColor(tokens.accent), 1))
            painter.drawRect(rect.adjusted(0, 0, -1, -1))
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        column = COLUMNS[index.column()].id
        if column == "sensitivity":
            self._paint_bar(painter, rect, model, index.row(), ground)
        elif column == "treatment":
            caret = selected or bool(state & QStyle.StateFlag.State_MouseOver)
            self._paint_treatment(painter, rect, model, index.row(), ground, caret)
        else:
            dim = column in _DIM_COLUMNS or (column == "after" and not self._is_treated(model, index.row()))
            inner = rect.adjusted(_PADDING, 0, -_PADDING, 0)
            self._paint_text(painter, inner, str(index.data()), index, self._ink(ground, dim=dim))
        painter.restore()

    # ------------------------------------------------------------ inside

    def _ink(self, ground: QColor, *, dim: bool) -> QColor:
        """The colour of words, never under 4.5 : 1."""
        faint, full = self._theme.color("dim"), self._theme.color("text")
        return faint if dim and contrast(faint, ground) >= 4.5 else full

    def _is_treated(self, model: LayerModel, row: int) -> bool:
        return model.layer(row).name in model.known.after

    def _paint_text(
        self,
        painter: QPainter,
        rect: QRect,
        text: str,
        index: QModelIndex | QPersistentModelIndex,
        ink: QColor,
    ) -> None:
        metrics = QFontMetrics(self._text_font)
        numeric = bool(index.data(Qt.ItemDataRole.TextAlignmentRole) & Qt.AlignmentFlag.AlignRight)
        cut = Qt.TextElideMode.ElideRight if numeric else Qt.TextElideMode.ElideMiddle
        side = Qt.AlignmentFlag.AlignRight if numeric else Qt.AlignmentFlag.AlignLeft
        painter.setFont(self._text_font)
        painter.setPen(ink)
        painter.drawText(
            rect, side | Qt.AlignmentFlag.AlignVCenter, metrics.elidedText(text, cut, rect.width())
        )

    def _paint_bar(self, painter: QPainter, rect: QRect, model: LayerModel, row: int, ground: QColor) -> None:
        layer = model.layer(row)
        score = model.known.scores.get(layer.name)
        if score is not None and score.refused:
            painter.setFont(self._chip_font)
            painter.setPen(self._ink(ground, dim=True))
            painter.drawText(rect.adjusted(_PADDING, 0, 0, 0), Qt.AlignmentFlag.AlignVCenter, "refused")
            return
        if not model.known.scanned:
            painter.setFont(self._text_font)
            painter.setPen(self._ink(ground, dim=True))
            painter.drawText(rect.adjusted(_PADDING, 0, 0, 0), Qt.AlignmentFlag.AlignVCenter, "–")
            return
        width = min(rect.width() - 2 * _PADDING, 180)
        track = QRectF(
            rect.left() + _PADDING, rect.center().y() - _BAR_HEIGHT / 2 + 0.5, max(8, width), _BAR_HEIGHT
        )
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self._theme.color("track"))
        painter.drawRoundedRect(track, 2, 2)
        share = model.share(layer.name)
        if share is not None:
            painter.setBrush(self._theme.heat(share))
            track.setWidth(max(3.0, track.width() * share))
            painter.drawRoundedRect(track, 2, 2)

    def _paint_treatment(
        self, painter: QPainter, rect: QRect, model: LayerModel, row: int, ground: QColor, caret: bool
    ) -> None:
        layer, known = model.layer(row), model.known
        inner = rect.adjusted(_PADDING, 0, -CARET_WIDTH if caret else -_PADDING, 0)
        treatment = known.treatments.get(layer.name)
        if treatment is None or not treatment.settings:
            metrics = QFontMetrics(self._text_font)
            words = metrics.elidedText(
                treatment_text(layer, known), Qt.TextElideMode.ElideRight, inner.width()
            )
            painter.setFont(self._text_font)
            painter.setPen(self._ink(ground, dim=True))
            painter.drawText(inner, Qt.AlignmentFlag.AlignVCenter, words)
        else:
            refused = layer.name in known.refused
            left = inner.left()
            for settings in treatment.settings:
                fill, ink = self._theme.chip(settings.slot)
                words = f"{settings.chip} · refused" if refused else settings.chip
                left = self._paint_chip(painter, left, inner, words, fill, ink, refused=refused)
        if caret:
            self._paint_caret(painter, rect, self._ink(ground, dim=True))

    def _paint_chip(
        self,
        painter: QPainter,
        left: int,
        inside: QRect,
        words: str,
        fill: QColor,
        ink: QColor,
        *,
        refused: bool,
    ) -> int:
        metrics = QFontMetrics(self._chip_font)
        room = inside.right() - left - 2 * _CHIP_PADDING
        if room < 12:
            return left
        words = metrics.elidedText(words, Qt.TextElideMode.ElideRight, room)
        width = metrics.horizontalAdvance(words) + 2 * _CHIP_PADDING
        box = QRectF(left, inside.center().y() - _CHIP_HEIGHT / 2 + 0.5, width, _CHIP_HEIGHT)
        painter.setPen(QPen(self._theme.color("bad"), 1) if refused else Qt.PenStyle.NoPen)
        painter.setBrush(fill)
        painter.drawRoundedRect(box, _CHIP_HEIGHT / 2, _CHIP_HEIGHT / 2)
        font = QFont(self._chip_font)
        font.setStrikeOut(refused)
        painter.setFont(font)
        painter.setPen(ink)
        painter.drawText(box, Qt.AlignmentFlag.AlignCenter, words)
        return left + int(width) + _CHIP_GAP

    def _paint_caret(self, painter: QPainter, rect: QRect, ink: QColor) -> None:
        x, y = rect.right() - CARET_WIDTH / 2, rect.center().y() + 0.5
        painter.setPen(QPen(ink, 1.4))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawPolyline([QPointF(x - 4, y - 2), QPointF(x, y + 2), QPointF(x + 4, y - 2)])
