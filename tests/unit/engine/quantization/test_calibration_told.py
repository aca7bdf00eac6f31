"""What calibration says of itself: the memory it will take, and how its ranges settle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import nets

from studio.base.progress import Progress
from studio.engine import graph
from studio.engine.dataset import open_for
from studio.engine.layers import list_layers
from studio.engine.planning import plan_step
from studio.engine.quantization import calibrate, memory
from studio.engine.quantization.calibrate import Watch, observe
from studio.engine.techniques.contract import Context
from studio.records.measure import DataSpec
from studio.records.steps import QuantizeStatic, Step

# Calibrates a model in a process of its own and prints what that took.
CHILD = """
import sys
from pathlib import Path
import onnxruntime, psutil
from studio.base.progress import Progress
from studio.engine import footprint, graph
from studio.engine.dataset import open_for
from studio.engine.layers import list_layers
from studio.engine.quantization.recipe import observed
from studio.engine.quantization.static import Workshop
from studio.records.measure import DataSpec
model = graph.load(Path(sys.argv[1]))
data = open_for(model, DataSpec(path=sys.argv[2]))
listing = list_layers(model, data.input_sizes())
shop = Workshop(model, listing.shapes, [n.record.key for n in listing.nodes.values()])
before = psutil.Process().memory_info().rss
footprint._forget_peak()
observed(shop, data, Progress(), 1, samples=False)
print(footprint._peak() - before)
"""


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Six convolutions that make 4 MB each, and four samples for them."""
    net, value = nets.Net(), "x"
    for number in range(6):
        value = net.add(
            "Conv",
            [value, net.weight(f"w{number}", 16, 3 if number == 0 else 16, 3, 3)],
            f"c{number}",
            pads=[1] * 4,
        )
        value = net.add("Relu", [value], f"r{number}")
    net.add("GlobalAveragePool", [value], "y")
    proto = net.build({"x": (1, ["N", 3, 256, 256])}, {"y": (1, ["N", 16, 1, 1])}, 17)
    onnx.save(proto, tmp_path / "wide.onnx")
    x = np.random.default_rng(0).normal(size=(4, 3, 256, 256)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x)
    return tmp_path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are only started anew on Linux")
def test_calibration_takes_about_the_memory_that_was_forecast(wide: Path) -> None:
    model = graph.load(wide / "wide.onnx")
    listing = list_layers(model, {"N": 1})
    forecast = memory.calibration_bytes(listing, 0)
    assert forecast is not None
    words = [sys.executable, "-c", CHILD, str(wide / "wide.onnx"), str(wide / "c.npz")]
    taken = int(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    assert 0.4 < taken / forecast < 1.6


def test_the_plan_tells_the_forecast(wide: Path) -> None:
    model = graph.load(wide / "wide.onnx")
    data = open_for(model, DataSpec(path=str(wide / "c.npz")))
    listing = list_layers(model, {"N": 1})
    step = Step(settings=QuantizeStatic())
    told = plan_step(listing, step, Context(calibration=data, preview=True, threads=1)).notes
    assert any("of memory" in note for note in told)
    assert any("only 4 samples" in note for note in told)
    assert not any("of memory" in note for note in plan_step(listing, step, Context(preview=True)).notes)


def test_the_job_tells_how_ranges_grow_and_when_they_have_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "_FEWEST_BYTES", 0)
    model = graph.load(nets.write("cnn", tmp_path))
    feed = nets.feed("cnn", 1)
    told: list[str] = []
    progress = Progress(lambda _share, words: told.append(words))
    feeds = [{"image": feed["image"] * scale} for scale in (1, 2, *[1] * 30)]
    observe(model, [Watch("image", 4)], feeds, progress, total=32, threads=1, settle=True)
    assert told[0] == "Calibrating, run 1"
    assert told[2] == "Calibrating, run 3: ranges +100.0 %"
    assert told[3] == "Calibrating, run 4: ranges +0.0 %"
    assert told[-1] == "Ranges have settled after 16 of 32 runs"
