"""The graph panel: Netron or the overview above, legend and search below; colours and selection between."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QPoint, Qt, QTimer, Signal
from PySide6.QtGui import QGuiApplication, QKeySequence, QShortcut, QShowEvent
from PySide6.QtWidgets import QMenu, QStackedWidget, QVBoxLayout, QWidget

from studio.app.project import Version
from studio.app.session import Session
from studio.app.view import View
from studio.base.units import shape
from studio.gui.canvas import Canvas, Direction, Paint
from studio.gui.figures import (
    BY_ID,
    Column,
    Figures,
    Heat,
    column_label,
    figures,
    heat,
    same_figures,
    shown_as,
)
from studio.gui.graph_view.legend import GraphBar
from studio.gui.graph_view.scheme import web_engine_ready
from studio.gui.overview import Overview
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from studio.gui.treatment_menu import fill_treatment_menu
from studio.gui.widgets import EmptyState, watch
from studio.records.model import Layer

OVERVIEW_NODES = 3000  # above this Netron takes seconds and a gigabyte
_COALESCE_MS = 60
_WARM_MS = 300
_BY_DEFAULT = ("sensitivity", "latency", "size")  # the first that is known


class GraphPanel(QWidget):
    """The model's graph. The web engine starts a moment after the panel is made.

    Signals:
        colored: by which column's id ('none': by none), and its words.
    """

    colored = Signal(str, str)

    def __init__(
        self, session: Session, selection: Selection, theme: Theme, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._session, self._selection, self._theme = session, selection, theme
        self._canvas: Canvas | None = None
        self._overview: Overview | None = None
        self._netron: Canvas | None = None
        self._netron_lost = ""  # why Netron is not used any more
        self._undrawable: dict[str, str] = {}  # versions that Netron could not draw, by digest, and why
        self._drawn: tuple[str, str] = ("", "")  # digest and stripped file on the canvas
        self._column = ""  # chosen by the user; '' = the first that is known
        self._direction: Direction = "horizontal"
        self._shapes = False
        self._stack = QStackedWidget()
        self._nothing = EmptyState("The graph of the open model appears here.")
        self._stack.addWidget(self._nothing)
        self.bar = GraphBar(theme)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._stack, 1)
        column.addWidget(self.bar)
        self.setMinimumHeight(120)
        self._later = QTimer(self, singleShot=True, interval=_COALESCE_MS)
        self._connect()
        self._recolor()
        QTimer.singleShot(_WARM_MS, self, self._warm)

    # ------------------------------------------------------------ what others ask for

    def fit(self) -> None:
        """Show the whole graph."""
        self._ask(lambda canvas: canvas.fit())

    def zoom_in(self) -> None:
        """Larger."""
        self._ask(lambda canvas: canvas.zoom(1.25))

    def zoom_out(self) -> None:
        """Smaller."""
        self._ask(lambda canvas: canvas.zoom(0.8))

    def focus_search(self) -> None:
        """Put the cursor into the search field."""
        self.bar.search.setFocus(Qt.FocusReason.ShortcutFocusReason)
        self.bar.search.selectAll()

    def color_by(self, column: str) -> None:
        """Colour the nodes by a column's id; 'none' for no colours, '' for the first that is known."""
        self._column = column
        self._recolor()

    @property
    def canvas(self) -> Canvas | None:
        """What draws the graph now; None while there is none."""
        return self._canvas

    def shut(self) -> None:
        """End the web engine in order; before the window goes."""
        if self._netron is not None:
            self._netron.shut()
            self._netron = None

    # ------------------------------------------------------------ building

    def _connect(self) -> None:
        bar = self.bar
        bar.column_chosen.connect(self.color_by)
        bar.turned.connect(self._turn)
        bar.shapes_wanted.connect(self._want_shapes)
        bar.fit_asked.connect(self.fit)
        bar.zoom_asked.connect(lambda factor: self._ask(lambda canvas: canvas.zoom(factor)))
        bar.search.asked.connect(lambda text, which: self._ask(lambda canvas: canvas.search(text, which)))
        self._selection.changed.connect(self._selection_changed)
        self._selection.revealed.connect(lambda _layer: self._mark(reveal=True))
        self._theme.changed.connect(self._recolor)
        self._later.timeout.connect(self._recolor)
        keys = QShortcut(QKeySequence("Ctrl+Shift+F"), self, context=Qt.ShortcutContext.WindowShortcut)
        keys.activated.connect(self.focus_search)
        watch(self, self._session, self._view_changed)

    def showEvent(self, event: QShowEvent) -> None:
        """What was opened while the panel was hidden is drawn now."""
        super().showEvent(event)
        QTimer.singleShot(0, self, self._draw)

    # ------------------------------------------------------------ following

    def _view_changed(self, old: View, new: View) -> None:
        if old.project is not new.project and self.isVisible():
            self._draw()
        if not same_figures(old, new):
            self._later.start()

    def _version(self) -> Version | None:
        project = self._session.view.project
        return project.current if project else None

    def _draw(self) -> None:
        version = self._version()
        if version is None or version.info is None:
            self._stack.setCurrentWidget(self._nothing)
            self._canvas, self._drawn = None, ("", "")
            return
        canvas = self._canvas_for(version)
        if canvas is self._canvas and self._drawn == (version.digest, version.stripped):
            return
        self._canvas, self._drawn = canvas, (version.digest, version.stripped)
        self._stack.setCurrentWidget(canvas)
        self.bar.allow_shapes(canvas is self._netron)
        canvas.set_direction(self._direction)
        canvas.open(version)
        self._recolor()
        self._mark(reveal=True)

    def _canvas_for(self, version: Version) -> Canvas:
        assert version.info is not None
        small = version.info.nodes <= OVERVIEW_NODES
        drawable = version.stripped and version.digest not in self._undrawable
        if small and drawable and not self._netron_lost and web_engine_ready():
            return self._netron or self._make_netron()
        if self._overview is None:
            self._overview = Overview(self._theme)
            self._adopt(self._overview)
        return self._overview

    def _warm(self) -> None:
        """Start the web engine before there is a model: it holds the window up for a moment."""
        if self._netron is None and not self._netron_lost and web_engine_ready():
            self._make_netron()

    def _make_netron(self) -> Canvas:
        from studio.gui.graph_view.netron_view import NetronView

        self._netron = NetronView(self._theme)
        self._netron.lost.connect(self._lose_netron)
        self._netron.failed.connect(self._give_up)
        self._adopt(self._netron)
        return self._netron

    def _adopt(self, canvas: Canvas) -> None:
        canvas.picked.connect(self._picked)
        canvas.menu_asked.connect(self._show_menu)
        canvas.found.connect(self.bar.show_count)
        self._stack.addWidget(canvas)

    def _give_up(self, words: str) -> None:
        """Show the version that Netron could not draw in the overview."""
        self._undrawable[self._drawn[0]] = words
        self._draw()

    def _lose_netron(self, words: str) -> None:
        """Fall back to the overview, for good: what failed once is not tried again in this window."""
        self._netron_lost = words
        if self._netron is not None:
            lost, self._netron = self._netron, None
            lost.shut()
            self._stack.removeWidget(lost)
            lost.deleteLater()
        self._canvas = None
        self._draw()

    # ------------------------------------------------------------ selection

    def _picked(self, layer: str, adding: bool) -> None:
        chosen = self._selection.layers
        if not adding:
            self._selection.set((layer,) if layer else (), self)
        elif layer in chosen:
            self._selection.set((name for name in chosen if name != layer), self)
        elif layer:
            self._selection.set((*chosen, layer), self, layer)

    def _show_menu(self, layer: str, place: QPoint) -> None:
        if layer not in self._selection.layers:
            self._selection.set((layer,), self)
        version = self._version()
        chosen = [x for x in version.layers if x.name in self._selection.layers] if version else []
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        few = layer if len(chosen) == 1 else f"{len(chosen)} layers"
        fill_treatment_menu(menu.addMenu(f"Treat {few} with"), self._session, chosen)
        menu.addAction("Show in table").triggered.connect(lambda _on=False: self._selection.reveal(layer))
        menu.addAction("Copy name").triggered.connect(
            lambda _on=False: QGuiApplication.clipboard().setText(layer)
        )
        menu.popup(place)

    def _selection_changed(self, source: object) -> None:
        if source is self and not self._selection.layers:
            return  # a node without weights was clicked; the canvas marks it
        self._mark(reveal=source is not self)

    def _mark(self, *, reveal: bool) -> None:
        layers = self._selection.layers
        current = self._selection.current
        ordered = (*(name for name in layers if name != current), *((current,) if current else ()))
        self._ask(lambda canvas: canvas.select(ordered, reveal=reveal))

    def _ask(self, call: Callable[[Canvas], None]) -> None:
        if self._canvas is not None:
            call(self._canvas)

    # ------------------------------------------------------------ colours

    def _turn(self, horizontal: bool) -> None:
        self._direction = "horizontal" if horizontal else "vertical"
        self._ask(lambda canvas: canvas.set_direction(self._direction))

    def _want_shapes(self, shown: bool) -> None:
        self._shapes = shown
        self._ask(lambda canvas: canvas.set_shapes(shown))

    def _recolor(self) -> None:
        known = figures(self._session.view)
        warmth = self._heat(known)
        self._say(known, warmth)
        self._ask(lambda canvas: canvas.paint_layers(self._paints(known, warmth)))

    def _heat(self, known: Figures) -> Heat | None:
        """By the chosen column, or by the first that is known; None for no colours."""
        if self._column == "none":
            return None
        tried = (self._column, *_BY_DEFAULT) if self._column else _BY_DEFAULT
        found = (heat(BY_ID[name], known) for name in tried)
        return next((warmth for warmth in found if warmth.shares), None)

    def _say(self, known: Figures, warmth: Heat | None) -> None:
        column = warmth.column if warmth is not None else None
        note = ""
        reason = self._netron_lost or self._undrawable.get(self._drawn[0], "")
        if reason and self._canvas is self._overview:
            note = f"Overview, because {reason}"
        elif column is not None and self._column and column.id != self._column:
            note = f"{BY_ID[self._column].label} is not known yet"
        self.bar.show_coloring(column_label(column, known) if column else "", warmth, note)
        self.colored.emit(column.id if column else "none", column_label(column, known) if column else "")

    def _paints(self, known: Figures, warmth: Heat | None) -> dict[str, Paint]:
        paints: dict[str, Paint] = {}
        inks: dict[str, str] = {}
        for layer in known.layers:
            share = None if warmth is None else warmth.shares.get(layer.name)
            ground = "" if share is None else self._theme.heat(round(share * 40) / 40).name()
            if ground and ground not in inks:
                inks[ground] = self._theme.ink_over(self._theme.heat(round((share or 0) * 40) / 40)).name()
            words = _words(layer, known, warmth.column if warmth is not None else None)
            paints[layer.name] = Paint(ground, inks.get(ground, ""), words)
        return paints


def _words(layer: Layer, known: Figures, column: Column | None) -> str:
    """A tooltip: name, operator, shape, and the figure that the colour stands for."""
    lines = [layer.name, f"{layer.op} {shape(layer.weight_shape)} · {layer.precision}"]
    if column is not None:
        lines.append(f"{column_label(column, known)}: {shown_as(column, column.value(layer, known), known)}")
    return "\n".join(lines)
