"""Where the studio keeps what is its own: recent files, and a scratch folder for each session.

    HOME/recent.json
    HOME/sessions/NAME/owner        pid and start time of the process it belongs to
                      /project.json the autosaved project, while there is unsaved work
                      /models/      files by digest (`store`)
                      /stripped/    weightless copies for the graph view
                      /jobs/        scratch folders of running deeds
    HOME/training/                  checkpoints of training that is going on, or was killed

A session folder whose owner is gone and that holds an autosaved project is what a crash left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import platformdirs
import psutil

from studio.base.errors import StudioError
from studio.records.base import Record, decode, encode

RECENT_LIMIT = 12
AUTOSAVE = "project.json"


class Recoverable(Record, frozen=True, kw_only=True):
    """A project that a crash left unsaved."""

    folder: str
    name: str
    when: float  # of its last autosave, seconds since the epoch
    versions: int


def default_home() -> Path:
    """The user's data folder for this program; `FEATHERWEIGHT_HOME` overrides it."""
    return Path(
        os.environ.get("FEATHERWEIGHT_HOME") or platformdirs.user_data_dir("featherweight", appauthor=False)
    )


def training_folder(home: Path | None = None) -> Path:
    """Where checkpoints of training lie; shared by all, so that any goes on where another was killed."""
    return (home or default_home()) / "training"


class Home:
    """The folder, and this session's own folder in it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_home()
        try:
            sessions = self.folder / "sessions"
            sessions.mkdir(parents=True, exist_ok=True)
            self.session = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=sessions))
            for part in ("models", "stripped", "jobs"):
                (self.session / part).mkdir()
            (self.session / "owner").write_text(_fingerprint(os.getpid()))
        except OSError as error:
            raise StudioError(
                f"Cannot write to {self.folder}",
                error.strerror or str(error),
                "Set FEATHERWEIGHT_HOME to a folder that can be written.",
            ) from error

    def remove_session(self) -> None:
        """Remove this session's folder."""
        shutil.rmtree(self.session, ignore_errors=True)

    # ------------------------------------------------------------ recent files

    def recent(self) -> tuple[str, ...]:
        """Paths of models and projects opened lately that still exist, newest first."""
        with contextlib.suppress(OSError, StudioError):
            paths = decode((self.folder / "recent.json").read_bytes(), tuple[str, ...])
            return tuple(p for p in paths if Path(p).exists())
        return ()

    def remember(self, path: Path) -> None:
        """Put a path first among the recent ones; writes, so not on the owner's thread."""
        with contextlib.suppress(OSError):
            write_whole(self.folder / "recent.json", encode(first_of(str(path), self.recent())))

    # ------------------------------------------------------------ crashes

    def orphans(self) -> tuple[Path, ...]:
        """Session folders whose owner is gone, newest first."""
        others = (f for f in (self.folder / "sessions").iterdir() if f != self.session)
        return tuple(sorted((f for f in others if not _owner_lives(f)), reverse=True))


def first_of(path: str, paths: tuple[str, ...]) -> tuple[str, ...]:
    """These paths with one of them, or another, first."""
    return (path, *(p for p in paths if p != path))[:RECENT_LIMIT]


def _fingerprint(pid: int) -> str:
    # A pid alone may be used again; with its start time it is unique until the next boot.
    return f"{pid} {psutil.Process(pid).create_time():.2f}"


def _owner_lives(folder: Path) -> bool:
    try:
        written = (folder / "owner").read_text()
        return written == _fingerprint(int(written.split()[0]))
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime < 60  # being made this very moment
    except (OSError, ValueError, IndexError, psutil.Error):
        return False


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: beside it, flushed to disk, then renamed.

    Raises:
        OSError: it cannot be written; the old file is untouched.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(_mode_of(path))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _mode_of(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_mode & 0o777
    return 0o644
