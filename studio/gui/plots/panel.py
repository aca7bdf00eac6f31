"""The three plots beside each other."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QFrame, QHBoxLayout, QWidget

from studio.app.session import Session
from studio.gui.plots.curves import LatencyPlot, SizePlot
from studio.gui.plots.trade_off import TradeOffPlot
from studio.gui.selection import Selection
from studio.gui.theme import Theme


class PlotsPanel(QWidget):
    """Size, latency, trade-off."""

    def __init__(
        self, session: Session, selection: Selection, theme: Theme, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.setObjectName("panel")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.size_plot = SizePlot(session, selection, theme)
        self.latency_plot = LatencyPlot(session, selection, theme)
        self.trade_off_plot = TradeOffPlot(session, selection, theme)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(0)
        for i, plot in enumerate((self.size_plot, self.latency_plot, self.trade_off_plot)):
            if i:
                line = QFrame()
                line.setProperty("role", "column")
                row.addWidget(line)
            row.addWidget(plot, 1)
        self.setMinimumHeight(130)
