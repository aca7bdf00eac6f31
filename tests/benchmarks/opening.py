"""How long large models take to open, and in how much memory: 10,000 layers, and 1 GB of weights.

Run with: python tests/benchmarks/opening.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def many_layers(path: Path, count: int = 10_000, channels: int = 8) -> None:
    """A chain of 1 × 1 convolutions."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(count):
        weights.append(
            numpy_helper.from_array(rng.normal(size=(channels, channels, 1, 1)).astype(np.float32), f"w{i}")
        )
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], name=f"conv{i}"))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        last = f"r{i}"
    _write(nodes, weights, ["N", channels, 4, 4], last, path)


def gigabyte(path: Path, layers: int = 64, size: int = 2048) -> None:
    """A chain of products whose weights lie in external data."""
    weight = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    nodes, weights, last = [], [], "x"
    with (path.parent / f"{path.name}.data").open("wb") as data:
        for i in range(layers):
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[size, size])
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": f"{path.name}.data", "offset": data.tell(), "length": weight.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            data.write(weight.tobytes())
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"], name=f"fc{i}"))
            last = f"m{i}"
    _write(nodes, weights, ["N", size], last, path)


def _write(
    nodes: list[onnx.NodeProto], weights: list[TensorProto], shape: list[int | str], output: str, path: Path
) -> None:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "g", [given], [onnx.ValueInfoProto(name=output)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def inspect(path: Path) -> None:
    """What a worker does with Inspect, timed in this process."""
    from studio.engine.graph import load
    from studio.engine.layers import describe, list_layers  # the imports are not the model's fault

    started = time.perf_counter()
    model = load(path)
    loaded = time.perf_counter()
    listing = list_layers(model)
    listed = time.perf_counter()
    describe(listing, path, path.with_suffix(".bare"))
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"{path.name}: {len(listing.layers)} layers, read {loaded - started:.2f} s, listed {listed - loaded:.2f} s, "
        f"counted and hashed {ended - listed:.2f} s, together {ended - started:.2f} s, peak {peak:.0f} MB"
    )


def main() -> None:
    """Make both models and inspect each in a process of its own."""
    if len(sys.argv) > 1:
        inspect(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        for make in (many_layers, gigabyte):
            path = Path(folder) / f"{make.__name__}.onnx"
            make(path)
            subprocess.run([sys.executable, __file__, str(path)], check=True)


if __name__ == "__main__":
    main()
