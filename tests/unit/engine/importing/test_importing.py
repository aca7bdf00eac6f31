"""PyTorch files become ONNX under their own names, and nothing in them runs without consent."""

from __future__ import annotations

import io
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.engine import graph
from studio.engine.importing import import_model, kind_of
from studio.records.model import TensorInfo
from studio.records.task import Import

FACTORY = """
import torch
from torch import nn
from pathlib import Path

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

def small():
    return Net()

def normed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    nn.init.normal_(net[1].running_mean)
    nn.init.uniform_(net[1].running_var, 0.5, 2)
    return net
"""
INPUT = (TensorInfo(name="x", dtype="float32", shape=(2, 3, 8, 8)),)


@pytest.fixture
def net(tmp_path: Path) -> nn.Module:
    (tmp_path / "nets_of_test.py").write_text(FACTORY)
    space: dict[str, object] = {}
    exec(compile(FACTORY, "nets", "exec"), space)
    return space["small"]().eval()  # type: ignore[operator]


def asked(source: Path, **more: object) -> Import:
    return Import(source=str(source), output=str(source.parent / "out.onnx"), **more)  # type: ignore[arg-type]


def hostile_program(path: Path, marker: Path) -> Path:
    """A .pt2 whose example inputs are a pickle that leaves a mark when it is read."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, (f"__import__('pathlib').Path({str(marker)!r}).write_text('ran')",))

    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(Plain(), (torch.ones(2),)), path)
    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    with zipfile.ZipFile(path) as archive:
        entries = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, buffer.getvalue() if "sample_inputs" in name else data)
    assert any("sample_inputs" in n for n in entries)
    return path


def test_kinds_are_told_without_loading(tmp_path: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), tmp_path / "state.pt")
    save_file(net.state_dict(), tmp_path / "state.safetensors")
    assert kind_of(tmp_path / "state.pt") == "weights"
    assert kind_of(tmp_path / "state.safetensors") == "safetensors"
    assert kind_of(hostile_program(tmp_path / "p.pt2", tmp_path / "marker")) == "program"
    assert not (tmp_path / "marker").exists()
    (tmp_path / "odd.pt").write_bytes(b"nothing")
    with pytest.raises(StudioError, match="no PyTorch file"):
        kind_of(tmp_path / "odd.pt")


def test_a_hostile_program_runs_nothing_without_consent(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    source = hostile_program(tmp_path / "p.pt2", marker)
    with pytest.raises(StudioError, match="can run code") as caught:
        import_model(asked(source), Progress())
    assert "torch.onnx.export" in caught.value.hint
    assert not marker.exists()
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="confinement is Linux's")
def test_with_consent_a_hostile_program_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    marker = tmp_path / "elsewhere" / "marker"
    marker.parent.mkdir()
    source = hostile_program(tmp_path / "p.pt2", marker)
    from studio.engine.importing import convert

    folder = tmp_path / "own"
    folder.mkdir()
    try:
        answer = convert._confined(asked(source, consent=True), source, "program", folder, Progress())
        held = answer.held
    except StudioError:
        held = ("files",)  # the refused write ended the conversion
    if any(words.startswith("files") for words in held):
        assert not marker.exists()


@pytest.mark.slow
def test_weights_with_a_factory_become_onnx_under_their_own_names(tmp_path: Path, net: nn.Module) -> None:
    source = tmp_path / "state.safetensors"
    save_file(net.state_dict(), source)
    with pytest.raises(StudioError, match="weights only"):
        import_model(asked(source), Progress())
    with pytest.raises(StudioError, match="runs the code of"):
        import_model(asked(source, factory="nets_of_test:small", inputs=INPUT), Progress())
    done = import_model(asked(source, factory="nets_of_test:small", inputs=INPUT, consent=True), Progress())
    model = graph.load(Path(done.output))
    weights = {v.name: v.const_value for v in model.graph.initializers.values()}
    assert set(weights) >= set(net.state_dict())
    np.testing.assert_array_equal(weights["conv.weight"].numpy(), net.state_dict()["conv.weight"].numpy())


@pytest.mark.slow
def test_pickled_modules_are_refused_in_words(tmp_path: Path, net: nn.Module) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, (f"__import__('pathlib').Path({str(tmp_path / 'marker')!r}).write_text('ran')",))

    torch.save({"net": Evil()}, tmp_path / "whole.pt")
    with pytest.raises(StudioError, match="Cannot convert") as caught:
        import_model(
            asked(tmp_path / "whole.pt", factory="nets_of_test:small", inputs=INPUT, consent=True), Progress()
        )
    assert "pickled" in caught.value.why
    assert not (tmp_path / "marker").exists()


def test_normalisations_move_into_convolutions_whose_weights_keep_their_names(
    tmp_path: Path, net: nn.Module
) -> None:
    del net
    space: dict[str, object] = {}
    exec(compile(FACTORY, "nets", "exec"), space)
    save_file(space["normed"]().state_dict(), tmp_path / "w.safetensors")  # type: ignore[operator]
    done = import_model(
        asked(tmp_path / "w.safetensors", factory="nets_of_test:normed", inputs=INPUT, consent=True),
        Progress(),
    )
    model = graph.load(Path(done.output))
    assert "BatchNormalization" not in {n.op_type for n in graph.nodes(model)}
    assert {"0.weight", "3.weight", "3.bias"} <= {v.name for v in model.graph.initializers.values()}
    assert any("1 batch normalisation" in note for note in done.notes)
