"""What an export writes appears whole, and what a killed one left goes away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from studio.app.export import written_whole
from studio.base.errors import StudioError


def break_off(target: Path) -> None:
    with written_whole(target) as partial:
        partial.write_bytes(b"new")
        raise KeyboardInterrupt


def test_a_model_and_its_weights_appear_together_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        break_off(target)
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    assert target.read_bytes() == b"old"
    with written_whole(target) as partial:
        partial.write_bytes(b"new")
        partial.with_name("out.onnx.data").write_bytes(b"weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert target.read_bytes() == b"new"


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".out.onnx.{gone.pid}.abc.partial"
    left.mkdir()
    (left / "out.onnx").write_bytes(b"half")
    other = tmp_path / f".other.onnx.{gone.pid}.abc.partial"
    other.mkdir()
    with written_whole(target) as first:
        first.write_bytes(b"first")
        with written_whole(target) as second:
            second.write_bytes(b"second")
        assert first.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "out.onnx"]


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="the disk is full"), written_whole(tmp_path / "out.onnx"):
        raise OSError(28, "No space left on device")
