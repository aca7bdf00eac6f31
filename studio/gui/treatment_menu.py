"""The menu that treats layers: the presets, then one entry a technique, with its usual settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QMenu, QWidget

from studio.app.session import Session
from studio.records.model import Layer
from studio.records.presets import SUMMARIES, TITLES, Preset
from studio.records.steps import SETTINGS, Settings


def choices() -> Iterator[Settings]:
    """Every technique with its defaults; once for each width where it has a choice of bits.

    Training treats the model as a whole and has its own command.
    """
    for kind in (kind for kind in SETTINGS if kind.slot != "train"):
        widths = _literal_values(kind, "bits")
        if widths:
            yield from (kind(bits=bits) for bits in widths)
        else:
            yield kind()


def fill_treatment_menu(menu: QMenu, session: Session, layers: Sequence[Layer]) -> None:
    """Put the entries for these layers into a menu."""
    menu.setToolTipsVisible(True)
    project = session.view.project
    names = [layer.name for layer in layers if not layer.untreatable]
    if not names or project is None:
        reason = layers[0].untreatable if layers else "no layer is selected"
        menu.addAction(f"Cannot be treated: {reason}").setEnabled(False)
        return
    staged = {s for name in names for s in project.treatment_of(name).settings}
    for preset, title in TITLES.items():
        _entry(menu, title, SUMMARIES[preset], _stage(session, names, preset))
    menu.addSeparator()
    slot = ""
    for settings in choices():
        if slot and settings.slot != slot:
            menu.addSeparator()
        slot = settings.slot
        action = _entry(
            menu, f"{settings.title} · {settings.chip}", settings.summary, _set(session, names, settings)
        )
        action.setCheckable(True)
        action.setChecked(settings in staged)
    menu.addSeparator()
    _entry(
        menu, "Keep as it is", "Take the staged treatments off.", lambda: session.clear_treatments(names)
    ).setEnabled(bool(staged))


def treatment_menu(session: Session, layers: Sequence[Layer], parent: QWidget) -> QMenu:
    """A menu of its own; delete it when it has closed."""
    menu = QMenu(parent)
    menu.setAccessibleName("Treatment")
    fill_treatment_menu(menu, session, layers)
    return menu


def _entry(menu: QMenu, words: str, tip: str, call: Callable[[], object]) -> QAction:
    action = menu.addAction(words)
    action.setToolTip(tip)
    action.triggered.connect(lambda _checked=False: call())
    return action


def _set(session: Session, names: list[str], settings: Any) -> Callable[[], object]:
    return lambda: session.set_treatment(names, settings.slot, settings)


def _stage(session: Session, names: list[str], preset: Preset) -> Callable[[], object]:
    return lambda: session.stage_preset(preset, names)


def _literal_values(kind: type[Settings], name: str) -> tuple[Any, ...]:
    for field in msgspec.inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        if field.name == name:
            inner = getattr(field.type, "type", field.type)
            return tuple(getattr(inner, "values", ()))
    return ()
