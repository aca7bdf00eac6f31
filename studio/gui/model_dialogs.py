"""About the model: the preflight as a text, and the sizes of its dynamic dimensions."""

from __future__ import annotations

from collections.abc import Mapping

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QFormLayout, QHBoxLayout, QSpinBox, QVBoxLayout, QWidget

from studio.app.project import Version
from studio.app.session import Session
from studio.app.view import View
from studio.base import units
from studio.gui.controls import indent
from studio.gui.widgets import button, label
from studio.records.model import Finding, TensorInfo

LARGEST_SIZE = 1_000_000
LEVELS = {"blocker": "Stands in the way", "caution": "Mind", "note": "Good to know"}


def model_text(version: Version) -> str:
    """The preflight of a version, in Markdown."""
    info = version.info
    if info is None:
        return f"# {version.name}\n\nIts layers have not been listed yet.\n"
    opsets = ", ".join(f"{domain or 'ai.onnx'} {number}" for domain, number in info.opsets)
    treatable = sum(not layer.untreatable for layer in info.layers)
    lines = [
        f"# {info.name if version.parent is None else version.name}",
        f"`{version.file}`" if version.parent is None else "Made from the original by its recipe.",
        "",
        "| | |",
        "|---|---|",
        f"| File | {units.file_size(info.file_bytes)} |",
        f"| Weights | {units.file_size(info.cost.bytes)}, {units.short(info.cost.parameters)} parameters |",
        f"| MACs of one run | {units.short(info.cost.macs) if info.cost.macs is not None else 'unknown'} |",
        f"| Operators | {opsets} (IR version {info.ir_version}) |",
        f"| Made by | {info.producer or 'unknown'} |",
        f"| Nodes | {info.nodes} |",
        f"| Layers | {len(info.layers)}, of which {treatable} can be treated |",
        "",
        "## Inputs",
        *(_tensor(t) for t in info.inputs),
        "",
        "## Outputs",
        *(_tensor(t) for t in info.outputs),
        "",
    ]
    for level, title in LEVELS.items():
        found = [finding for finding in info.findings if finding.level == level]
        if found:
            lines += [f"## {title}", *(_finding(one) for one in found), ""]
    if not info.findings:
        lines += ["## Findings", "Nothing stands in the way of any treatment.", ""]
    if version.notes:
        lines += ["## How it was made", *(f"- {note}" for note in version.notes), ""]
    return "\n".join(lines)


def _tensor(tensor: TensorInfo) -> str:
    shape = "unknown shape" if tensor.shape is None else units.shape(tuple(d or "?" for d in tensor.shape))
    return f"- `{tensor.name}`: {tensor.dtype}, {shape}"


def _finding(finding: Finding) -> str:
    words = f"- **{finding.subject}**: {finding.what}"
    words += f" {finding.hint}" if finding.hint else ""
    if finding.layers:
        shown = ", ".join(f"`{name}`" for name in finding.layers[:8])
        rest = len(finding.layers) - 8
        words += f" ({shown}{f' and {rest} more' if rest > 0 else ''})"
    return words


class SizesDialog(QDialog):
    """The size of every dynamic dimension; all MACs and activation bytes are counted at them."""

    def __init__(self, session: Session, parent: QWidget) -> None:
        super().__init__(parent)
        self._session = session
        self.setWindowTitle("Input sizes")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setMinimumWidth(380)
        project = session.view.project
        version = project.current if project else None
        info = version.info if version else None
        self.boxes: dict[str, QSpinBox] = {}
        form = QFormLayout()
        form.setHorizontalSpacing(16)
        chosen = dict(project.input_sizes) if project else {}
        for name, size in info.input_sizes if info else ():
            box = QSpinBox()
            indent(box)
            box.setRange(1, LARGEST_SIZE)
            box.setValue(chosen.get(name, size))
            box.setAccessibleName(f"Size of {name}")
            box.setToolTip(f"Size of the dimension {name}")
            form.addRow(label(name, "dim"), box)
            self.boxes[name] = box
        words = (
            "MACs, activation bytes and times are counted at these sizes. The model itself stays dynamic."
            if self.boxes
            else "Every dimension of this model's inputs has a fixed size."
        )
        column = QVBoxLayout(self)
        column.setContentsMargins(20, 20, 20, 16)
        column.setSpacing(12)
        column.addWidget(label(words, "dim", wrap=True))
        column.addLayout(form)
        row = QHBoxLayout()
        as_data = sizes_of_data(session.view)
        if as_data and any(self.boxes[name].value() != size for name, size in as_data.items()):
            tip = ", ".join(f"{name} = {size}" for name, size in as_data.items())
            row.addWidget(button("As in the data", lambda: self._fill(as_data), tip=tip))
        row.addStretch(1)
        row.addWidget(button("Cancel", self.reject, tip="Leave the sizes as they were"))
        ok = button("Count at these sizes", self.accept, role="primary", tip="Count everything anew")
        ok.setDefault(True)
        ok.setEnabled(bool(self.boxes))
        row.addWidget(ok)
        column.addLayout(row)

    def _fill(self, sizes: Mapping[str, int]) -> None:
        for name, size in sizes.items():
            self.boxes[name].setValue(size)

    def accept(self) -> None:
        """Decide."""
        self._session.set_input_sizes(tuple((name, box.value()) for name, box in self.boxes.items()))
        super().accept()


def sizes_of_data(view: View) -> dict[str, int]:
    """The sizes that dynamic dimensions have in the chosen data, as far as the model's are dynamic."""
    project = view.project
    version = project.current if project else None
    if project is None or version is None or version.info is None:
        return {}
    known = dict(version.info.input_sizes)
    summary = project.evaluation_summary or project.calibration_summary
    sizes = dict(summary.input_sizes) if summary is not None else {}
    return {name: size for name, size in sizes.items() if name in known}
