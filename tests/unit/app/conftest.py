from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from studio.app.jobs import Inbox
from studio.app.session import Session

FAKE = [sys.executable, str(Path(__file__).resolve().parents[2] / "support" / "fake_worker.py")]
WAIT_S = 150.0  # for what takes milliseconds; only a hang reaches it


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def until(inbox: Inbox) -> Callable[[Callable[[], bool]], None]:
    """Run what the lanes post until something holds."""

    def wait(done: Callable[[], bool]) -> None:
        assert inbox.run_until(done, WAIT_S), "it never came to that"

    return wait


@pytest.fixture
def session(inbox: Inbox, tmp_path: Path) -> Iterator[Session]:
    """A session with a worker that answers without weights."""
    made = Session(inbox.post, tmp_path / "studio-home", command=FAKE)
    yield made
    made.shutdown()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"any bytes")
    return path


@pytest.fixture
def opened(session: Session, model: Path, until: Callable[[Callable[[], bool]], None]) -> Session:
    """The session with a model open, and nothing left to do."""
    session.open_model(model)
    until(lambda: session.view.project is not None and not any(j.active for j in session.view.jobs))
    return session
