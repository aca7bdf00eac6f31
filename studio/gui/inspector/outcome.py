"""What the staged treatments would do to the selected layers, in words: predicted bytes, links, refusals."""

from __future__ import annotations

from html import escape

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QLabel, QVBoxLayout, QWidget

from studio.app.session import Session
from studio.app.view import View
from studio.base import units
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from studio.gui.widgets import button, label, short_name, watch
from studio.records.plan import Plan

SHOWN = 4  # reasons and layers named one by one; the rest is counted


def _named(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(map(short_name, names[:SHOWN])) + (f" and {rest} more" if rest > 0 else "")


def predicted_words(plans: tuple[Plan, ...], chosen: set[str]) -> str:
    """'Predicted: 2.36 MB → 589.8 KB (−75 %)' over the chosen layers; '' when nothing would change."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for plan in plans:
        for action in plan.actions:
            if action.layer in chosen:
                first.setdefault(action.layer, action.before.bytes)
                last[action.layer] = action.after.bytes
    if not first:
        return ""
    before, after = sum(first.values()), sum(last.values())
    change = units.change(before, after)
    return f"Predicted: {units.file_size(before)} → {units.file_size(after)} ({change})"


def action_words(plans: tuple[Plan, ...], chosen: set[str]) -> list[str]:
    """What would be done to the chosen layers; equal words once, with the layers they are about."""
    about: dict[str, list[str]] = {}
    for plan in plans:
        for action in plan.actions:
            if action.layer in chosen:
                about.setdefault(action.what, []).append(action.layer)
    lines = [what if len(chosen) == 1 else f"{_named(names)}: {what}" for what, names in about.items()]
    rest = len(lines) - SHOWN
    return lines[:SHOWN] + ([f"and {rest} more"] if rest > 0 else [])


def refusal_words(plans: tuple[Plan, ...], chosen: set[str], *, better: bool = False) -> list[str]:
    """Which chosen layers are refused, or are `better` left alone, and why; equal reasons once."""
    about: dict[tuple[str, str], list[str]] = {}
    for plan in plans:
        for refusal in plan.refusals:
            if refusal.layer in chosen and refusal.better == better:
                about.setdefault((refusal.reason, refusal.hint), []).append(refusal.layer)
    return [f"{_named(names)}: {reason}. {hint}".strip() for (reason, hint), names in about.items()]


def linked_layers(plans: tuple[Plan, ...], chosen: set[str]) -> list[str]:
    """Layers that are not chosen but get narrower along with chosen ones."""
    linked: dict[str, None] = {}
    for plan in plans:
        narrowed = {action.layer for action in plan.actions}
        for group in plan.groups:
            members = [member.layer for member in group.members if member.layer in narrowed]
            if not group.blocked and chosen.intersection(members):
                linked |= dict.fromkeys(name for name in members if name not in chosen)
    return list(linked)


class Outcome(QWidget):
    """The words below the treatment form.

    Signals:
        data_asked: the user wants to choose calibration data.
    """

    data_asked = Signal()

    def __init__(self, session: Session, selection: Selection, theme: Theme) -> None:
        super().__init__()
        self._session, self._selection, self._theme = session, selection, theme
        self._predicted = label(role="strong", wrap=True)
        self._actions = label(role="dim", wrap=True)
        self._linked = label(role="dim", wrap=True)
        self._linked.setToolTip("Click a layer to select it")
        self._linked.linkActivated.connect(lambda name: selection.set((name,), self))
        self._better = label(role="dim", wrap=True)
        self._refused = label(role="caution", wrap=True)
        self._trouble = label(role="caution", wrap=True)
        self._data = button(
            "Choose calibration data…", self.data_asked.emit, tip="Samples that ranges are taken from"
        )
        self._notes = label(role="dim", wrap=True)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(8)
        for part in (
            self._predicted,
            self._actions,
            self._linked,
            self._better,
            self._refused,
            self._trouble,
            self._data,
            self._notes,
        ):
            column.addWidget(part)
        watch(self, session, self._view_changed)
        selection.changed.connect(lambda _source: self._show())
        theme.changed.connect(self._show)
        self._show()

    def _view_changed(self, old: View, new: View) -> None:
        if (old.plans, old.planning, old.plan_error) != (new.plans, new.planning, new.plan_error) or (
            old.project is not new.project
        ):
            self._show()

    def _show(self) -> None:
        view, chosen = self._session.view, set(self._selection.layers)
        project = view.project
        staged = bool(project and chosen.intersection(project.staged))
        plans = view.plans if staged else ()
        words = predicted_words(plans, chosen)
        if staged and view.planning and not words:
            words = "Planning…"
        _say(self._predicted, words)
        _say(self._actions, "\n".join(action_words(plans, chosen)))
        color = self._theme.tokens.accent
        linked = linked_layers(plans, chosen)
        links = ", ".join(_link(name, color) for name in linked[:SHOWN])
        rest = f" and {len(linked) - SHOWN} more" if len(linked) > SHOWN else ""
        _say(self._linked, f"Linked: this also narrows {links}{rest}." if linked else "")
        _say(self._better, "\n".join(refusal_words(plans, chosen, better=True)[:SHOWN]))
        _say(self._refused, "\n".join(refusal_words(plans, chosen)[:SHOWN]))
        _say(self._trouble, view.plan_error)
        missing = self._missing_data()
        self._data.setVisible(missing)
        notes = [note for plan in plans for note in plan.notes]
        if missing:
            notes.insert(0, "This treatment takes ranges from calibration data, and none is chosen.")
        _say(self._notes, "\n".join(dict.fromkeys(notes)))

    def _missing_data(self) -> bool:
        project = self._session.view.project
        if project is None or project.calibration is not None:
            return False
        treatments = dict(project.treatments)
        chosen = (treatments[layer] for layer in self._selection.layers if layer in treatments)
        return any(settings.needs == "calibration" for treatment in chosen for settings in treatment.settings)


def _link(name: str, color: str) -> str:
    target, words = escape(name, quote=True), escape(short_name(name))
    return f"<a style='color:{color}; text-decoration:none' href='{target}'>{words}</a>"


def _say(part: QLabel, words: str) -> None:
    part.setText(words)
    part.setVisible(bool(words))
