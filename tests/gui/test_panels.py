"""Headline, versions, jobs, comparison, palette, data: what they say of a view."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QPixmap
from PySide6.QtWidgets import QApplication, QWidget
from pytestqt.qtbot import QtBot

from studio.app.jobs import Job, LogLine
from studio.app.view import View
from studio.gui.compare import COLUMNS, CompareModel, rows_of
from studio.gui.data_wizard import DataPage, DataWizard
from studio.gui.headline import Headline, _shown, figures
from studio.gui.jobs_panel import JobsPanel, left
from studio.gui.model_dialogs import model_text
from studio.gui.palette import matches
from studio.gui.selection import Selection
from studio.gui.theme import Theme
from studio.gui.versions_panel import VersionsPanel, in_tree_order
from studio.records.measure import DataSpec, DataSummary, Latency, Preprocess
from studio.records.model import Finding
from studio.records.task import DataPreview, Failed
from tests.support.canned import FakeSession, busy_view


def with_head(view: View, head: int) -> View:
    return msgspec.structs.replace(
        view, project=msgspec.structs.replace(view.project, head=head, treatments=()), predicted=None
    )


def test_staged_treatments_show_a_predicted_size_and_a_latency_only_once_a_draft_was_timed() -> None:
    size, latency, accuracy, _memory = figures(busy_view())
    assert size.source == "predicted"
    assert size.better is True
    assert size.delta.startswith("−")
    assert latency.source == "measured"
    assert latency.values[2] is None
    assert accuracy.source == "measured, n = 1000"
    forecast = Latency(median_ms=10, low_ms=9.9, high_ms=10.1, ratio=2.0, runs=20, threads=2)
    _, latency, _, _ = figures(msgspec.structs.replace(busy_view(), forecast=forecast))
    assert latency.source == "predicted"
    assert latency.values == ("21.4", "21.4", "10.7")
    assert latency.better is True


def test_a_made_version_is_held_against_the_original() -> None:
    size, latency, accuracy, _ = figures(with_head(busy_view(), 3))
    assert size.values[:2] == ("44.7", "9.10")
    assert latency.values[:2] == ("21.4", "8.20")
    assert accuracy.delta == "−1.8"
    assert accuracy.better is False


def test_the_originals_figure_is_never_shown_as_a_versions_own() -> None:
    view = with_head(busy_view(), 3)
    versions = list(view.project.versions)
    versions[3] = msgspec.structs.replace(versions[3], measurement=None)
    for figure in figures(
        msgspec.structs.replace(view, project=msgspec.structs.replace(view.project, versions=tuple(versions)))
    ):
        assert _shown(figure)[1:] in ([], ["–"])


def test_nothing_is_claimed_without_a_model() -> None:
    assert all(value is None for figure in figures(View()) for value in figure.values)


def test_every_width_of_the_headline_fits_its_words(theme: Theme, selection: Selection, qtbot: QtBot) -> None:
    panel = Headline(FakeSession(with_head(busy_view(), 3)), selection, theme)
    qtbot.addWidget(panel)
    panel.show()
    for width in (500, 780, 1100, 1600):
        panel.resize(width, 64)
        for cell in panel.cells:
            assert cell._values.sizeHint().width() <= cell.width()


def test_versions_stand_below_their_parent_in_the_order_they_were_made() -> None:
    project = busy_view().project
    versions = list(project.versions)
    versions[4] = msgspec.structs.replace(versions[4], parent=1)
    ordered = in_tree_order(msgspec.structs.replace(project, versions=tuple(versions)))
    assert [(v.id, depth) for v, depth in ordered] == [(0, 0), (1, 1), (4, 2), (2, 1), (3, 1), (5, 1)]


def test_a_click_on_a_card_goes_there_and_cards_say_their_figures(
    theme: Theme, selection: Selection, qtbot: QtBot
) -> None:
    session = FakeSession(busy_view())
    panel = VersionsPanel(session, selection, theme)
    qtbot.addWidget(panel)
    panel.resize(200, 500)
    panel.show()
    place = panel.list.visualRect(panel.model.index(2)).center()
    qtbot.mouseClick(panel.list.viewport(), Qt.MouseButton.LeftButton, pos=place)
    assert ("go_to", 2) in session.asked
    words = panel.model.index(2).data(Qt.ItemDataRole.AccessibleTextRole)
    assert words == "INT8, stem and head kept: 12 MB, 10.6 ms, 91.9 %"
    assert not panel.grab().isNull()


def job(number: int, **changes: object) -> Job:
    return Job(**{"id": number, "title": f"Job {number}", "kind": "compress", **changes})


def test_jobs_say_how_far_they_are() -> None:
    assert left(job(1, state="running", share=0.64, eta_s=6.2)) == "64 % · 0:06 left"
    assert left(job(1, state="running", share=0.01)) == "1 %"
    assert left(job(1, state="running", share=0.64, paused=True)) == "64 % · paused"
    assert left(job(1)) == "waiting"


def test_jobs_come_change_and_go(theme: Theme, selection: Selection, qtbot: QtBot) -> None:
    session = FakeSession()
    panel = JobsPanel(session, selection, theme)
    qtbot.addWidget(panel)
    panel.show()
    assert not panel._idle.isHidden()
    session.show(jobs=(job(1, state="running", share=0.5, words="layer1"), job(2)))
    assert panel.count.text() == "1 RUNNING · 1 QUEUED"
    assert set(panel._rows) == {1, 2}
    failure = Failed(what="The disk is full")
    session.show(
        jobs=(job(1, state="done"), job(2, state="failed", error=failure)),
        log=(LogLine(when="10:00:00", text="done"),),
    )
    assert set(panel._rows) == {2}
    with qtbot.waitSignal(panel.details_asked) as asked:
        panel._rows[2]._details.click()
    assert asked.args == [2]
    assert "10:00:00 done" in panel._log.text()


def test_a_comparison_lists_layers_of_both_sides_and_sorts(theme: Theme) -> None:
    project = busy_view().project
    original = project.versions[0]
    fewer = msgspec.structs.replace(original.info, layers=original.layers[:-1])
    rows = rows_of(original, msgspec.structs.replace(project.versions[1], info=fewer))
    assert len(rows) == len(original.layers)
    assert rows[-1].right is None
    model = CompareModel(theme)
    model.show(rows)
    place = next(i for i, column in enumerate(COLUMNS) if column.title == "Bytes A")
    model.sort(place, Qt.SortOrder.DescendingOrder)
    sizes = [row.left.cost.bytes for row in model.rows]
    assert sizes == sorted(sizes, reverse=True)
    for row in range(model.rowCount()):
        for column in range(model.columnCount()):
            assert isinstance(model.index(row, column).data(), str)


def test_the_palette_prefers_words_and_takes_letters_in_order() -> None:
    entries = ["Analyze: Scan sensitivity", "View: Reset layout", "File: Open"]
    assert matches("scan sens", entries[0]) < matches("scns", entries[0])
    assert matches("xyz", entries[1]) is None
    assert matches("open", entries[2]) is not None


def test_the_preflight_is_words(tmp_path: Path) -> None:
    version = busy_view().project.versions[0]
    finding = Finding(
        level="caution", subject="dynamic dimensions", what="2 have no size.", layers=("conv1",)
    )
    text = model_text(
        msgspec.structs.replace(version, info=msgspec.structs.replace(version.info, findings=(finding,)))
    )
    assert "## Mind" in text
    assert "dynamic dimensions" in text


class DataSession(FakeSession):
    """Answers previews at once, and remembers what was chosen."""

    def set_data(self, **chosen: DataSpec | None) -> None:
        self.asked.append(("set_data", chosen))

    def __init__(self, picture: Path) -> None:
        super().__init__(busy_view())
        self.picture = picture

    def preview_data(self, spec: DataSpec, then: object) -> None:
        self.asked.append(("preview", spec))
        if spec.path == "missing":
            then(Failed(what="Cannot read missing", why="there is no such file"))
            return
        if Path(spec.path).is_dir() and spec.preprocess is None:
            spec = msgspec.structs.replace(
                spec, preprocess=Preprocess(height=8, width=8)
            )  # as the engine guesses
        summary = DataSummary(
            spec=spec, samples=8, labelled=4, classes=2, description="8 samples", cautions=("Few samples.",)
        )
        inputs = (("image", "float32", "1×3×8×8", 0.0, 0.5, 1.0),)
        then(DataPreview(summary=summary, inputs=inputs, images=(str(self.picture),), labels=("cat",)))


@pytest.fixture
def data_page(theme: Theme, tmp_path: Path, qtbot: QtBot) -> DataPage:
    picture = tmp_path / "0.png"
    pixmap = QPixmap(8, 8)
    pixmap.fill(Qt.GlobalColor.red)
    pixmap.save(str(picture))
    page = DataPage(DataSession(picture), theme, "Samples.", DataSpec(path="data.npz"))
    qtbot.addWidget(page)
    page.show()
    return page


def test_the_preview_shows_pictures_statistics_and_cautions(data_page: DataPage) -> None:
    data_page.preview()
    assert data_page.images.count() == 1
    assert data_page.images.item(0).text() == "cat"
    assert data_page.inputs.item(0, 2).text() == "1×3×8×8"
    assert "4 of 8 labelled" in data_page.words.text()
    assert "Few samples." in data_page.words.text()


def test_data_that_cannot_be_read_are_one_sentence(data_page: DataPage) -> None:
    data_page.path.setText("missing")
    data_page.preview()
    assert "there is no such file" in data_page.words.text()
    assert data_page.images.count() == 0


def test_data_that_cannot_be_read_are_not_taken_over(theme: Theme, tmp_path: Path, qtbot: QtBot) -> None:
    session, parent = DataSession(tmp_path / "0.png"), QWidget()
    qtbot.addWidget(parent)
    wizard = DataWizard(session, theme, parent)
    wizard.evaluation.files.setChecked(True)
    wizard.evaluation.path.setText("missing")
    wizard.evaluation.preview()
    wizard.accept()
    assert wizard.tabs.currentWidget() is wizard.evaluation  # where the reason stands
    assert not any(name == "set_data" for name, _ in session.asked)
    wizard.evaluation.none.setChecked(True)
    wizard.accept()
    assert any(name == "set_data" for name, _ in session.asked)


def test_the_choice_becomes_a_spec(data_page: DataPage, tmp_path: Path) -> None:
    assert data_page.spec == DataSpec(path="data.npz")
    data_page.form.edited.emit("limit", 64)
    assert data_page.spec.limit == 64
    data_page.random.setChecked(True)
    assert data_page.spec.kind == "random"
    data_page.none.setChecked(True)
    assert data_page.spec is None
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    data_page.files.setChecked(True)
    data_page.path.setText(str(tmp_path / "photos"))
    data_page.preview()
    assert data_page.spec.preprocess is None
    assert not data_page.preprocess.isHidden()
    data_page.preprocess.edited.emit("height", 32)
    assert data_page.spec.preprocess == Preprocess(height=32, width=8)
    data_page.path.setText("other.npz")
    assert data_page.spec.preprocess is None


def test_three_thousand_changes_of_the_view_are_drawn_without_a_crash(
    theme: Theme, selection: Selection, qtbot: QtBot
) -> None:
    session = FakeSession(busy_view())
    panels: list[QWidget] = [kind(session, selection, theme) for kind in (Headline, VersionsPanel, JobsPanel)]
    for panel in panels:
        qtbot.addWidget(panel)
        panel.show()
    for i in range(3000):
        running = job(1, state="running", share=i / 3000, words=f"layer {i}", eta_s=float(i))
        session.show(jobs=(running,), planning=bool(i % 2))
        if i % 100 == 0:
            QApplication.processEvents()
    assert all(panel.isVisible() for panel in panels)
