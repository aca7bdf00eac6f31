from __future__ import annotations

import os
from pathlib import Path

import pytest

from studio.app.home import RECENT_LIMIT, Home, write_whole
from studio.base.errors import StudioError


def test_recent_files_are_the_newest_that_still_exist(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    paths = [tmp_path / f"{i}.onnx" for i in range(RECENT_LIMIT + 3)]
    for path in paths:
        path.touch()
        home.remember(path)
    home.remember(paths[5])
    paths[-1].unlink()
    found = Home(tmp_path / "home").recent()
    assert found[:2] == (str(paths[5]), str(paths[-2]))
    assert len(found) == RECENT_LIMIT - 1


def test_a_damaged_list_of_recent_files_is_an_empty_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / "recent.json").write_text("{")
    assert home.recent() == ()


def test_only_folders_of_ended_processes_are_orphans(tmp_path: Path) -> None:
    mine, other, gone, young = (Home(tmp_path) for _ in range(4))
    (gone.session / "owner").write_text(f"{os.getpid()} 1.00")  # the pid is used again by another process
    (young.session / "owner").unlink()  # being made this very moment
    assert mine.orphans() == (gone.session,)
    other.remove_session()
    assert not other.session.exists()


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(StudioError, match="FEATHERWEIGHT_HOME"):
        Home(blocked)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_whole(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o640)

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"newer")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["note"]
