"""What a command line is refused for before any work begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from studio.base.errors import StudioError
from studio.cli.compress import Order, compress


@pytest.fixture
def order(tmp_path: Path) -> Order:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"weights")
    return Order(model=model, output=tmp_path / "out.onnx", steps=("fp16",))


def test_the_model_and_the_report_are_never_one_file(order: Order) -> None:
    with pytest.raises(StudioError, match="twice"):
        compress(replace(order, report=order.output))
    with pytest.raises(StudioError, match="twice"):
        compress(
            replace(order, save_recipe=order.output.parent / ".." / order.output.parent.name / "out.onnx")
        )


def test_what_is_read_is_never_written(order: Order, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.onnx"
    teacher.write_bytes(b"teacher")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: [{technique: fp16}]")
    for changed in (
        replace(order, output=order.model),
        replace(order, output=teacher, teacher=teacher),
        replace(order, steps=(), recipe=recipe, save_recipe=recipe),
    ):
        with pytest.raises(StudioError, match="read from"):
            compress(changed)
    assert (order.model.read_bytes(), teacher.read_bytes()) == (b"weights", b"teacher")


def test_a_name_that_is_too_long_is_refused_in_words(order: Order) -> None:
    with pytest.raises(StudioError, match="File name too long"):
        compress(replace(order, output=Path("x" * 300 + ".onnx")))
    with pytest.raises(StudioError, match="no file or folder"):
        compress(replace(order, calibration="x" * 300 + ".npz"))


def test_a_preset_that_is_unknown_is_refused_with_those_that_are_known(order: Order) -> None:
    with pytest.raises(StudioError, match="There is no preset 'bogus'") as refused:
        compress(replace(order, steps=(), preset="bogus"))
    assert "fast, careful, small" in refused.value.hint
