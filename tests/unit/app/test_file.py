from __future__ import annotations

import json
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.app.conftest import FAKE
from unit.app.test_session import compressed, idle, last

from studio.app import file
from studio.app.jobs import Inbox
from studio.app.project import Project
from studio.app.session import Session
from studio.base.errors import StudioError
from studio.records.steps import Fp16, Sparsify

Until = Callable[[Callable[[], bool]], None]


def rich(session: Session, until: Until) -> Project:
    """The session's project with versions, a scan, notes and something staged."""
    compressed(session, until)
    session.annotate(1, "the good one")
    session.scan(Fp16())
    until(idle(session))
    session.set_treatment(["body"], "sparsify", Sparsify())
    until(idle(session))
    assert session.view.project is not None
    return session.view.project


def essence(project: Project) -> object:
    versions = [
        (v.id, v.name, v.note, v.parent, v.recipe, v.plans, v.measurement, v.scans) for v in project.versions
    ]
    return versions, project.head, project.treatments, project.calibration, project.input_sizes


@pytest.mark.parametrize("name", ["net.fwz", "net-project"])
def test_a_project_comes_back_as_it_was_saved(
    opened: Session, inbox: Inbox, tmp_path: Path, until: Until, model: Path, name: str
) -> None:
    project = rich(opened, until)
    files = {v.id: Path(v.file).read_bytes() for v in project.versions}
    target = tmp_path / "saved" / name
    target.parent.mkdir()
    assert opened.view.modified
    opened.save(target)
    until(idle(opened))
    assert not opened.view.modified
    assert opened.view.project is not None
    assert opened.view.project.path == str(target)
    model.unlink()  # a saved project needs nothing else
    other = Session(inbox.post, tmp_path / "other-home", command=FAKE)
    try:
        other.open_project(target)
        until(lambda: other.view.project is not None)
        until(idle(other))
        again = other.view.project
        assert again is not None
        assert essence(again) == essence(project)
        assert {v.id: Path(v.file).read_bytes() for v in again.versions} == files
        assert not other.view.modified
        until(lambda: Path(other.view.project.current.stripped).is_file())  # type: ignore[union-attr]
    finally:
        other.shutdown()
    assert [p.name for p in target.parent.iterdir()] == [name]


def test_saving_again_keeps_only_the_models_that_are_left(
    opened: Session, tmp_path: Path, until: Until
) -> None:
    rich(opened, until)
    target = tmp_path / "project"
    opened.save(target)
    until(idle(opened))
    assert len(list((target / "models").iterdir())) == 2
    opened.remove_version(1)
    opened.save()
    until(idle(opened))
    assert len(list((target / "models").iterdir())) == 1
    opened.undo()
    assert len(opened.view.project.versions) == 2  # type: ignore[union-attr]
    assert Path(opened.view.project.version(1).file).is_file()  # type: ignore[union-attr]


def test_a_folder_of_something_else_is_not_touched(opened: Session, tmp_path: Path, until: Until) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"sun")
    opened.save(photos)
    until(idle(opened))
    assert "holds something else" in last(opened, "save").words
    assert [p.name for p in photos.iterdir()] == ["holiday.jpg"]


def test_saving_needs_a_place(opened: Session) -> None:
    with pytest.raises(StudioError, match="no place"):
        opened.save()


def saved(session: Session, tmp_path: Path, until: Until) -> Path:
    rich(session, until)
    target = tmp_path / "net.fwz"
    session.save(target)
    until(idle(session))
    return target


def refused(path: Path, tmp_path: Path) -> str:
    """The sentence with which a project is refused."""
    models = tmp_path / "unpacked"
    with pytest.raises(StudioError) as caught:
        file.load(path, models, lambda _share, _words: None)
    sentence = caught.value.sentence
    assert "\n" not in sentence
    assert sentence.startswith(f"Cannot open {path.name}")
    return sentence


def test_a_truncated_project_is_one_sentence(opened: Session, tmp_path: Path, until: Until) -> None:
    target = saved(opened, tmp_path, until)
    target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    assert "damaged" in refused(target, tmp_path)


def test_a_flipped_byte_in_a_model_is_noticed(opened: Session, tmp_path: Path, until: Until) -> None:
    target = saved(opened, tmp_path, until)
    content = bytearray(target.read_bytes())
    at = content.index(b"any bytes")
    content[at] ^= 1
    target.write_bytes(bytes(content))
    assert "damaged" in refused(target, tmp_path)
    assert not list((tmp_path / "unpacked").rglob("*.partial"))


@pytest.mark.parametrize(
    "member",
    ["../evil.onnx", "/tmp/evil.onnx", "models/../../evil", "models/abcdef12/../x", "models\\abcdef12\\x"],
)
def test_a_member_that_points_elsewhere_is_refused(tmp_path: Path, member: str) -> None:
    path = tmp_path / "evil.fwz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("project.json", "{}")
        archive.writestr(member, b"evil")
    refused(path, tmp_path)
    assert not (tmp_path / "evil.onnx").exists()


def test_a_compressed_member_is_refused_as_it_may_be_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.fwz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("models/abcdef1234/model.onnx", bytes(10_000_000))
        archive.writestr("project.json", "{}")
    assert "which no project holds" in refused(path, tmp_path)


def folder_with(tmp_path: Path, content: object) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "project.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{", '{"program": "other"}', {"program": "featherweight", "format": 1},
        {"program": "featherweight", "format": 1, "project": {"name": 3}},
        {"program": "featherweight", "format": "x", "project": {"name": "n"}},
        {"program": "featherweight", "format": 99, "project": {"name": "n"}},
        {"program": "featherweight", "format": 1, "project": {"name": "n", "versions": [{"id": 0, "name": "o", "digest": "../..", "file": "/etc/passwd"}]}},
        {"program": "featherweight", "format": 1, "project": {"name": "n", "versions": [{"id": 0, "name": "o", "digest": "abcdef12", "file": "/etc/passwd"}]}},
    ],
)  # fmt: skip
def test_a_damaged_description_is_one_sentence(tmp_path: Path, content: object) -> None:
    refused(folder_with(tmp_path, content), tmp_path)


def test_a_linked_model_is_refused(opened: Session, tmp_path: Path, until: Until) -> None:
    rich(opened, until)
    target = tmp_path / "project"
    opened.save(target)
    until(idle(opened))
    path = next((target / "models").iterdir()) / "model.onnx"
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert "missing" in refused(target, tmp_path)


def test_something_that_is_no_project_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "notes.fwz"
    path.write_text("hello")
    assert "damaged" in refused(path, tmp_path)
    assert "not there" in refused(tmp_path / "nothing.fwz", tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("models/abcdef1234/model.onnx", b"x")
    assert "no project" in refused(path, tmp_path)


# ---------------------------------------------------------------- crashes


def test_unsaved_work_comes_back_after_a_crash(
    opened: Session, inbox: Inbox, tmp_path: Path, until: Until
) -> None:
    project = rich(opened, until)
    opened.autosave()
    saved_at = opened._desk.home.session / "project.json"
    until(lambda: saved_at.is_file() and b"sparsify" in saved_at.read_bytes())  # the last of several
    (opened._desk.home.session / "owner").write_text("1 0.00")  # as if its process were gone
    other = Session(inbox.post, tmp_path / "studio-home", command=FAKE)
    try:
        (found,) = other.recover()
        assert (found.name, found.versions) == ("net", 2)
        other.open_recovered(found)
        until(lambda: other.view.project is not None)
        again = other.view.project
        assert again is not None
        assert essence(again) == essence(project)
        assert other.view.modified
        until(lambda: not Path(found.folder).exists())
        assert all(Path(v.file).is_file() for v in again.versions)
        until(idle(other))
    finally:
        other.shutdown()


def test_autosave_is_for_unsaved_work_only(opened: Session) -> None:
    opened.autosave()
    opened._desk.lanes.close()
    assert not (opened._desk.home.session / "project.json").exists()


def test_a_living_session_is_not_recovered(
    opened: Session, inbox: Inbox, tmp_path: Path, until: Until
) -> None:
    rich(opened, until)
    opened.autosave()
    until((opened._desk.home.session / "project.json").is_file)
    other = Session(inbox.post, tmp_path / "studio-home", command=FAKE)
    try:
        assert other.recover() == ()
        assert opened._desk.home.session.exists()
    finally:
        other.shutdown()


@pytest.mark.parametrize("name", ["net.fwz", "net-project"])
def test_a_full_disk_leaves_the_project_saved_before(
    opened: Session, tmp_path: Path, until: Until, name: str
) -> None:
    rich(opened, until)
    target = tmp_path / name
    opened.save(target)
    until(idle(opened))
    saved = essence(file.load(target, tmp_path / "unpacked", lambda _share, _words: None))
    opened.annotate(1, "a longer note" * 200)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        opened.save()
        until(idle(opened))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    failed = last(opened, "save")
    assert (failed.state, "Cannot save" in failed.words) == ("failed", True)
    assert opened.view.modified
    assert essence(file.load(target, tmp_path / "unpacked", lambda _share, _words: None)) == saved
    assert not list(tmp_path.rglob("*.partial"))
