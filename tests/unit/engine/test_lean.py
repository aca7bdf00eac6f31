"""What compressing adds is written as short as can be; what the user's model had keeps its names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support import nets

from studio.base.progress import Progress
from studio.engine import execute, graph
from studio.engine.dataset import open_for
from studio.engine.layers import list_layers
from studio.engine.lean import known, make_lean
from studio.engine.run import apply, apply_steps
from studio.engine.techniques.contract import Context
from studio.records import task
from studio.records.measure import DataSpec
from studio.records.steps import AnySettings, QuantizeDynamic, QuantizeStatic, QuantizeWeights, Recipe, Step

SETTINGS = [QuantizeStatic(), QuantizeDynamic(), QuantizeWeights(block=16)]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("net", list(nets.NETS))
def test_a_lean_model_is_smaller_answers_the_same_and_has_the_same_layers(
    net: str, settings: AnySettings, tmp_path: Path
) -> None:
    model = graph.load(nets.write(net, tmp_path))
    before = known(model)
    context = Context(threads=1)
    if net == "cnn":
        np.savez(tmp_path / "c.npz", image=nets.feed("cnn", 8)["image"])
        context = Context(threads=1, calibration=open_for(model, DataSpec(path=str(tmp_path / "c.npz"))))
    elif isinstance(settings, QuantizeStatic):
        pytest.skip("there is no calibration data for it")
    result, _ = apply_steps(model, [Step(settings=settings)], context, {})
    wanted = execute.run(execute.session(result, threads=1), nets.feed(net, 4))[0]
    names = [(layer.name, layer.key, layer.precision) for layer in list_layers(result).layers]
    full = len(graph.to_bytes(result))
    make_lean(result, before)
    assert len(graph.to_bytes(result)) < full
    onnx.checker.check_model(onnx.load_from_string(graph.to_bytes(result)))
    np.testing.assert_array_equal(
        execute.run(execute.session(result, threads=1), nets.feed(net, 4))[0], wanted
    )
    assert [(layer.name, layer.key, layer.precision) for layer in list_layers(result).layers] == names
    left = known(result)
    assert {n.name for n in model.graph if n.op_type in {"Conv", "Relu", "LSTM"}} <= left.nodes


def test_a_file_repeats_no_types_and_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    nets.write("transformer", tmp_path)
    digests = set()
    for number in range(2):
        asked = task.Apply(
            model=str(tmp_path / "transformer.onnx"),
            recipe=Recipe(steps=(Step(settings=QuantizeWeights(block=16)),)),
            output=str(tmp_path / f"{number}.onnx"),
            threads=1,
            checkpoints=False,
        )
        digests.add(apply(asked, Progress(), lambda _news: None).digest)
    assert len(digests) == 1
    written = onnx.load(tmp_path / "0.onnx").graph
    assert not {v.name for v in written.value_info} & {t.name for t in written.initializer}


def test_nothing_is_renamed_where_nothing_was_added(tmp_path: Path) -> None:
    model = graph.load(nets.write("cnn", tmp_path))
    before = known(model)
    make_lean(model, before)
    assert known(model) == before
