"""Small networks for tests, each a few thousand weights, built with a seed and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]


class Net:
    """Collects nodes and weights, and becomes a checked ONNX model.

    Args:
        seed: of the weights.
        constants: keep weights in Constant nodes instead of initializers.
    """

    def __init__(self, seed: int = 0, *, constants: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.constants = constants
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Array) -> str:
        """Store an array; its name."""
        tensor = numpy_helper.from_array(value, name)
        if self.constants:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor, name=f"{name}_constant"))
        else:
            self.initializers.append(tensor)
        return name

    def weight(self, name: str, *shape: int) -> str:
        """Store Gaussian weights scaled by their fan-in."""
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        return self.constant(name, (self.rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32))

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node named after its output; the output."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}_node", **attributes))
        return output

    def build(
        self,
        inputs: dict[str, tuple[int, list[int | str]]],
        outputs: dict[str, tuple[int, list[int | str]]],
        opset: int = 17,
    ) -> onnx.ModelProto:
        """The checked model; inputs and outputs by name with (element type, shape)."""
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
            [helper.make_tensor_value_info(n, t, s) for n, (t, s) in outputs.items()],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def cnn(*, constants: bool = False, opset: int = 17) -> onnx.ModelProto:
    """Conv, depthwise Conv, a residual Add, pooling, Gemm: 'image' (N, 3, 16, 16) -> 'logits' (N, 10)."""
    net = Net(1, constants=constants)
    x = net.add("Conv", ["image", net.weight("w0", 16, 3, 3, 3), net.weight("b0", 16)], "stem", pads=[1] * 4)
    x = net.add("Relu", [x], "stem_relu")
    y = net.add(
        "Conv", [x, net.weight("w1", 16, 1, 3, 3), net.weight("b1", 16)], "depth", group=16, pads=[1] * 4
    )
    y = net.add(
        "Clip", [y, net.constant("zero", np.float32(0)), net.constant("six", np.float32(6))], "depth_relu6"
    )
    y = net.add("Conv", [y, net.weight("w2", 16, 16, 1, 1), net.weight("b2", 16)], "point")
    x = net.add("Add", [x, y], "sum")
    x = net.add(
        "Conv",
        [x, net.weight("w3", 32, 16, 3, 3), net.weight("b3", 32)],
        "down",
        strides=[2, 2],
        pads=[1] * 4,
    )
    x = net.add("Relu", [x], "down_relu")
    x = net.add("GlobalAveragePool", [x], "pooled")
    x = net.add("Flatten", [x], "flat")
    net.add("Gemm", [x, net.weight("w4", 10, 32), net.weight("b4", 10)], "logits", transB=1)
    return net.build(
        {"image": (TensorProto.FLOAT, ["N", 3, 16, 16])}, {"logits": (TensorProto.FLOAT, ["N", 10])}, opset
    )


def transformer(*, constants: bool = False) -> onnx.ModelProto:
    """Embedding, one attention head, a GELU-free MLP: 'ids' int64 (N, T) -> 'logits' (N, T, 32)."""
    net, d = Net(2, constants=constants), 32
    x = net.add("Gather", [net.weight("embedding", 64, d), "ids"], "embedded")
    q, k, v = (net.add("MatMul", [x, net.weight(f"w{n}", d, d)], n) for n in ("query", "key", "value"))
    kt = net.add("Transpose", [k], "key_t", perm=[0, 2, 1])
    scores = net.add(
        "Mul", [net.add("MatMul", [q, kt], "dot"), net.constant("scale", np.float32(d**-0.5))], "scores"
    )
    mixed = net.add("MatMul", [net.add("Softmax", [scores], "attention", axis=-1), v], "mixed")
    x = net.add("Add", [x, net.add("MatMul", [mixed, net.weight("wo", d, d)], "projected")], "residual")
    x = net.add("LayerNormalization", [x, net.constant("gain", np.ones(d, np.float32))], "normed", axis=-1)
    h = net.add(
        "Relu",
        [
            net.add(
                "Add",
                [net.add("MatMul", [x, net.weight("w1", d, 4 * d)], "up"), net.weight("b1", 4 * d)],
                "up_b",
            )
        ],
        "hidden",
    )
    x = net.add("Add", [x, net.add("MatMul", [h, net.weight("w2", 4 * d, d)], "down")], "residual2")
    net.add("MatMul", [x, net.weight("head", d, 32)], "logits")
    return net.build(
        {"ids": (TensorProto.INT64, ["N", "T"])}, {"logits": (TensorProto.FLOAT, ["N", "T", 32])}
    )


def recurrent() -> onnx.ModelProto:
    """A Conv front end, an LSTM and a MatMul: 'x' (T, N, 8) -> 'p' (T, N, 1)."""
    net, hidden = Net(3), 16
    net.nodes.append(
        helper.make_node(
            "LSTM",
            [
                "x",
                net.weight("w", 1, 4 * hidden, 8),
                net.weight("r", 1, 4 * hidden, hidden),
                net.weight("b", 1, 8 * hidden),
            ],
            ["states", "last_h", "last_c"],
            name="lstm",
            hidden_size=hidden,
        )
    )
    y = net.add("Squeeze", ["states", net.constant("axis", np.array([1], np.int64))], "squeezed")
    net.add("Sigmoid", [net.add("MatMul", [y, net.weight("head", hidden, 1)], "score")], "p")
    return net.build({"x": (TensorProto.FLOAT, ["T", "N", 8])}, {"p": (TensorProto.FLOAT, ["T", "N", 1])})


def feed(name: str, samples: int = 4, seed: int = 0) -> dict[str, Array]:
    """Inputs for the network called `name` ('cnn', 'transformer', 'recurrent')."""
    rng = np.random.default_rng(seed)
    match name:
        case "cnn":
            return {"image": rng.normal(size=(samples, 3, 16, 16)).astype(np.float32)}
        case "transformer":
            return {"ids": rng.integers(0, 64, (samples, 12))}
        case "recurrent":
            return {"x": rng.normal(size=(12, samples, 8)).astype(np.float32)}
        case _:
            raise LookupError(name)


NETS = {"cnn": cnn, "transformer": transformer, "recurrent": recurrent}


def write(name: str, folder: Path) -> Path:
    """The network called `name` as a file in `folder`."""
    path = folder / f"{name}.onnx"
    onnx.save(NETS[name](), str(path))
    return path
