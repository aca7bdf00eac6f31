"""The layer table: what every layer costs and what it is to get."""

from studio.gui.layer_table.panel import LayerTable

__all__ = ["LayerTable"]
