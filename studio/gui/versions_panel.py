"""The tree of versions as cards: size, latency and accuracy of each; a click goes there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from PySide6.QtCore import (
    QAbstractListModel,
    QModelIndex,
    QPersistentModelIndex,
    QPoint,
    QRect,
    QSize,
    Qt,
    Signal,
)
from PySide6.QtGui import QColor, QFont, QFontMetrics, QKeySequence, QPainter, QPen, QShortcut
from PySide6.QtWidgets import (
    QInputDialog,
    QListView,
    QMenu,
    QStackedLayout,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QWidget,
)

from studio.app.project import Project, Version
from studio.app.session import Session
from studio.app.view import View
from studio.base import units
from studio.gui.selection import Selection
from studio.gui.theme import BODY_PX, SMALL_PX, Theme
from studio.gui.widgets import EmptyState, button, watch

CARD_HEIGHT, GAP, INDENT = 52, 6, 12
MAX_INDENT = 5
LEFT, MIDDLE, RIGHT = Qt.AlignmentFlag.AlignLeft, Qt.AlignmentFlag.AlignHCenter, Qt.AlignmentFlag.AlignRight
SIDES = {1: (LEFT,), 2: (LEFT, RIGHT), 3: (LEFT, MIDDLE, RIGHT)}
VERSION_ROLE = Qt.ItemDataRole.UserRole
DEPTH_ROLE = Qt.ItemDataRole.UserRole + 1
Index = QModelIndex | QPersistentModelIndex


def figures(version: Version) -> tuple[str, str, str]:
    """Size, latency and accuracy of a version as text; '–' where not known."""
    measured = version.measurement
    size = measured.file_bytes if measured else (version.info.file_bytes if version.info else None)
    latency = measured.latency.median_ms if measured and measured.latency else None
    score = "–"
    if measured and measured.accuracy:
        score = units.percent(measured.accuracy.value)
    elif measured and measured.error and version.parent is not None:
        error = measured.error
        score = (
            f"{error.agreement * 100:.1f} % alike"
            if error.agreement is not None
            else f"{error.sqnr_db:.0f} dB"
        )
    return (
        units.file_size(size) if size is not None else "–",
        units.milliseconds(latency) if latency is not None else "–",
        score,
    )


def in_tree_order(project: Project) -> list[tuple[Version, int]]:
    """Versions with their depth, children right below their parent in the order they were made."""
    children: dict[int | None, list[Version]] = {}
    known = {version.id for version in project.versions}
    for version in project.versions:
        children.setdefault(version.parent if version.parent in known else None, []).append(version)
    ordered: list[tuple[Version, int]] = []
    waiting = [(version, 0) for version in reversed(children.get(None, []))]
    while waiting:
        version, depth = waiting.pop()
        ordered.append((version, depth))
        waiting += [(child, depth + 1) for child in reversed(children.get(version.id, []))]
    return ordered


def _that_fit(texts: tuple[str, str, str], metrics: QFontMetrics, width: int) -> tuple[str, ...]:
    """All three figures, or size and accuracy, or the size alone."""
    size, latency, score = texts
    for some in ((size, latency, score), (size, score)):
        if sum(metrics.horizontalAdvance(text) + 10 for text in some) <= width + 10:
            return some
    return (size,)


class VersionModel(QAbstractListModel):
    """The versions of a project, in tree order."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[tuple[Version, int]] = []

    def show(self, project: Project | None) -> None:
        """Show another state of the project."""
        rows = in_tree_order(project) if project else []
        if [(v.id, d) for v, d in rows] == [(v.id, d) for v, d in self._rows]:
            self._rows = rows
            if rows:
                self.dataChanged.emit(self.index(0), self.index(len(rows) - 1))
            return
        self.beginResetModel()
        self._rows = rows
        self.endResetModel()

    def row_of(self, version_id: int | None) -> int:
        """The row of a version; −1 when it is not shown."""
        return next((i for i, (v, _) in enumerate(self._rows) if v.id == version_id), -1)

    def rowCount(self, parent: Index | None = None) -> int:
        """See QAbstractListModel."""
        return 0 if parent is not None and parent.isValid() else len(self._rows)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        """See QAbstractListModel; VERSION_ROLE and DEPTH_ROLE are for the delegate."""
        if not index.isValid() or index.row() >= len(self._rows):
            return None
        version, depth = self._rows[index.row()]
        size, latency, score = figures(version)
        match role:
            case Qt.ItemDataRole.DisplayRole:
                return version.name
            case Qt.ItemDataRole.AccessibleTextRole:
                return f"{version.name}: {size}, {latency}, {score}"
            case Qt.ItemDataRole.ToolTipRole:
                return _tip(version)
            case _ if role == VERSION_ROLE:
                return version
            case _ if role == DEPTH_ROLE:
                return depth
        return None


def _tip(version: Version) -> str:
    lines = [version.name]
    if version.note:
        lines.append(version.note)
    if version.recipe:
        lines += [
            f"{step.settings.title} on {units.counted(len(step.layers), 'layer')}"
            for step in version.recipe.steps
        ]
    if (measured := version.measurement) and measured.accuracy:
        lines.append(f"{measured.accuracy.metric} on {units.counted(measured.accuracy.samples, 'sample')}")
    if measured and measured.latency:
        lines.append(
            f"{measured.latency.runs} runs, {measured.latency.threads or 'all'} threads, {measured.runtime}"
        )
    return "\n".join(lines)


class CardDelegate(QStyledItemDelegate):
    """Paints a version as a card, indented by its depth."""

    def __init__(self, theme: Theme, parent: QWidget) -> None:
        super().__init__(parent)
        self._theme = theme

    def sizeHint(self, _option: QStyleOptionViewItem, _index: Index) -> QSize:
        """One card and the gap below it."""
        return QSize(120, CARD_HEIGHT + GAP)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Name above, three figures below."""
        version, depth = index.data(VERSION_ROLE), index.data(DEPTH_ROLE)
        tokens, theme = self._theme.tokens, self._theme
        rect: QRect = option.rect
        state: QStyle.StateFlag = option.state
        card = rect.adjusted(8 + INDENT * min(depth, MAX_INDENT), 0, -8, -GAP)
        chosen = bool(state & QStyle.StateFlag.State_Selected)
        hovered = bool(state & QStyle.StateFlag.State_MouseOver)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        ground = tokens.selection if chosen else tokens.hover if hovered else tokens.raised
        painter.setPen(QPen(QColor(tokens.accent), 1) if chosen else Qt.PenStyle.NoPen)
        painter.setBrush(QColor(ground))
        painter.drawRoundedRect(card.toRectF().adjusted(0.5, 0.5, -0.5, -0.5), 6, 6)
        inside = card.adjusted(12, 8, -10, -8)
        painter.setPen(QColor(tokens.text))
        painter.setFont(theme.font(BODY_PX, QFont.Weight.DemiBold))
        name = version.name + (" ·" if version.note else "")
        name = painter.fontMetrics().elidedText(name, Qt.TextElideMode.ElideRight, inside.width())
        painter.drawText(inside, Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft, name)
        painter.setFont(theme.font(SMALL_PX))
        painter.setPen(QColor(tokens.dim if not chosen else tokens.text))
        texts = _that_fit(figures(version), painter.fontMetrics(), inside.width())
        for text, side in zip(texts, SIDES[len(texts)], strict=True):
            painter.drawText(inside, Qt.AlignmentFlag.AlignBottom | side, text)
        painter.restore()


class VersionsPanel(QWidget):
    """The cards, their menu, and keyboard: Enter goes there, F2 renames, Delete removes.

    Signals:
        export_asked, compare_asked: with the id of a version.
    """

    export_asked = Signal(int)
    compare_asked = Signal(int)

    def __init__(
        self, session: Session, selection: Selection, theme: Theme, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        del selection  # versions are of the whole model
        self.setObjectName("panel")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self._session = session
        self.model = VersionModel()
        self.list = QListView()
        self.list.setModel(self.model)
        self.list.setItemDelegate(CardDelegate(theme, self.list))
        self.list.setMouseTracking(True)
        self.list.setUniformItemSizes(True)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setVerticalScrollMode(QListView.ScrollMode.ScrollPerPixel)
        self.list.setAccessibleName("Versions")
        self.list.setToolTip("Click a version to go there; its menu renames, compares, exports")
        self.list.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.list.customContextMenuRequested.connect(self._menu)
        self.list.clicked.connect(self._go)
        self.list.activated.connect(self._go)
        self.setMinimumWidth(180)
        for keys, act in (("F2", self.ask_name), ("Delete", self._remove)):
            shortcut = QShortcut(QKeySequence(keys), self.list, context=Qt.ShortcutContext.WidgetShortcut)
            shortcut.activated.connect(partial(self._with_chosen, act))
        self.note_button = button("+ NOTE", self.ask_note, role="caps", tip="Write a note on this version")
        self._empty = EmptyState("The versions you make of a model will stand here as a tree.")
        self._stack = QStackedLayout(self)
        self._stack.addWidget(self._empty)
        self._stack.addWidget(self.list)
        theme.changed.connect(self.list.viewport().update)
        watch(self, session, lambda _old, new: self._show(new))
        self._show(session.view)

    def sizeHint(self) -> QSize:
        """Narrow, so that the centre gets the room."""
        return QSize(236, 300)

    def _show(self, view: View) -> None:
        project = view.project
        self.model.show(project)
        self._stack.setCurrentIndex(1 if project and project.versions else 0)
        self.note_button.setEnabled(bool(project and project.current))
        row = self.model.row_of(project.head if project else None)
        if row >= 0 and self.list.currentIndex().row() != row:
            self.list.setCurrentIndex(self.model.index(row))

    def _go(self, index: QModelIndex) -> None:
        version = index.data(VERSION_ROLE)
        project = self._session.view.project
        if version is not None and project and project.head != version.id:
            self._session.go_to(version.id)

    def _menu(self, place: QPoint) -> None:
        version = self.list.indexAt(place).data(VERSION_ROLE)
        if version is not None:
            self.menu_of(version).popup(self.list.viewport().mapToGlobal(place))

    def menu_of(self, version: Version) -> QMenu:
        """What can be done with one version."""
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        session = self._session
        menu.addAction("&Go here", lambda: session.go_to(version.id))
        menu.addAction("&Rename…", lambda: self.ask_name(version))
        menu.addAction("&Note…", lambda: self.ask_note(version))
        menu.addSeparator()
        menu.addAction("&Measure", lambda: session.measure((version.id,)))
        menu.addAction("&Compare with…", lambda: self.compare_asked.emit(version.id))
        menu.addAction("&Export ONNX…", lambda: self.export_asked.emit(version.id))
        menu.addSeparator()
        remove = menu.addAction("Re&move", lambda: self._remove(version))
        remove.setEnabled(version.parent is not None)
        return menu

    def _with_chosen(self, act: Callable[[Version], object]) -> None:
        version = self.list.currentIndex().data(VERSION_ROLE)
        if version is not None:
            act(version)

    def _remove(self, version: Version) -> None:
        if version.parent is not None:
            self._session.remove_version(version.id)

    def ask_name(self, version: Version) -> None:
        """Ask for a new name."""
        name, ok = QInputDialog.getText(self, "Rename version", "Name:", text=version.name)
        if ok and name.strip():
            self._session.rename(version.id, name.strip())

    def ask_note(self, version: Version | None = None) -> None:
        """Ask for a note on a version (the one in view, unless told otherwise)."""
        project = self._session.view.project
        version = version or (project.current if project else None)
        if version is None:
            return
        note, ok = QInputDialog.getMultiLineText(self, "Note", f"Note on {version.name}:", version.note)
        if ok:
            self._session.annotate(version.id, note.strip())
