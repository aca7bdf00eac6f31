"""Dialogs that ask before something is done: scan, train, export, sizes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from PySide6.QtWidgets import QWidget
from pytestqt.qtbot import QtBot

from studio.app.recipe import from_yaml
from studio.base.resources import resource
from studio.gui.export_dialog import ExportDialog
from studio.gui.main_window import MainWindow
from studio.gui.model_dialogs import SizesDialog
from studio.gui.scan_dialog import SCANNABLE, ScanDialog
from studio.gui.theme import Theme
from studio.gui.train_dialog import TRAINABLE, TrainDialog
from studio.records.measure import DataSpec, DataSummary
from studio.records.steps import Fp16, QuantizeStatic, QuantizeWeights
from tests.gui.conftest import THREE
from tests.support.canned import FakeSession, busy_view


class Session(FakeSession):
    def scan(self, settings: object, layers: object) -> int:
        self.asked.append(("scan", (settings, layers)))
        return 1


def with_calibration(session: FakeSession, labelled: int) -> None:
    spec = DataSpec(path="data.npz")
    summary = DataSummary(
        spec=spec, samples=64, labelled=labelled, classes=10, description="data.npz · 64 samples"
    )
    session.show(
        project=msgspec.structs.replace(session.view.project, calibration=spec, calibration_summary=summary)
    )


@pytest.fixture
def asking(theme: Theme) -> Session:
    return Session(busy_view())


@pytest.fixture
def parent(qtbot: QtBot) -> QWidget:
    made = QWidget()
    qtbot.addWidget(made)
    return made


def test_a_scan_says_how_many_layers_it_treats_and_asks_for_data_it_needs(
    asking: Session, parent: QWidget
) -> None:
    dialog = ScanDialog(asking, ("fc", "conv1"), parent)
    dialog.chooser.choose(QuantizeStatic)
    assert not dialog.start.isEnabled()
    with_calibration(asking, 0)
    dialog = ScanDialog(asking, ("fc", "conv1"), parent)
    assert dialog.chooser.kind is QuantizeStatic
    assert dialog.start.text() == "Scan 21 layers"
    dialog.chosen_layers.setChecked(True)
    assert dialog.start.text() == "Scan 2 layers"
    dialog.chooser._forms[QuantizeStatic].edited.emit("per_channel", False)
    dialog.start.click()
    assert asking.asked[-1] == ("scan", (QuantizeStatic(per_channel=False), ("fc", "conv1")))


@pytest.mark.parametrize("kind", [*SCANNABLE, *TRAINABLE], ids=lambda kind: kind.__name__)
def test_every_technique_can_be_chosen(kind: type, asking: Session, parent: QWidget) -> None:
    dialog = (TrainDialog if kind in TRAINABLE else ScanDialog)(asking, (), parent)
    dialog.chooser.choose(kind)
    assert dialog.chooser.settings == kind()


def test_training_stages_every_layer_and_says_what_comes_before_and_after(
    asking: Session, parent: QWidget
) -> None:
    with_calibration(asking, 0)
    started = []
    dialog = TrainDialog(asking, lambda: started.append(1), parent)
    labelled = next(kind for kind in TRAINABLE if kind.needs == "labels")
    unlabelled = next(kind for kind in TRAINABLE if kind.needs != "labels")
    dialog.chooser.choose(labelled)
    assert not dialog.start.isEnabled()
    assert "Staged after it: INT8" in dialog._order.text()
    dialog.chooser.choose(unlabelled)
    dialog.start.click()
    assert started == [1]
    (asked,) = [what for name, what in asking.asked if name == "set_treatment"]
    assert asked[1:] == ("train", unlabelled())
    assert len(asked[0]) == 21


def test_an_export_is_checked_and_can_be_repeated(
    opened: MainWindow, theme: Theme, tmp_path: Path, qtbot: QtBot
) -> None:
    session = opened.session
    session.set_treatment(THREE, "quantize", QuantizeWeights())
    job = session.compress()
    qtbot.waitUntil(
        lambda: not session.view.job(job).active and session.view.project.current.info is not None,
        timeout=20_000,
    )
    version = session.view.project.current
    dialog = ExportDialog(session, version, theme, opened)
    assert dialog.path.text().endswith(".onnx")
    target = tmp_path / "out.onnx"
    dialog.path.setText(str(target))
    dialog._write.click()
    qtbot.waitUntil(lambda: dialog.exported is not None, timeout=20_000)
    assert target.is_file()
    assert dialog.words.property("role") == "good"
    assert from_yaml(dialog.recipe.toPlainText()).steps == session.view.project.recipe_of(version).steps
    assert str(target) in dialog.command.toPlainText()


def test_an_export_says_which_file_its_command_reads(opened: MainWindow, theme: Theme, qtbot: QtBot) -> None:
    session = opened.session
    session.set_treatment(THREE[:2], "quantize", QuantizeWeights())
    session.set_treatment(THREE[2:], "quantize", Fp16())
    job = session.compress()
    qtbot.waitUntil(lambda: not session.view.job(job).active, timeout=20_000)
    dialog = ExportDialog(session, session.view.project.current, theme, opened)
    dialog.path.setText("/tmp/out.onnx")
    assert "--recipe /tmp/out.yaml" in dialog.command.toPlainText()
    assert dialog.file_words.text() == "It reads out.yaml: save the recipe under that name."
    dialog.path.setText("")  # while another name is typed
    assert "--recipe recipe.yaml" in dialog.command.toPlainText()
    first = ExportDialog(session, session.view.project.original, theme, opened)
    assert (first.file_words.isHidden(), first.command.toPlainText()) == (True, "")


def test_an_export_that_cannot_be_written_is_one_sentence(
    opened: MainWindow, theme: Theme, tmp_path: Path, qtbot: QtBot
) -> None:
    dialog = ExportDialog(opened.session, opened.session.view.project.current, theme, opened)
    dialog.path.setText(str(tmp_path / "no" / "such" / "folder.onnx"))
    dialog._write.click()
    qtbot.waitUntil(lambda: dialog.words.property("role") == "bad", timeout=20_000)
    assert "does not exist" in dialog.words.text()
    assert dialog._write.isEnabled()


def test_an_export_of_the_sample_is_not_offered_among_the_studio_s_own_files(
    opened: MainWindow, theme: Theme
) -> None:
    version = opened.session.view.project.current
    beside = ExportDialog(opened.session, version, theme, opened)
    assert Path(beside.path.text()).parent == Path(version.file).parent
    sample = msgspec.structs.replace(version, file=str(resource("sample") / "any.onnx"))
    project = msgspec.structs.replace(opened.session.view.project, versions=(sample,))
    opened.session._desk.board.change(project=project)
    assert Path(ExportDialog(opened.session, sample, theme, opened).path.text()).parent == Path.home()


def test_sizes_of_dynamic_dimensions_are_decided(opened: MainWindow) -> None:
    dialog = SizesDialog(opened.session, opened)
    dialog.boxes["N"].setValue(4)
    dialog.accept()
    assert opened.session.view.project.input_sizes == (("N", 4),)
    opened.actions_["edit.undo"].trigger()
    assert opened.session.view.project.input_sizes == (("N", 1),)
