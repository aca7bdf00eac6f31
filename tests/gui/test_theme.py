"""Colours and type: contrast in both themes, everything from tokens, fonts bundled."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from PySide6.QtGui import QColor, QFont, QFontInfo, QRawFont
from PySide6.QtWidgets import QApplication

import studio.gui
from studio.gui.theme import DARK, LIGHT, Theme, Tokens, contrast, mix

BOTH = pytest.mark.parametrize("tokens", [DARK, LIGHT], ids=["dark", "light"])


@BOTH
@pytest.mark.parametrize("ground", ["window", "panel", "raised", "field", "canvas"])
@pytest.mark.parametrize("words", ["text", "dim"])
def test_words_can_be_read_on_every_ground(tokens: Tokens, ground: str, words: str) -> None:
    assert contrast(QColor(getattr(tokens, words)), QColor(getattr(tokens, ground))) >= 4.5


@BOTH
def test_words_can_be_read_on_what_is_filled(tokens: Tokens) -> None:
    pairs = [
        (tokens.on_accent, tokens.accent),
        (tokens.on_selection, tokens.selection),
        *((w, g) for g, w in tokens.chips.values()),
    ]
    assert all(contrast(QColor(words), QColor(ground)) >= 4.5 for words, ground in pairs)


@BOTH
@pytest.mark.parametrize("verdict", ["good", "caution_words", "bad"])
def test_verdicts_can_be_read_on_a_panel(tokens: Tokens, verdict: str) -> None:
    assert contrast(QColor(getattr(tokens, verdict)), QColor(tokens.panel)) >= 4.5


@pytest.mark.parametrize("mode", ["dark", "light"])
def test_words_can_be_read_over_every_heat(mode: str, qapp: QApplication) -> None:
    theme = Theme(mode)
    assert all(
        contrast(theme.ink_over(ground), ground) >= 4.5 for ground in (theme.heat(i / 50) for i in range(51))
    )


@BOTH
def test_heat_grows_from_one_end_to_the_other(tokens: Tokens) -> None:
    assert mix(tokens.heat, 0).name() == tokens.heat[0]
    assert mix(tokens.heat, 1).name() == tokens.heat[-1]
    assert mix(tokens.heat, -3).name() == tokens.heat[0]


def test_both_themes_have_every_token() -> None:
    assert {f.name for f in fields(DARK)} == {f.name for f in fields(LIGHT)}
    assert DARK.chips.keys() == LIGHT.chips.keys()


def test_type_is_the_bundled_inter_with_tabular_figures(theme: Theme) -> None:
    assert QFontInfo(theme.font()).family() == "Inter"
    for weight in (QFont.Weight.Normal, QFont.Weight.DemiBold, QFont.Weight.Bold):
        raw = QRawFont.fromFont(theme.font(weight=weight))
        assert raw.weight() == weight
    metrics = [QRawFont.fromFont(theme.font()).supportsCharacter(ord(c)) for c in "→×−·…±≥"]
    assert all(metrics)
    assert theme.font().featureValue(QFont.Tag("tnum")) == 1


def test_every_icon_that_is_named_is_bundled(theme: Theme) -> None:
    sources = Path(studio.gui.__file__).parent.rglob("*.py")
    names = {
        name
        for source in sources
        for name in re.findall(r'"(ph\.[a-z-]+)"', source.read_text(encoding="utf-8"))
    }
    assert len(names) > 20
    assert not any(theme.icon(name).isNull() for name in names)
    assert (
        theme.icon("ph.play", "dim").pixmap(16, 16).toImage()
        != theme.icon("ph.play").pixmap(16, 16).toImage()
    )


def test_a_change_of_theme_is_told_once(theme: Theme) -> None:
    told = []
    theme.changed.connect(lambda: told.append(theme.dark))
    theme.set_mode("light")
    theme.set_mode("light")
    theme.set_mode("dark")
    assert told == [False, True]
