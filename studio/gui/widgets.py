"""Small widgets that several panels use: labels by role, buttons, empty states, watching the session."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QFont, QResizeEvent
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QLayout,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from studio.app.session import Session
from studio.app.view import View
from studio.gui.theme import SMALL_PX, Theme


def watch(widget: QWidget, session: Session, callback: Callable[[View, View], None]) -> None:
    """Call `callback(old, new)` at every change of the session's view, for as long as `widget` lives."""
    unsubscribe = session.listen(callback)
    widget.destroyed.connect(unsubscribe)


def set_role(widget: QWidget, role: str) -> None:
    """Give a widget a role of the style sheet ('dim', 'primary'), also when it is shown already."""
    if widget.property("role") == role:
        return
    widget.setProperty("role", role)
    widget.style().unpolish(widget)
    widget.style().polish(widget)


def label(text: str = "", role: str = "", *, wrap: bool = False, selectable: bool = False) -> QLabel:
    """A label in one of the style sheet's roles."""
    made = QLabel(text)
    if role:
        made.setProperty("role", role)
    made.setWordWrap(wrap)
    if wrap:
        made.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    if selectable:
        made.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return made


def caps(text: str, theme: Theme) -> QLabel:
    """A panel's or section's title: 11 px capitals with spacing."""
    made = label(text.upper(), "caps")
    made.setFont(caps_font(theme))
    return made


def caps_font(theme: Theme) -> QFont:
    """The font of panel titles."""
    font = theme.font(SMALL_PX)
    font.setLetterSpacing(QFont.SpacingType.AbsoluteSpacing, 0.8)
    return font


def button(
    text: str,
    clicked: Callable[[], object] | None = None,
    *,
    role: str = "",
    tip: str = "",
    name: str = "",
) -> QPushButton:
    """A push button with its role, tooltip and accessible name."""
    made = QPushButton(text)
    if role:
        made.setProperty("role", role)
    made.setToolTip(tip)
    made.setAccessibleName(name or text.replace("&", ""))
    made.setAutoDefault(False)
    if clicked is not None:
        made.clicked.connect(lambda _checked=False: clicked())
    return made


def rule() -> QFrame:
    """A thin horizontal line."""
    made = QFrame()
    made.setProperty("role", "rule")
    return made


def short_name(name: str, length: int = 26) -> str:
    """A layer's name, its beginning left out where it is long: what tells layers apart stands at the end."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def clear(layout: QLayout) -> None:
    """Remove and delete everything in a layout."""
    while (item := layout.takeAt(0)) is not None:
        widget, inner = item.widget(), item.layout()
        if widget is not None:
            widget.hide()
            widget.deleteLater()
        elif inner is not None:
            clear(inner)


class Elided(QLabel):
    """One line of plain text, shortened with '…' to the width there is; the whole text is its tooltip."""

    def __init__(self, text: str = "", role: str = "") -> None:
        super().__init__()
        self._whole = ""
        if role:
            self.setProperty("role", role)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.set_text(text)

    def set_text(self, text: str) -> None:
        """Show `text`, elided where it must be."""
        self._whole = text
        self.setToolTip(text)
        self.setAccessibleName(text)
        self._fit()

    @property
    def whole(self) -> str:
        """The text, not shortened."""
        return self._whole

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Fit the text to the new width."""
        super().resizeEvent(event)
        self._fit()

    def sizeHint(self) -> QSize:
        """As wide as the whole text."""
        return QSize(self.fontMetrics().horizontalAdvance(self._whole) + 2, super().sizeHint().height())

    def _fit(self) -> None:
        text = self.fontMetrics().elidedText(self._whole, Qt.TextElideMode.ElideRight, max(0, self.width()))
        if text != self.text():
            self.setText(text)


class RichButton(QPushButton):
    """A button whose words are rich text ('Data: <b>digits</b> · 256'), with a chevron where it opens a menu."""

    def __init__(self, theme: Theme, *, chevron: bool = True) -> None:
        super().__init__()
        self._theme = theme
        self._words = QLabel()
        self._words.setTextFormat(Qt.TextFormat.RichText)
        self._chevron = QLabel()
        self._chevron.setVisible(chevron)
        self._row = QHBoxLayout(self)
        self._row.setContentsMargins(10, 0, 8, 0)
        self._row.setSpacing(6)
        self._row.addWidget(self._words)
        self._row.addWidget(self._chevron)
        for inner in (self._words, self._chevron):
            inner.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.setAutoDefault(False)
        theme.changed.connect(self._recolor)
        self._recolor()

    def set_words(self, rich: str, name: str) -> None:
        """Show rich text; `name` says the same to assistive technology."""
        self._words.setText(rich)
        self.setAccessibleName(name)
        self.updateGeometry()

    def words(self) -> str:
        """The rich text."""
        return self._words.text()

    def sizeHint(self) -> QSize:
        """Wide enough for the words."""
        return QSize(self._row.sizeHint().width() + 2, 28)

    def minimumSizeHint(self) -> QSize:
        """Never cut the words."""
        return self.sizeHint()

    def _recolor(self) -> None:
        self._chevron.setPixmap(self._theme.icon("ph.caret-down-bold", "dim").pixmap(10, 10))


def strong(text: str) -> str:
    """Plain text as rich text of more weight; Inter is bundled up to semibold."""
    return f"<span style='font-weight:600'>{escape(text)}</span>"


class EmptyState(QWidget):
    """What an empty panel says: what will appear here, and the button that makes it appear."""

    def __init__(
        self,
        words: str,
        action: str = "",
        clicked: Callable[[], object] | None = None,
        tip: str = "",
    ) -> None:
        super().__init__()
        self._words = label(words, "dim")
        self._words.setWordWrap(True)
        self._words.setAlignment(Qt.AlignmentFlag.AlignCenter)
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 16, 16, 16)
        column.setSpacing(12)
        column.addStretch(1)
        column.addWidget(self._words)
        self.button = button(action, clicked, tip=tip or action)
        self.button.setVisible(bool(action))
        column.addWidget(self.button, 0, Qt.AlignmentFlag.AlignHCenter)
        column.addStretch(1)

    def set_words(self, words: str) -> None:
        """Say something else."""
        self._words.setText(words)
