"""Panels as dock widgets with slim title bars, and the layout they start with.

A docked panel looks like a part of the window: 11 px capitals, no buttons, or no title at all
where its content speaks for itself. While the user arranges panels (View → Arrange panels), and
when one floats, every panel has a title bar to grab, and buttons.
"""

from __future__ import annotations

from itertools import pairwise

from PySide6.QtCore import QByteArray, QEvent, QSettings, Qt
from PySide6.QtGui import QMouseEvent, QResizeEvent
from PySide6.QtWidgets import QDockWidget, QHBoxLayout, QLabel, QMainWindow, QWidget

from studio.gui.theme import Theme
from studio.gui.widgets import button, caps

LAYOUT_VERSION = 1
HEADLINE_HEIGHT = 64


class TitleBar(QWidget):
    """The slim title bar of one dock: its title, an extra widget of the panel, and buttons while arranging."""

    def __init__(self, dock: Dock, theme: Theme, extra: QWidget | None) -> None:
        super().__init__(dock)
        self.setObjectName("titleBar")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self._dock, self._theme = dock, theme
        self._float = button("", self._toggle_float, role="caps", tip="Float or dock this panel")
        self._hide = button("", dock.close, role="caps", tip="Hide this panel (View shows it again)")
        self._float.setAccessibleName(f"Float or dock {dock.windowTitle()}")
        self._hide.setAccessibleName(f"Hide {dock.windowTitle()}")
        row = QHBoxLayout(self)
        row.setContentsMargins(12, 8, 8, 4)
        row.setSpacing(4)
        self.title: QLabel = caps(dock.windowTitle(), theme)
        row.addWidget(self.title)
        row.addStretch(1)
        if extra is not None:
            row.addWidget(extra)
        row.addWidget(self._float)
        row.addWidget(self._hide)
        theme.changed.connect(self._recolor)
        self._recolor()

    def set_arranging(self, arranging: bool) -> None:
        """Show the buttons, and a ground that says 'grab me'."""
        self._float.setVisible(arranging)
        self._hide.setVisible(arranging)
        self.setProperty("arranging", arranging)
        self.style().unpolish(self)
        self.style().polish(self)

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        """Float or dock, as title bars do."""
        self._toggle_float()
        event.accept()

    def _toggle_float(self) -> None:
        self._dock.setFloating(not self._dock.isFloating())

    def _recolor(self) -> None:
        self._float.setIcon(self._theme.icon("ph.arrow-square-out", "dim"))
        self._hide.setIcon(self._theme.icon("ph.x", "dim"))


class Dock(QDockWidget):
    """One panel's dock.

    Args:
        key: stable name, for saved layouts.
        title: in the title bar and the View menu.
        panel: the widget.
        bare: no title bar while docked and not arranging.
        extra: a widget at the right end of the title bar.
    """

    def __init__(
        self,
        key: str,
        title: str,
        panel: QWidget,
        theme: Theme,
        *,
        bare: bool = False,
        extra: QWidget | None = None,
    ) -> None:
        super().__init__(title)
        self.setObjectName(key)
        self._bare, self._arranging = bare, False
        self._bar = TitleBar(self, theme, extra)
        self._nothing = QWidget(self)  # Qt shows its own title bar unless there is a widget
        self._nothing.setFixedHeight(0)
        self.setWidget(panel)
        self.setAccessibleName(title)
        self.topLevelChanged.connect(lambda _floating: self._dress())
        # At first it is a window of its own; nothing says so when it is added to a row of docks but this.
        self.visibilityChanged.connect(lambda _visible: self._dress())
        self._dress()

    def arrange(self, arranging: bool) -> None:
        """Show or hide what is needed to move this panel about."""
        self._arranging = arranging
        self._dress()

    def replace_panel(self, panel: QWidget) -> None:
        """Show another widget in this dock; the one before is deleted."""
        before = self.widget()
        self.setWidget(panel)
        before.deleteLater()

    def _dress(self) -> None:
        movable = self._arranging or self.isFloating()
        wanted = self._nothing if self._bare and not movable else self._bar
        if self.titleBarWidget() is not wanted:
            self.setTitleBarWidget(wanted)
        self._bar.setVisible(wanted is self._bar)
        self._nothing.setVisible(wanted is self._nothing)
        self._bar.set_arranging(movable)


class Desk(QMainWindow):
    """The part of the window that holds the docks; the first layout, and the user's own.

    It has no central widget: the side columns keep their width and the middle takes the rest.

    Args:
        docks: by key; 'versions', 'headline', 'graph', 'table', 'inspector', then the bottom row.
        bottom: the bottom row from left to right, as (key, share of the width).
        settings: where layouts are kept.
    """

    def __init__(
        self, docks: dict[str, Dock], bottom: tuple[tuple[str, int], ...], settings: QSettings
    ) -> None:
        super().__init__()
        self.setWindowFlags(Qt.WindowType.Widget)
        self.docks, self._bottom, self._settings = docks, bottom, settings
        options = QMainWindow.DockOption
        self.setDockOptions(options.AllowNestedDocks | options.AllowTabbedDocks)
        self._fresh = True
        self.reset()

    def reset(self) -> None:
        """Put every panel back where it started."""
        docks, across, down = self.docks, Qt.Orientation.Horizontal, Qt.Orientation.Vertical
        for dock in docks.values():
            dock.setFloating(False)
            self.removeDockWidget(dock)
        # All in one area: only there does Qt keep to the sizes that it is given.
        row = [docks[key] for key, _ in self._bottom]
        self.addDockWidget(Qt.DockWidgetArea.LeftDockWidgetArea, docks["versions"])
        self.splitDockWidget(docks["versions"], row[0], down)
        self.splitDockWidget(docks["versions"], docks["headline"], across)
        self.splitDockWidget(docks["headline"], docks["inspector"], across)
        self.splitDockWidget(docks["headline"], docks["graph"], down)
        self.splitDockWidget(docks["graph"], docks["table"], down)
        for left, right in pairwise(row):
            self.splitDockWidget(left, right, across)
        for dock in docks.values():
            dock.show()
        self._fresh = True
        self._settle()

    def _settle(self) -> None:
        """Give the panels of the first layout their shares of the window."""
        docks, width, height = self.docks, self.width(), self.height()
        across, down = Qt.Orientation.Horizontal, Qt.Orientation.Vertical
        side = max(196, min(260, width * 14 // 100))
        inspector = max(320, min(400, width * 21 // 100))
        bottom = max(176, min(260, height * 24 // 100))
        above = height - bottom - 1
        middle = above - HEADLINE_HEIGHT - 2
        self.resizeDocks([docks["versions"], docks[self._bottom[0][0]]], [above, bottom], down)
        self.resizeDocks(
            [docks["headline"], docks["graph"], docks["table"]],
            [HEADLINE_HEIGHT, middle * 45 // 100, middle - middle * 45 // 100],
            down,
        )
        self.resizeDocks(
            [docks["versions"], docks["headline"], docks["inspector"]],
            [side, width - side - inspector - 2, inspector],
            across,
        )
        total = sum(share for _, share in self._bottom)
        self.resizeDocks(
            [docks[key] for key, _ in self._bottom],
            [width * share // total for _, share in self._bottom],
            across,
        )

    def arrange(self, arranging: bool) -> None:
        """Show grips on every panel, or the flat look."""
        self._fresh = self._fresh and not arranging
        for dock in self.docks.values():
            dock.arrange(arranging)

    def keep(self) -> None:
        """Keep the layout for the next start."""
        self._settings.setValue("layout", self.saveState(LAYOUT_VERSION))

    def take_up(self) -> None:
        """Take up the kept layout, if there is one that fits."""
        layout = self._settings.value("layout")
        if isinstance(layout, QByteArray) and self.restoreState(layout, LAYOUT_VERSION):
            self._fresh = False

    def event(self, event: QEvent) -> bool:
        """A press of the mouse that reaches this widget is one on a line between panels."""
        if event.type() == QEvent.Type.MouseButtonPress:
            self._fresh = False
        return super().event(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Keep the shares of the first layout until the user moves something."""
        super().resizeEvent(event)
        if self._fresh:
            self._settle()
