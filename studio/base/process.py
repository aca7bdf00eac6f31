"""A child process that speaks in length-prefixed frames over its standard streams.

The child is this same program in its role `worker`. Frames are opaque bytes here. The child's
own prints (and those of native libraries) go to its standard error, whose tail is kept for
reports. A child ends when its standard input closes, so it never outlives a killed parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import psutil

_LENGTH = struct.Struct("<I")
# A frame carries records and file paths, never tensors; a larger one is a bug.
MAX_FRAME = 256 * 1024 * 1024


def write_frame(stream: IO[bytes], payload: bytes) -> None:
    """Write one frame and flush it."""
    stream.write(_LENGTH.pack(len(payload)) + payload)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame, or None at the end of the stream (also in the middle of a frame)."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    if size > MAX_FRAME:
        return None
    payload = stream.read(size)
    return payload if len(payload) == size else None


def worker_command() -> list[str]:
    """The command line that starts this program as a worker."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "worker"]
    return [sys.executable, "-m", "studio", "worker"]


class Child:
    """One running worker process."""

    def __init__(self, command: list[str] | None = None, env: dict[str, str] | None = None) -> None:
        handle, name = tempfile.mkstemp(prefix="featherweight-", suffix=".log")
        self._log_path = Path(name)
        self._process = subprocess.Popen(
            command or worker_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=handle,
            env={**os.environ, **(env or {})},
            start_new_session=True,  # so that a whole family can be ended at once
        )
        os.close(handle)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def send(self, payload: bytes) -> bool:
        """Send one frame; False when the child is gone."""
        try:
            write_frame(self._stdin, payload)
        except (BrokenPipeError, OSError, ValueError):
            return False
        return True

    def receive(self) -> bytes | None:
        """Block for the next frame; None when the child has ended."""
        try:
            return read_frame(self._stdout)
        except (OSError, ValueError):
            return None

    def resident_bytes(self) -> int:
        """Resident memory of the child and its own children, 0 when it is gone."""
        total = 0
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(self.pid)
            for process in (family, *family.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
        return total

    def log_tail(self, limit: int = 4000) -> str:
        """The end of what the child printed."""
        with contextlib.suppress(OSError, ValueError), self._log_path.open("rb") as log:
            log.seek(max(0, self._log_path.stat().st_size - limit))
            return log.read().decode("utf-8", "replace")
        return ""

    def how_it_ended(self) -> str:
        """In words, why the process is gone: 'killed by SIGSEGV', 'exit code 1'."""
        code = self._process.poll()
        if code is None:
            return "still running"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def hold(self, *, on: bool) -> None:
        """Let the whole family stand still, or go on."""
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(self.pid)
            for process in (parent, *parent.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    if on:
                        process.suspend()
                    else:
                        process.resume()

    def terminate(self) -> None:
        """Ask the whole family to end at once (SIGTERM)."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole family and reap the child; safe to call twice."""
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)

    def close(self) -> None:
        """End the child and free what belongs to it."""
        self.kill()
        for stream in (self._stdin, self._stdout):
            with contextlib.suppress(OSError, ValueError):
                stream.close()
        self._log_path.unlink(missing_ok=True)

    def _signal(self, number: int) -> None:
        if self._process.poll() is not None:
            return
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.pid, number)
            else:
                self._process.kill()
