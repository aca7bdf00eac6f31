"""One table, many readers: an embedding that the last product uses again, and a weight that two products share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support import nets

from studio.engine import execute, graph
from studio.engine.dataset import open_for
from studio.engine.layers import list_layers
from studio.engine.quantization import grids
from studio.engine.run import apply_steps
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import AnySettings, QuantizeDynamic, QuantizeWeights, Step

SETTINGS: list[AnySettings] = [
    QuantizeWeights(),
    QuantizeWeights(preset="careful"),
    QuantizeWeights(bits=8),
    QuantizeDynamic(),
    QuantizeDynamic(preset="careful"),
]


def tied(how: str) -> onnx.ModelProto:
    net = nets.Net()
    table = net.weight("table", 100, 64)
    value = net.add("MatMul", [net.add("Gather", [table, "ids"], "e"), net.weight("w", 64, 64)], "h")
    value = net.add("Relu", [value], "r")
    if how == "turned":
        net.add("MatMul", [value, net.add("Transpose", [table], "turned", perm=[1, 0])], "y")
    elif how == "gemm":
        rows = net.add("Reshape", [value, net.constant("rows", np.array([-1, 64]))], "flat")
        net.add("Gemm", [rows, table], "y", transB=1)
    else:
        net.add("MatMul", [net.add("MatMul", [value, "w"], "again"), net.weight("o", 64, 100)], "y")
    shape: list[int | str] = ["M", 100] if how == "gemm" else ["N", "T", 100]
    return net.build({"ids": (7, ["N", "T"])}, {"y": (1, shape)}, 17)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.chip} {s.preset}")
@pytest.mark.parametrize("how", ["turned", "gemm", "twice"])
def test_shared_weights_are_treated_wherever_they_are_read(
    how: str, settings: AnySettings, tmp_path: Path
) -> None:
    onnx.save(tied(how), tmp_path / "m.onnx")
    model = graph.load(tmp_path / "m.onnx")
    ids = np.random.default_rng(0).integers(0, 100, (8, 12))
    np.savez(tmp_path / "c.npz", ids=ids)
    context = Context(calibration=open_for(model, DataSpec(path=str(tmp_path / "c.npz"))), threads=1)
    result, (plan,) = apply_steps(model, [Step(settings=settings)], context, {})
    assert not plan.refusals
    assert list_layers(result).cost.bytes == plan.after.bytes
    assert graph.save(result, tmp_path / "out.onnx") < 0.55 * graph.file_bytes(tmp_path / "m.onnx")
    wanted, found = (execute.run(execute.session(m, threads=1), {"ids": ids})[0] for m in (model, result))
    assert grids.sqnr_db(wanted, found) > (
        13 if isinstance(settings, QuantizeWeights) and settings.bits == 4 else 30
    )
