"""The plots: size and latency against the layers done, live; and the trade-off of all versions."""

from studio.gui.plots.curves import LatencyPlot, SizePlot
from studio.gui.plots.panel import PlotsPanel
from studio.gui.plots.trade_off import TradeOffPlot

__all__ = ["LatencyPlot", "PlotsPanel", "SizePlot", "TradeOffPlot"]
