"""The panel: filter field, columns, summary, and the table that follows session and selection."""

from __future__ import annotations

from PySide6.QtCore import QPoint, QSettings, Qt, QTimer
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import (
    QHBoxLayout,
    QLineEdit,
    QMenu,
    QSizePolicy,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from studio.app.session import Session
from studio.app.view import View
from studio.base.errors import StudioError
from studio.gui.figures import COLUMNS, Figures, figures, same_figures, summary
from studio.gui.layer_table.filters import HELP, Rule, parse
from studio.gui.layer_table.model import LayerModel
from studio.gui.layer_table.view import LayerView
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from studio.gui.treatment_menu import fill_treatment_menu, treatment_menu
from studio.gui.widgets import Elided, EmptyState, button, set_role, watch
from studio.records.model import Layer

_COALESCE_MS = 40  # news of a scan arrive by the hundred


class LayerTable(QWidget):
    """What every layer costs and what it is to get; the selection is shared with the graph."""

    def __init__(
        self, session: Session, selection: Selection, theme: Theme, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.setObjectName("panel")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self._session, self._selection, self._theme = session, selection, theme
        self._rule: Rule | None = None
        self._model = LayerModel(self)
        self.view = LayerView(self._model, theme)
        self.filter = QLineEdit()
        self._summary = Elided(role="dim")
        self._stack = QStackedWidget()
        self._nothing = EmptyState("The layers of the open model appear here.")
        self._no_match = EmptyState("No layer matches the filter.", "Clear the filter", self.filter.clear)
        self._later = QTimer(self, singleShot=True, interval=_COALESCE_MS)
        self._build()
        self._connect()
        self._show(figures(session.view))

    # ------------------------------------------------------------ what others ask for

    def focus_filter(self) -> None:
        """Put the cursor into the filter field, its words selected."""
        self.filter.setFocus(Qt.FocusReason.ShortcutFocusReason)
        self.filter.selectAll()

    def select_matching(self) -> None:
        """Select every layer that the filter shows."""
        self._selection.set((layer.name for layer in self._model.shown()), self)
        self._restore_selection(scroll=False)
        self._say()

    def shown(self) -> tuple[Layer, ...]:
        """The layers on screen, in their order."""
        return tuple(self._model.shown())

    def summary_words(self) -> str:
        """What stands at the right: counts and sums, or what is wrong with the filter."""
        return self._summary.whole

    def copy_csv(self, *, everything: bool = False) -> None:
        """Copy the selected rows (or all shown) with the columns on screen."""
        rows = range(self._model.rowCount())
        chosen = set(self._selection.layers)
        kept = [r for r in rows if everything or not chosen or self._model.layer(r).name in chosen]
        QGuiApplication.clipboard().setText(self._model.csv(kept, self.view.shown_columns()))

    def save_layout(self, settings: QSettings) -> None:
        """Keep columns, their order and widths."""
        self.view.save(settings)

    def restore_layout(self, settings: QSettings) -> None:
        """Take up the kept columns."""
        self.view.restore(settings)

    # ------------------------------------------------------------ building

    def _build(self) -> None:
        self.filter.setPlaceholderText("Filter: name, op, shape, >1 MB …")
        self.filter.setAccessibleName("Filter the layers")
        self.filter.setToolTip(HELP)
        self.filter.setClearButtonEnabled(True)
        self.filter.setMaximumWidth(300)
        self.filter.setMinimumWidth(150)
        self._matching = button(
            "Select matching", self.select_matching, tip="Select every layer that the filter shows (Enter)"
        )
        self._columns = button("Columns", tip="Choose the columns")
        menu = QMenu(self._columns)
        menu.aboutToShow.connect(lambda: self._fill_columns(menu))
        self._columns.setMenu(menu)
        self._summary.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self._summary.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        bar = QHBoxLayout()
        bar.setContentsMargins(8, 8, 12, 8)
        bar.setSpacing(8)
        bar.addWidget(self.filter, 2)
        bar.addWidget(self._matching)
        bar.addWidget(self._columns)
        bar.addWidget(self._summary, 3)
        for page in (self._nothing, self._no_match, self.view):
            self._stack.addWidget(page)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addLayout(bar)
        column.addWidget(self._stack, 1)
        self.setMinimumHeight(120)
        self._recolor()

    def _connect(self) -> None:
        self.filter.textChanged.connect(self._filter_changed)
        self.filter.returnPressed.connect(self.select_matching)
        self.view.chosen.connect(self._rows_chosen)
        self.view.copy_asked.connect(self.copy_csv)
        self.view.treatment_asked.connect(self._ask_treatment)
        self.view.customContextMenuRequested.connect(self._context_menu)
        header = self.view.horizontalHeader()
        header.customContextMenuRequested.connect(self._header_menu)
        self._model.moved.connect(lambda: self._restore_selection(scroll=False))
        self._selection.changed.connect(self._selection_changed)
        self._selection.revealed.connect(lambda _layer: self._restore_selection(scroll=True))
        self._theme.changed.connect(self._recolor)
        self._later.timeout.connect(lambda: self._show(figures(self._session.view)))
        watch(self, self._session, self._view_changed)

    def _recolor(self) -> None:
        self._columns.setIcon(self._theme.icon("ph.caret-down-bold", "dim"))
        self._columns.setLayoutDirection(Qt.LayoutDirection.RightToLeft)
        self.view.viewport().update()

    # ------------------------------------------------------------ following

    def _view_changed(self, old: View, new: View) -> None:
        if same_figures(old, new):
            return
        if old.project is new.project and old.plans is new.plans:
            self._later.start()  # only a scan went on
        else:
            self._show(figures(new))

    def _show(self, known: Figures) -> None:
        self._later.stop()
        changed = known.layers is not self._model.known.layers
        self._model.set_figures(known)
        if changed or self._rule is not None:
            self._apply_rule()
        self._turn_page()
        self._say()

    def _selection_changed(self, source: object) -> None:
        if source is not self:
            self._restore_selection(scroll=True)
        self._say()

    def _restore_selection(self, *, scroll: bool) -> None:
        self.view.show_selection(self._selection.layers, self._selection.current, scroll=scroll)

    def _rows_chosen(self, adding: bool) -> None:
        names = self.view.selected_names()
        if adding:
            names += [name for name in self._selection.layers if self._model.row_of(name) < 0]
        place = self.view.currentIndex()
        current = self._model.layer(place.row()).name if place.isValid() else ""
        self._selection.set(names, self, current)

    # ------------------------------------------------------------ filter

    def _filter_changed(self, text: str) -> None:
        try:
            self._rule = parse(text) if text.strip() else None
        except StudioError as error:
            self._complain(error.sentence)
            return
        self._apply_rule()
        self._turn_page()
        self._say()

    def _apply_rule(self) -> None:
        known, rule = self._model.known, self._rule
        kept = None if rule is None else [i for i, layer in enumerate(known.layers) if rule(layer, known)]
        self._model.keep(kept)
        self._restore_selection(scroll=False)

    def _turn_page(self) -> None:
        if not self._model.known.layers:
            page: QWidget = self._nothing
        else:
            page = self.view if self._model.rowCount() else self._no_match
        self._stack.setCurrentWidget(page)
        self.filter.setEnabled(bool(self._model.known.layers))
        self._matching.setEnabled(bool(self._model.rowCount()))

    def _say(self) -> None:
        words = summary(self._model.known, self._selection.layers)
        count = len(self._model.known.layers)
        if words and self._rule is not None:
            words = f"{self._model.rowCount()} of {count} shown · {words}"
        set_role(self._summary, "dim")
        self._summary.set_text(words)

    def _complain(self, words: str) -> None:
        set_role(self._summary, "caution")
        self._summary.set_text(words)

    # ------------------------------------------------------------ menus

    def _fill_columns(self, menu: QMenu) -> None:
        menu.clear()
        shown = set(self.view.shown_columns())
        for section, column in enumerate(COLUMNS):
            action = menu.addAction(column.label)
            action.setToolTip(column.tip)
            action.setCheckable(True)
            action.setChecked(section in shown)
            action.setEnabled(section != 0)
            action.toggled.connect(lambda on, s=section: self.view.show_column(s, on))
        menu.addSeparator()
        menu.addAction("Reset columns").triggered.connect(lambda _checked=False: self.view.reset_columns())
        menu.setToolTipsVisible(True)

    def _header_menu(self, place: QPoint) -> None:
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self._fill_columns(menu)
        menu.popup(self.view.horizontalHeader().mapToGlobal(place))

    def _ask_treatment(self, row: int, place: QPoint) -> None:
        menu = treatment_menu(self._session, self._layers_meant(row), self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.popup(place)

    def _layers_meant(self, row: int) -> list[Layer]:
        """The whole selection where the row belongs to it, else the row alone."""
        layer = self._model.layer(row)
        if layer.name not in self._selection.layers:
            return [layer]
        chosen = set(self._selection.layers)
        return [other for other in self._model.known.layers if other.name in chosen]

    def _context_menu(self, place: QPoint) -> None:
        index = self.view.indexAt(place)
        if not index.isValid():
            return
        layer, meant = self._model.layer(index.row()), self._layers_meant(index.row())
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        few = layer.name if len(meant) == 1 else f"{len(meant)} layers"
        fill_treatment_menu(menu.addMenu(f"Treat {few} with"), self._session, meant)
        names = [other.name for other in meant]
        menu.addAction("Keep as it is").triggered.connect(lambda: self._session.clear_treatments(names))
        menu.addSeparator()
        menu.addAction("Show in graph").triggered.connect(lambda: self._selection.reveal(layer.name))
        menu.addAction(f"Select every {layer.op}").triggered.connect(lambda: self._select_op(layer.op))
        menu.addSeparator()
        menu.addAction("Copy name").triggered.connect(
            lambda: QGuiApplication.clipboard().setText("\n".join(names))
        )
        menu.addAction("Copy as CSV").triggered.connect(lambda _on=False: self.copy_csv())
        menu.addAction("Copy all rows as CSV").triggered.connect(
            lambda _on=False: self.copy_csv(everything=True)
        )
        menu.popup(self.view.viewport().mapToGlobal(place))

    def _select_op(self, op: str) -> None:
        self._selection.set((x.name for x in self._model.known.layers if x.op == op), None)
