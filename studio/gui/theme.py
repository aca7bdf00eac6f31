"""Colours, fonts, icons and the style sheet, in light and dark.

The tokens are the only place where a colour is written down. Everything that paints asks the
`Theme` at painting time or listens to `Theme.changed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from string import Template
from typing import Literal, get_args

from PySide6.QtCore import QByteArray, QObject, Qt, Signal
from PySide6.QtGui import QColor, QFont, QFontDatabase, QGuiApplication, QIcon, QPainter, QPalette, QPixmap
from PySide6.QtSvg import QSvgRenderer
from PySide6.QtWidgets import QApplication

from studio.base.resources import resource
from studio.records.steps import Slot

Mode = Literal["system", "light", "dark"]
MODES: tuple[Mode, ...] = get_args(Mode)

FONT = "Inter"
BODY_PX, SMALL_PX, FIGURE_PX = 13, 11, 19
SPACE = 4  # all distances are multiples of it
ICON_SIZES = (12, 16, 20, 24, 32, 48)


@dataclass(frozen=True)
class Tokens:
    """The colours of one theme, as '#rrggbb'.

    Attributes:
        window, panel, raised, line: grounds, from the back to the front, and the line between panels.
        canvas: behind the graph.
        text, dim: words, and words of less weight.
        accent, on_accent: the filled button and the size curve; words upon it.
        selection, on_selection: filled rows and cards; words upon them.
        good, caution, bad: verdicts; `caution` is the latency curve too.
        caution_words: `caution` where it colours words.
        original: the grey of the original model in every plot.
        heat: low → high.
        chips: (ground, words) of a treatment's chip by slot.
    """

    window: str
    panel: str
    raised: str
    line: str
    canvas: str
    field: str
    hover: str
    text: str
    dim: str
    accent: str
    on_accent: str
    selection: str
    on_selection: str
    good: str
    caution: str
    caution_words: str
    bad: str
    original: str
    track: str
    heat: tuple[str, ...]
    chips: dict[Slot, tuple[str, str]]


DARK = Tokens(
    window="#16181d",
    panel="#1c1f26",
    raised="#21252d",
    line="#2d323c",
    canvas="#15171c",
    field="#16181d",
    hover="#2a2f39",
    text="#e4e7ec",
    dim="#8d95a3",
    accent="#4fb3bf",
    on_accent="#0d1a1c",
    selection="#25404a",
    on_selection="#e4e7ec",
    good="#63b67a",
    caution="#e0a458",
    caution_words="#e0a458",
    bad="#d9695f",
    original="#8d95a3",
    track="#2a2e37",
    heat=("#343e50", "#5c5c60", "#a88048", "#e09648", "#d95a4b"),
    chips={
        "quantize": ("#1d3a55", "#9cc9ee"),
        "prune": ("#4a3419", "#ecb877"),
        "factorize": ("#3b2f57", "#c6b3f2"),
        "sparsify": ("#1f4230", "#93d3a8"),
        "train": ("#4c2a38", "#f0a9c0"),
    },
)

LIGHT = Tokens(
    window="#f3f4f6",
    panel="#ffffff",
    raised="#f4f6f8",
    line="#dde1e7",
    canvas="#f6f8fa",
    field="#ffffff",
    hover="#e9edf2",
    text="#1c2027",
    dim="#667080",
    accent="#16808d",
    on_accent="#ffffff",
    selection="#d8eef0",
    on_selection="#1c2027",
    good="#2c8048",
    caution="#b9770f",
    caution_words="#8f5c0a",
    bad="#b83a2f",
    original="#8d95a3",
    track="#e9ecf0",
    heat=("#ced6e2", "#d6ccbe", "#e6be82", "#e29242", "#c84a3a"),
    chips={
        "quantize": ("#dcebf8", "#1d5688"),
        "prune": ("#fbecd6", "#87530a"),
        "factorize": ("#ebe3fb", "#5b3aa0"),
        "sparsify": ("#dcf1e3", "#1f6637"),
        "train": ("#fbe2ea", "#963459"),
    },
)


class Theme(QObject):
    """The theme in force. One object for the whole program.

    Signals:
        changed: the tokens are others than before; repaint.
    """

    changed = Signal()

    def __init__(self, mode: Mode = "system", parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._mode: Mode = mode
        self._icons: dict[tuple[str, str], QIcon] = {}
        self._tokens = self._pick()
        hints = QGuiApplication.styleHints()
        hints.colorSchemeChanged.connect(self._system_changed)

    @property
    def tokens(self) -> Tokens:
        """The colours in force."""
        return self._tokens

    @property
    def mode(self) -> Mode:
        """What the user chose: follow the system, light or dark."""
        return self._mode

    @property
    def dark(self) -> bool:
        """Whether the dark colours are in force."""
        return self._tokens is DARK

    def set_mode(self, mode: Mode) -> None:
        """Choose the theme and restyle the application."""
        self._mode = mode
        self._refresh()

    def apply(self) -> None:
        """Load fonts and style the application; once at the start."""
        for name in ("Regular", "Medium", "SemiBold", "Bold"):
            QFontDatabase.addApplicationFont(str(resource(f"fonts/Inter-{name}.otf")))
        QApplication.setStyle("Fusion")
        QApplication.setFont(self.font())
        self._restyle()

    # ------------------------------------------------------------------ what painters ask for

    def color(self, token: str) -> QColor:
        """The colour of a token by name ('accent')."""
        return QColor(getattr(self._tokens, token))

    def heat(self, share: float) -> QColor:
        """The heat colour of a share 0..1 (low → high)."""
        return mix(self._tokens.heat, share)

    def ink_over(self, ground: QColor) -> QColor:
        """The colour of words upon `ground`: dark or light, whichever has more contrast."""
        # Anything short of black and white would fall below 4.5 : 1 for grounds in the middle.
        dark, light = QColor("#000000"), QColor("#ffffff")
        return dark if contrast(dark, ground) >= contrast(light, ground) else light

    def chip(self, slot: Slot) -> tuple[QColor, QColor]:
        """Ground and words of a treatment's chip."""
        ground, words = self._tokens.chips[slot]
        return QColor(ground), QColor(words)

    def font(self, px: int = BODY_PX, weight: QFont.Weight = QFont.Weight.Normal) -> QFont:
        """Inter with tabular figures."""
        font = QFont(FONT)
        font.setPixelSize(px)
        font.setWeight(weight)
        font.setFeature(QFont.Tag("tnum"), 1)
        font.setHintingPreference(QFont.HintingPreference.PreferNoHinting)
        return font

    def icon(self, name: str, color: str = "text") -> QIcon:
        """A drawing of `resources/icons` ('ph.play' is ph/play.svg) in the colour of a token."""
        key = (name, color)
        if key not in self._icons:
            drawing = (
                resource("icons").joinpath(*name.split(".")).with_suffix(".svg").read_text(encoding="utf-8")
            )
            icon = QIcon()
            for mode, token in ((QIcon.Mode.Normal, color), (QIcon.Mode.Disabled, "dim")):
                svg = drawing.replace("currentColor", getattr(self._tokens, token))
                renderer = QSvgRenderer(QByteArray(svg.encode()))
                for size in ICON_SIZES:
                    pixmap = QPixmap(size, size)
                    pixmap.fill(Qt.GlobalColor.transparent)
                    painter = QPainter(pixmap)
                    renderer.render(painter)
                    painter.end()
                    icon.addPixmap(pixmap, mode)
            self._icons[key] = icon
        return self._icons[key]

    # ------------------------------------------------------------------ following

    def _pick(self) -> Tokens:
        if self._mode == "system":
            scheme = QGuiApplication.styleHints().colorScheme()
            return LIGHT if scheme is Qt.ColorScheme.Light else DARK
        return DARK if self._mode == "dark" else LIGHT

    def _system_changed(self) -> None:
        if self._mode == "system":
            self._refresh()

    def _refresh(self) -> None:
        tokens = self._pick()
        if tokens is self._tokens:
            return
        self._tokens = tokens
        self._icons.clear()
        self._restyle()
        self.changed.emit()

    def _restyle(self) -> None:
        app = QApplication.instance()
        if isinstance(app, QApplication):
            app.setPalette(_palette(self._tokens))
            app.setStyleSheet(_style_sheet(self._tokens))


def mix(colors: Sequence[str], share: float) -> QColor:
    """The colour at a share 0..1 of the way through `colors`, in between linearly."""
    place = min(1.0, max(0.0, share)) * (len(colors) - 1)
    low = min(int(place), len(colors) - 2)
    part = place - low
    a, b = QColor(colors[low]), QColor(colors[low + 1])
    return QColor.fromRgbF(
        a.redF() + (b.redF() - a.redF()) * part,
        a.greenF() + (b.greenF() - a.greenF()) * part,
        a.blueF() + (b.blueF() - a.blueF()) * part,
    )


def contrast(a: QColor, b: QColor) -> float:
    """Contrast ratio 1..21. Source: WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(color: QColor) -> float:
        parts = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (color.redF(), color.greenF(), color.blueF())
        ]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _palette(tokens: Tokens) -> QPalette:
    roles = {
        QPalette.ColorRole.Window: tokens.window,
        QPalette.ColorRole.WindowText: tokens.text,
        QPalette.ColorRole.Base: tokens.panel,
        QPalette.ColorRole.AlternateBase: tokens.raised,
        QPalette.ColorRole.Text: tokens.text,
        QPalette.ColorRole.Button: tokens.raised,
        QPalette.ColorRole.ButtonText: tokens.text,
        QPalette.ColorRole.PlaceholderText: tokens.dim,
        QPalette.ColorRole.Highlight: tokens.selection,
        QPalette.ColorRole.HighlightedText: tokens.on_selection,
        QPalette.ColorRole.Accent: tokens.accent,
        QPalette.ColorRole.ToolTipBase: tokens.raised,
        QPalette.ColorRole.ToolTipText: tokens.text,
        QPalette.ColorRole.Link: tokens.accent,
        QPalette.ColorRole.BrightText: tokens.bad,
    }
    palette = QPalette()
    for role, color in roles.items():
        palette.setColor(role, QColor(color))
    for role in (QPalette.ColorRole.WindowText, QPalette.ColorRole.Text, QPalette.ColorRole.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, role, QColor(tokens.dim))
    return palette


def _style_sheet(tokens: Tokens) -> str:
    values = {f.name: getattr(tokens, f.name) for f in fields(tokens) if f.name not in {"heat", "chips"}}
    values["icons"] = resource("icons").as_posix()
    values["shade"] = "dark" if tokens is DARK else "light"
    return Template(resource("style/studio.qss").read_text(encoding="utf-8")).substitute(values)
