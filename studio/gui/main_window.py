"""The window: panels in docks, menus and toolbar from the list of commands, dialogs on demand."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from PySide6.QtCore import QByteArray, QSettings, Qt, QTimer
from PySide6.QtGui import QCloseEvent, QDragEnterEvent, QDragLeaveEvent, QDropEvent
from PySide6.QtWidgets import QMainWindow, QStackedWidget, QWidget

from studio.app.home import Recoverable
from studio.app.jobs import Job
from studio.app.session import Session
from studio.app.view import View
from studio.gui import dialogs
from studio.gui.bars import StatusBar, ToolBar
from studio.gui.commands import Actions
from studio.gui.docks import Desk, Dock
from studio.gui.files import Files
from studio.gui.headline import Headline
from studio.gui.inspector import Inspector
from studio.gui.jobs_panel import JobsPanel
from studio.gui.layer_table import LayerTable
from studio.gui.menus import Menus
from studio.gui.selection import Selection
from studio.gui.theme import Mode, Theme
from studio.gui.versions_panel import VersionsPanel
from studio.gui.welcome import Welcome
from studio.gui.widgets import EmptyState

if TYPE_CHECKING:
    from studio.gui.graph_view import GraphPanel

AUTOSAVE_MS = 15_000
# Measurements that nobody asked for say what went wrong in the jobs panel only; an export says it in its dialog.
QUIET_KINDS = {"measure", "profile", "export"}


class MainWindow(QMainWindow):
    """One window on one session.

    Args:
        session: everything that is shown and done.
        theme: colours and fonts.
        settings: where layout and theme are kept between runs.
    """

    def __init__(self, session: Session, theme: Theme, settings: QSettings) -> None:
        super().__init__()
        self.session: Session = session
        self.theme: Theme = theme
        self.selection: Selection = Selection(self)
        self.files: Files = Files(self, session)
        self.desk: Desk
        self.arranging: bool = False
        self._settings = settings
        self._saved_at = ""
        self._leaving = False
        self.graph: GraphPanel | None = None
        self.setObjectName("window")
        self.setAcceptDrops(True)
        self.resize(1440, 900)
        self.setMinimumSize(900, 560)
        self.actions_ = Actions(self, self.selection, theme)
        self._make_panels()
        self.menus = Menus(self, self.actions_)
        self.toolbar = ToolBar(self, self.actions_, theme)
        self.addToolBar(self.toolbar)
        self.status = StatusBar(self, theme, self.menus.color)
        self.setStatusBar(self.status)
        self._wire()
        geometry = settings.value("geometry")
        if isinstance(geometry, QByteArray):
            self.restoreGeometry(geometry)
        self.desk.take_up()
        self._autosave = QTimer(self)
        self._autosave.setInterval(AUTOSAVE_MS)
        self._autosave.timeout.connect(self.actions_.guard(session.autosave))
        self._autosave.start()
        self._show(View(), session.view)

    # ------------------------------------------------------------------ making

    def _make_panels(self) -> None:
        session, selection, theme = self.session, self.selection, self.theme
        self.welcome = Welcome(session, theme)
        self.versions = VersionsPanel(session, selection, theme)
        self.headline = Headline(session, selection, theme)
        self.table = LayerTable(session, selection, theme)
        self.inspector = Inspector(session, selection, theme)
        self.jobs = JobsPanel(session, selection, theme)
        self.desk = Desk(
            {
                "versions": Dock(
                    "versions", "Versions", self.versions, theme, extra=self.versions.note_button
                ),
                "headline": Dock("headline", "Headline", self.headline, theme, bare=True),
                "graph": Dock("graph", "Graph", _placeholder("The graph is drawn here."), theme, bare=True),
                "table": Dock("table", "Layers", self.table, theme, bare=True),
                "inspector": Dock("inspector", "Inspector", self.inspector, theme, bare=True),
                "plots": Dock(
                    "plots", "Plots", _placeholder("Size and latency are drawn here."), theme, bare=True
                ),
                "jobs": Dock("jobs", "Jobs", self.jobs, theme, extra=self.jobs.count),
            },
            bottom=(("plots", 3), ("jobs", 1)),
            settings=self._settings,
        )
        self.actions_.place(self.desk.docks)
        self.pages = QStackedWidget()
        self.pages.addWidget(self.welcome)
        self.pages.addWidget(self.desk)
        self.setCentralWidget(self.pages)
        self.table.restore_layout(self._settings)

    def _wire(self) -> None:
        self.session.listen(self._show)
        self.welcome.open_asked.connect(self.actions_["file.open"].trigger)
        self.welcome.sample_asked.connect(self.actions_["file.sample"].trigger)
        self.welcome.path_chosen.connect(lambda path: self.actions_.guard(lambda: self.files.open(path))())
        self.welcome.recovery_chosen.connect(
            lambda found: self.actions_.guard(lambda: self.session.open_recovered(found))()
        )
        self.welcome.recovery_refused.connect(self._discard)
        self.inspector.data_asked.connect(self.ask_data)
        self.inspector.scan_asked.connect(self.ask_scan)
        self.inspector.all_asked.connect(self.select_all)
        self.versions.export_asked.connect(self.export)
        self.versions.compare_asked.connect(self.compare)
        self.jobs.details_asked.connect(self._show_failure)

    def finish(self) -> None:
        """Make what is slow to make; called once the window is on screen."""
        from studio.gui.graph_view import GraphPanel
        from studio.gui.plots import PlotsPanel

        self.graph = GraphPanel(self.session, self.selection, self.theme)
        self.desk.docks["graph"].replace_panel(self.graph)
        self.desk.docks["plots"].replace_panel(PlotsPanel(self.session, self.selection, self.theme))
        self.graph.colored.connect(self._show_color)
        self.color_by("")

    # ------------------------------------------------------------------ following the session

    def _show(self, old: View, new: View) -> None:
        project = new.project
        self.pages.setCurrentWidget(self.desk if project else self.welcome)
        if project is None:
            self.welcome.refresh(new)
        self._keep_selection(old, new)
        self.actions_.refresh(new)
        self.toolbar.refresh(new)
        if old.modified and not new.modified and project is not None and project.path:
            self._saved_at = time.strftime("%H:%M")
        if project is None:
            self._saved_at = ""
        self.status.refresh(new, self._saved_at)
        self._show_title(new)
        for job in new.jobs:
            before = old.job(job.id)
            if (
                job.state == "failed"
                and (before is None or before.state != "failed")
                and job.kind not in QUIET_KINDS
            ):
                self._show_failure(job.id)

    def _show_title(self, view: View) -> None:
        project = view.project
        self.setWindowTitle(f"{project.name}[*] – Featherweight" if project else "Featherweight[*]")
        self.setWindowModified(view.modified)

    def _keep_selection(self, old: View, new: View) -> None:
        """Forget selected layers that the version in view does not have."""
        version = new.project.current if new.project else None
        before = old.project.current if old.project else None
        if version is before or (version is not None and version.info is None):
            return
        names = {layer.name for layer in version.layers} if version else set()
        kept = tuple(name for name in self.selection.layers if name in names)
        self.selection.set(kept, self)

    def _show_failure(self, job_id: int) -> None:
        job: Job | None = self.session.view.job(job_id)
        if job is not None and job.error is not None:
            dialogs.show_error(self, job.error)

    # ------------------------------------------------------------------ commands

    def export(self, version_id: int | None = None) -> None:
        """Export a version (the one in view, unless told otherwise)."""
        from studio.gui.export_dialog import ExportDialog

        project = self.session.view.project
        if project is None or project.head is None:
            return
        version = project.version(project.head if version_id is None else version_id)
        ExportDialog(self.session, version, self.theme, self).open()

    def compare(self, version_id: int | None = None) -> None:
        """Show two versions side by side."""
        from studio.gui.compare import CompareView

        CompareView(self.session, self.theme, self, version_id).show()

    def ask_scan(self) -> None:
        """Ask what to scan with."""
        from studio.gui.scan_dialog import ScanDialog

        ScanDialog(self.session, self.selection.layers, self).open()

    def ask_training(self) -> None:
        """Ask how to train."""
        from studio.gui.train_dialog import TrainDialog

        TrainDialog(self.session, self.compress, self).open()

    def ask_data(self) -> None:
        """Ask for calibration and evaluation data."""
        from studio.gui.data_wizard import DataWizard

        if self.session.view.project is not None:
            DataWizard(self.session, self.theme, self).open()

    def ask_sizes(self) -> None:
        """Ask for the sizes of dynamic dimensions."""
        from studio.gui.model_dialogs import SizesDialog

        SizesDialog(self.session, self).open()

    def show_model(self) -> None:
        """The preflight of the version in view."""
        from studio.gui.model_dialogs import model_text

        project = self.session.view.project
        version = project.current if project else None
        if version is not None and version.info is not None:
            dialogs.TextDialog(self, version.info.name, model_text(version)).open()

    def compress(self) -> None:
        """Carry out what is staged, after asking what the plans want agreed."""
        questions = tuple(dict.fromkeys(q for plan in self.session.view.plans for q in plan.questions))
        if not questions:
            self.session.compress()
        elif dialogs.ask_agreement(self, questions):
            self.session.compress(agreed=True)

    def measure(self) -> None:
        """Measure the version in view."""
        project = self.session.view.project
        if project is not None and project.head is not None:
            self.session.measure((project.head,))

    def profile(self) -> None:
        """Time every layer of the version in view."""
        project = self.session.view.project
        if project is not None and project.head is not None:
            self.session.profile(project.head)

    def select_all(self) -> None:
        """Select every layer that can be treated."""
        project = self.session.view.project
        version = project.current if project else None
        if version is not None:
            self.selection.set((layer.name for layer in version.layers if not layer.untreatable), self)

    def find_layers(self) -> None:
        """Put the cursor into the table's filter."""
        self.desk.docks["table"].show()
        self.table.focus_filter()

    def fit_graph(self) -> None:
        """Show the whole graph."""
        if self.graph is not None:
            self.graph.fit()

    def zoom_graph(self, *, larger: bool) -> None:
        """Draw the graph larger or smaller."""
        if self.graph is not None:
            (self.graph.zoom_in if larger else self.graph.zoom_out)()

    def color_by(self, column: str) -> None:
        """Colour the graph by a column's id; 'none' for no colours."""
        if self.graph is not None:
            self.graph.color_by(column)

    def _show_color(self, column: str, words: str) -> None:
        self.menus.check_color(column)
        self.status.set_color(words if words[1:2].isupper() else words[:1].lower() + words[1:] or "nothing")

    def toggle_arranging(self) -> None:
        """Show or hide the grips of the panels."""
        self.arranging = not self.arranging
        self.desk.arrange(self.arranging)
        self.actions_.refresh(self.session.view)

    def toggle_full_screen(self) -> None:
        """Fill the screen, or not."""
        self.setWindowState(self.windowState() ^ Qt.WindowState.WindowFullScreen)
        self.actions_.refresh(self.session.view)

    def show_palette(self) -> None:
        """Every command, panel and layer by name."""
        from studio.gui.palette import Palette

        Palette(self.menus.palette_entries(), self).show()

    def show_help(self) -> None:
        """First steps and shortcuts."""
        dialogs.TextDialog(self, "Help", dialogs.help_text(self.menus.shortcuts())).open()

    def show_about(self) -> None:
        """Name, licences, versions."""
        dialogs.TextDialog(self, "About Featherweight", dialogs.about_text()).open()

    def set_theme(self, mode: Mode) -> None:
        """Choose the theme, now and for the next start."""
        self.theme.set_mode(mode)
        self._settings.setValue("theme", mode)

    def offer_recovery(self) -> None:
        """Look for work that a crash left, and offer it on the welcome page."""
        self.welcome.show_recoverable(self.session.recover())

    def _discard(self, found: Recoverable) -> None:
        self.session.discard_recovered(found)
        self.offer_recovery()

    # ------------------------------------------------------------------ dropping and closing

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """A file is welcome anywhere."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            self.welcome.zone.set_hover(True)
            event.acceptProposedAction()

    def dragLeaveEvent(self, event: QDragLeaveEvent) -> None:
        """It went away again."""
        self.welcome.zone.set_hover(False)
        super().dragLeaveEvent(event)

    def dropEvent(self, event: QDropEvent) -> None:
        """Open what was dropped."""
        self.welcome.zone.set_hover(False)
        paths = [url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()]
        event.acceptProposedAction()
        if paths:
            # Not inside the drop: a question about unsaved work would hold up the other program.
            QTimer.singleShot(0, self, self.actions_.guard(lambda: self.files.open(paths[0])))

    def closeEvent(self, event: QCloseEvent) -> None:
        """Ask about unsaved work; keep the layout."""
        if self.files.must_ask and not self._leaving:
            event.ignore()
            self.files.leaving(self._leave)
            return
        self._settings.setValue("geometry", self.saveGeometry())
        self.desk.keep()
        self.table.save_layout(self._settings)
        self._autosave.stop()
        if self.graph is not None:
            self.graph.shut()
        event.accept()

    def leave_unasked(self) -> None:
        """Close will not ask about unsaved work any more."""
        self._leaving = True

    def _leave(self) -> None:
        self.leave_unasked()
        QTimer.singleShot(0, self, self.close)


def _placeholder(words: str) -> QWidget:
    """What stands in a dock until its panel is made, a moment after the window shows."""
    return EmptyState(words)
