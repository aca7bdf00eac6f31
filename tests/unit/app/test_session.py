from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.app.conftest import FAKE

from studio.app.export import Exported
from studio.app.jobs import Inbox
from studio.app.session import Session
from studio.app.view import View
from studio.base.errors import StudioError
from studio.records.measure import DataSpec
from studio.records.steps import Fp16, QuantizeStatic, Sparsify
from studio.records.task import Answer, LayerDetail

Until = Callable[[Callable[[], bool]], None]


def idle(session: Session) -> Callable[[], bool]:
    return lambda: not session.view.planning and not any(job.active for job in session.view.jobs)


def last(session: Session, kind: str):
    return [job for job in session.view.jobs if job.kind == kind][-1]


def compressed(session: Session, until: Until) -> None:
    session.set_treatment(["stem", "head"], "quantize", Fp16())
    session.compress()
    until(idle(session))


# ---------------------------------------------------------------- opening


def test_a_model_opens_is_inspected_profiled_and_measured(opened: Session, model: Path) -> None:
    project = opened.view.project
    assert project is not None
    original = project.original
    assert original is not None
    assert original.info is not None
    assert [layer.name for layer in original.layers] == ["stem", "body", "head"]
    assert original.profile is not None
    assert original.measurement is not None
    assert Path(original.stripped).is_file()
    assert project.input_sizes == (("N", 1),)
    assert opened.recent == (str(model),)
    assert not opened.view.modified


def test_a_model_that_cannot_be_read_is_a_failed_job_and_keeps_the_project(
    opened: Session, tmp_path: Path, until: Until
) -> None:
    broken = tmp_path / "fail.onnx"
    broken.write_bytes(b"x")
    before = opened.view.project
    job = opened.open_model(broken)
    until(idle(opened))
    found = opened.view.job(job)
    assert found is not None
    assert (found.state, found.words) == ("failed", "Cannot read it: it is broken. Mend it.")
    assert opened.view.project is before
    assert opened.view.log[-1].level == "error"


def test_opening_can_be_cancelled(session: Session, tmp_path: Path, until: Until) -> None:
    slow = tmp_path / "slow.onnx"
    slow.write_bytes(b"x")
    job = session.open_model(slow)
    until(lambda: session.view.job(job).share > 0)  # type: ignore[union-attr]
    session.cancel(job)
    assert session.view.job(job).state == "cancelled"  # type: ignore[union-attr]
    assert session.view.project is None


def test_listeners_hear_every_change_with_old_and_new(session: Session, model: Path, until: Until) -> None:
    seen = []
    stop = session.listen(lambda old, new: seen.append((old, new)))
    session.open_model(model)
    until(idle(session))
    assert all(before[1] is after[0] for before, after in itertools.pairwise(seen))
    count = len(seen)
    stop()
    session.set_treatment(["stem"], "quantize", Fp16())
    assert len(seen) == count


def test_a_listener_may_cause_the_next_change(opened: Session) -> None:
    heard: list[tuple[str, ...]] = []

    def stage_another(_old: View, new: View) -> None:
        if new.project is not None and new.project.staged == ("stem",):
            opened.set_treatment(["head"], "quantize", Fp16())

    def staged(_old: View, new: View) -> None:
        if new.project is not None and (not heard or new.project.staged != heard[-1]):
            heard.append(new.project.staged)

    opened.listen(stage_another)
    opened.listen(staged)
    opened.set_treatment(["stem"], "quantize", Fp16())
    assert heard == [("stem",), ("stem", "head")]


# ---------------------------------------------------------------- decisions


def test_staging_plans_and_predicts(opened: Session, until: Until) -> None:
    opened.set_treatment(["stem"], "quantize", Fp16())
    opened.set_treatment(["body"], "sparsify", Sparsify())
    assert opened.view.planning
    until(idle(opened))
    assert [plan.step.settings for plan in opened.view.plans] == [Sparsify(), Fp16()]
    assert opened.view.predicted is not None
    assert opened.view.predicted.bytes == 600
    until(lambda: opened.view.forecast is not None)
    assert opened.view.predicted_ms == 0.5  # measured 1 ms, and the draft took half the time
    opened.clear_treatments()
    assert opened.view.plans == ()
    assert opened.view.predicted is None
    assert opened.view.predicted_ms is None


def test_decisions_are_undone_and_redone_with_their_words(opened: Session) -> None:
    opened.set_treatment(["stem"], "quantize", Fp16())
    opened.set_data(calibration=DataSpec(kind="random"))
    assert (opened.view.undo_text, opened.view.can_redo) == ("Choose data", False)
    opened.undo()
    assert (opened.view.undo_text, opened.view.redo_text) == ("FP16 on 1 layer", "Choose data")
    assert opened.view.project is not None
    assert opened.view.project.calibration is None
    opened.undo()
    assert opened.view.project.staged == ()
    opened.redo()
    opened.redo()
    assert opened.view.project.staged == ("stem",)
    assert opened.view.project.calibration == DataSpec(kind="random")
    assert not opened.view.can_redo


def test_edits_of_one_slider_are_one_decision(
    inbox: Inbox, tmp_path: Path, model: Path, until: Until
) -> None:
    now = [1000.0]
    session = Session(inbox.post, tmp_path / "home", command=FAKE, clock=lambda: now[0])
    try:
        session.open_model(model)
        until(idle(session))
        for ratio in (0.1, 0.2, 0.3):
            session.set_treatment(["stem"], "sparsify", Sparsify(ratio=ratio))
            now[0] += 0.2
        now[0] += 10
        session.set_treatment(["stem"], "sparsify", Sparsify(ratio=0.4))
        session.undo()
        assert session.view.project is not None
        assert session.view.project.treatment_of("stem").settings == (Sparsify(ratio=0.3),)
        session.undo()
        assert session.view.project.staged == ()
    finally:
        session.shutdown()


def test_treatments_wait_for_the_head_to_come_back(opened: Session, until: Until) -> None:
    compressed(opened, until)
    opened.set_treatment(["body"], "quantize", Fp16())
    opened.go_to(0)
    assert opened.view.project is not None
    assert opened.view.project.staged == ()
    opened.go_to(1)
    assert opened.view.project.staged == ("body",)
    until(idle(opened))


def test_data_are_described_in_the_background(opened: Session, until: Until) -> None:
    opened.set_data(evaluation=DataSpec(kind="random"))
    until(lambda: opened.view.project.evaluation_summary is not None)  # type: ignore[union-attr]
    opened.set_data(evaluation=None)
    assert opened.view.project.evaluation_summary is None  # type: ignore[union-attr]


def test_other_input_sizes_are_inspected_anew(opened: Session, until: Until) -> None:
    opened.set_input_sizes((("N", 8),))
    until(lambda: dict(opened.view.project.current.info.input_sizes) == {"N": 8})  # type: ignore[union-attr]
    opened.undo()
    until(lambda: dict(opened.view.project.current.info.input_sizes) == {"N": 1})  # type: ignore[union-attr]


def test_an_empty_name_is_refused(opened: Session) -> None:
    with pytest.raises(StudioError, match="needs a name"):
        opened.rename(0, "  ")


# ---------------------------------------------------------------- deeds


def test_compressing_makes_a_measured_version_and_undo_keeps_it(opened: Session, until: Until) -> None:
    compressed(opened, until)
    project = opened.view.project
    assert project is not None
    version = project.current
    assert version is not None
    assert (version.id, version.parent, version.name) == (1, 0, "FP16")
    assert version.measurement is not None
    until(lambda: opened.view.project.current.info is not None)  # type: ignore[union-attr]
    assert Path(version.file).is_file()
    assert project.staged == ()
    live = opened.view.live
    assert live is not None
    assert (live.sizes, len(live.times), live.running) == (((1, 900), (2, 600)), 2, False)
    assert live.start_ms == 1.0
    opened.undo()
    project = opened.view.project
    assert (project.head, project.staged, len(project.versions)) == (0, ("stem", "head"), 2)
    assert project.version(1).measurement is not None
    assert opened.view.modified


def test_the_same_recipe_again_is_not_worked_twice(opened: Session, until: Until) -> None:
    compressed(opened, until)
    opened.undo()
    job = opened.compress()
    assert opened.view.job(job).state == "done"  # type: ignore[union-attr]
    assert opened.view.project.head == 1  # type: ignore[union-attr]
    assert len(opened.view.project.versions) == 2  # type: ignore[union-attr]


def test_a_decision_during_the_work_is_not_overruled(opened: Session, until: Until) -> None:
    opened.set_treatment(["stem"], "quantize", Fp16())
    opened.compress()
    opened.set_treatment(["body"], "quantize", Fp16())
    until(idle(opened))
    project = opened.view.project
    assert project is not None
    assert (project.head, project.staged, len(project.versions)) == (0, ("stem", "body"), 2)


def test_the_recipe_of_a_version_is_the_whole_chain(opened: Session, until: Until) -> None:
    compressed(opened, until)
    opened.set_treatment(["body"], "sparsify", Sparsify())
    opened.compress()
    until(idle(opened))
    project = opened.view.project
    assert project is not None
    assert project.current is not None
    recipe = project.recipe_of(project.current)
    assert [step.settings for step in recipe.steps] == [Fp16(), Sparsify()]
    assert [step.layers for step in recipe.steps] == [("stem", "head"), ("body",)]


def test_a_step_on_every_layer_names_none_when_it_is_told(opened: Session, until: Until) -> None:
    opened.set_treatment(["stem", "body", "head"], "quantize", Fp16())
    opened.compress()
    until(idle(opened))
    project = opened.view.project
    assert project is not None
    assert project.current is not None
    assert [step.layers for step in project.recipe_of(project.current).steps] == [("*",)]


def test_nothing_staged_cannot_be_compressed(opened: Session) -> None:
    with pytest.raises(StudioError, match="Nothing is staged"):
        opened.compress()


def slow_project(session: Session, tmp_path: Path, until: Until) -> None:
    """A project whose model makes every further task slow."""
    path = tmp_path / "net.onnx"
    path.write_bytes(b"x")
    session.open_model(path)
    until(idle(session))
    project = session.view.project
    assert project is not None
    assert project.original is not None
    slow = tmp_path / "slow.onnx"
    slow.write_bytes(b"x")
    from studio.records.base import replace

    version = replace(project.original, file=str(slow))
    session._desk.board.change(project=project.with_version(version))


def test_a_cancelled_compress_leaves_no_version_and_no_file(
    session: Session, tmp_path: Path, until: Until
) -> None:
    slow_project(session, tmp_path, until)
    session.set_treatment(["stem"], "quantize", Fp16())
    job = session.compress()
    until(lambda: session.view.job(job).share > 0)  # type: ignore[union-attr]
    session.cancel(job)
    assert session.view.job(job).state == "cancelling"  # type: ignore[union-attr]
    until(lambda: session.view.job(job).state == "cancelled")  # type: ignore[union-attr]
    assert len(session.view.project.versions) == 1  # type: ignore[union-attr]
    assert session.view.project.staged == ("stem",)  # type: ignore[union-attr]
    assert not list((tmp_path / "studio-home").rglob("model.onnx"))
    assert not session.view.live.running  # type: ignore[union-attr]


def test_a_cancelled_scan_keeps_what_is_known(session: Session, tmp_path: Path, until: Until) -> None:
    slow_project(session, tmp_path, until)
    job = session.scan(QuantizeStatic())
    until(lambda: bool(session.view.scan_live and session.view.scan_live.layers))
    session.cancel(job)
    until(lambda: session.view.job(job).state == "cancelled")  # type: ignore[union-attr]
    (scan,) = session.view.project.original.scans  # type: ignore[union-attr]
    assert [s.layer for s in scan.layers] == ["stem"]
    assert not scan.complete


def test_a_scan_is_kept_with_its_version(opened: Session, until: Until) -> None:
    opened.scan(Fp16())
    until(idle(opened))
    opened.scan(Fp16())
    until(idle(opened))
    (scan,) = opened.view.project.original.scans  # type: ignore[union-attr]
    assert scan.complete
    assert len(scan.layers) == 3
    assert opened.view.scan_live is None


def test_an_export_is_the_same_file_and_is_checked(opened: Session, tmp_path: Path, until: Until) -> None:
    compressed(opened, until)
    heard: list[Exported] = []
    target = tmp_path / "out" / "small.onnx"
    target.parent.mkdir()
    opened.export(1, target, heard.append)
    until(idle(opened))
    (exported,) = heard
    assert exported.sound
    assert target.read_bytes() == Path(opened.view.project.version(1).file).read_bytes()  # type: ignore[union-attr]
    assert [p.name for p in target.parent.iterdir()] == ["small.onnx"]


def test_the_original_is_never_overwritten(opened: Session, model: Path, until: Until) -> None:
    compressed(opened, until)
    opened.export(1, model)
    until(idle(opened))
    assert last(opened, "export").state == "failed"
    assert "The original is never altered" in last(opened, "export").words
    assert model.read_bytes() == b"any bytes"


def test_the_newest_description_of_a_layer_wins(opened: Session, until: Until) -> None:
    answers: list[Answer] = []
    for layer in ("stem", "body", "head"):
        opened.describe_layer(layer, None, answers.append)
    until(lambda: bool(answers))
    assert answers == [LayerDetail(layer="head")]


def test_closing_cancels_and_forgets(opened: Session, until: Until) -> None:
    opened.set_treatment(["stem"], "quantize", Fp16())
    job = opened.compress()
    opened.close()
    assert opened.view.project is None
    until(idle(opened))
    assert opened.view.job(job).state == "cancelled"  # type: ignore[union-attr]


def test_shutdown_ends_every_worker(inbox: Inbox, tmp_path: Path, model: Path, until: Until) -> None:
    before = {t.name for t in threading.enumerate()}
    session = Session(inbox.post, tmp_path / "home", command=FAKE)
    session.open_model(model)
    until(lambda: session.view.project is not None)
    folder = session._desk.home.session
    session.shutdown()
    assert not folder.exists()
    assert {t.name for t in threading.enumerate()} - before <= {"watch"}
