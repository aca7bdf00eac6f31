"""The graph: Netron inside the window, or the native overview. The only code that knows Netron.

`register_scheme` must be called before the application object is made.
"""

from studio.gui.graph_view.panel import GraphPanel
from studio.gui.graph_view.scheme import register_scheme

__all__ = ["GraphPanel", "register_scheme"]
