"""The inspector: everything about the selected layers, and what they are to get."""

from __future__ import annotations

from PySide6.QtCore import QSize, Signal
from PySide6.QtWidgets import QTabWidget, QWidget

from studio.app.session import Session
from studio.gui.inspector.detail import DetailSource
from studio.gui.inspector.pages import (
    ActivationsPage,
    AttributesPage,
    SensitivitySection,
    WeightsPage,
    WeightsSection,
)
from studio.gui.inspector.treatment import TreatmentPage
from studio.gui.selection import Selection
from studio.gui.theme import Theme

__all__ = ["Inspector"]


class Inspector(QTabWidget):
    """Tabs: treatment, weights, activations, attributes.

    Signals:
        data_asked, scan_asked, all_asked: the user wants to choose data, to scan, to select all layers.
    """

    data_asked = Signal()
    scan_asked = Signal()
    all_asked = Signal()

    def __init__(
        self, session: Session, selection: Selection, theme: Theme, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.setObjectName("panel")
        self.setAccessibleName("Inspector")
        self.setMinimumWidth(320)
        self.setUsesScrollButtons(False)
        self.setDocumentMode(True)
        self.tabBar().setDrawBase(False)
        detail = DetailSource(session, selection, self)
        self.treatment = TreatmentPage(session, selection, theme)
        self.sensitivity = SensitivitySection(session, selection, theme)
        self.weights = WeightsPage(session, selection, theme, detail)
        self.activations = ActivationsPage(session, selection, theme, detail)
        self.attributes = AttributesPage(session, selection)
        column = self.treatment.column
        column.insertWidget(column.count() - 1, self.sensitivity)
        column.insertWidget(column.count() - 1, WeightsSection(detail, theme))
        self.addTab(self.treatment, "Treatment")
        self.addTab(self.weights, "Weights")
        self.addTab(self.activations, "Activations")
        self.addTab(self.attributes, "Attributes")
        for tab, tip in enumerate(
            (
                "What the selected layers are to get",
                "How the weights are spread",
                "What goes into and comes out of the layer",
                "The layer as the file says it",
            )
        ):
            self.setTabToolTip(tab, tip)
        self.treatment.data_asked.connect(self.data_asked)
        self.activations.data_asked.connect(self.data_asked)
        self.treatment.all_asked.connect(self.all_asked)
        self.sensitivity.scan_asked.connect(self.scan_asked)

    def sizeHint(self) -> QSize:
        """Wide enough for a form."""
        return QSize(352, 600)
