"""Step time of the interpreter against the torch network that the graph was exported from.

    python tests/benchmarks/training_speed.py

Prints the ratio of median step times (forward, backward, AdamW), interleaved, and the worst relative
difference of any gradient.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from studio.engine import graph
from studio.engine.trainable import GraphModule

ROUNDS = 8


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.b1 = nn.BatchNorm2d(outside)
        self.c2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.b2 = nn.BatchNorm2d(outside)
        same = stride == 1 and inside == outside
        short = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        self.short = nn.Identity() if same else short

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.b2(self.c2(F.relu(self.b1(self.c1(x))))) + self.short(x))


class ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        widths = (
            (64, 64, 1),
            (64, 64, 1),
            (64, 128, 2),
            (128, 128, 1),
            (128, 256, 2),
            (256, 256, 1),
            (256, 512, 2),
            (512, 512, 1),
        )
        self.body = nn.Sequential(*(Block(*w) for w in widths))
        self.head = nn.Linear(512, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        parts = self.qkv(self.n1(x)).split(d, 2)
        q, k, v = (p.view(b, t, self.heads, d // self.heads).transpose(1, 2) for p in parts)
        weights = (q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5 + mask[:t, :t]).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class TinyGpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, 128), nn.Embedding(128, 128)
        self.layers = nn.ModuleList(Layer(128, 4) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(128), nn.Linear(128, 256)
        self.register_buffer("mask", torch.full((128, 128), -1e9).triu(1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x, self.mask)
        return self.head(self.norm(x))


def compare(name: str, net: nn.Module, x: torch.Tensor, folder: Path) -> None:
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    for parameter in net.parameters():  # equal tensors would be stored once
        parameter.data += 1e-3 * torch.randn_like(parameter)
    net.eval()
    path = folder / "net.onnx"
    mode = torch.onnx.TrainingMode.PRESERVE
    torch.onnx.export(
        net,
        (x,),
        str(path),
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "N"}},
        training=mode,
        do_constant_folding=False,
    )
    module = GraphModule(graph.load(path))

    def ours() -> torch.Tensor:
        return next(iter(module({"x": x}).values())).square().mean()

    def native() -> torch.Tensor:
        return net(x).square().mean()

    native().backward()
    ours().backward()
    own = dict(net.named_parameters())
    shared = {n: w.parameter for n, w in module.weights.items() if n in own}
    worst = max(
        float((p.grad - own[n].grad).abs().max() / own[n].grad.abs().max().clamp(min=1e-12))
        for n, p in shared.items()
    )
    times: dict[str, list[float]] = {"native": [], "ours": []}
    optimizers = {
        "native": torch.optim.AdamW(net.parameters()),
        "ours": torch.optim.AdamW([w.parameter for w in module.weights.values()]),
    }
    for _ in range(ROUNDS):
        for key, loss in (("native", native), ("ours", ours)):
            started = time.process_time()
            optimizers[key].zero_grad()
            loss().backward()
            optimizers[key].step()
            times[key].append(time.process_time() - started)
    ratio = np.median(times["ours"]) / np.median(times["native"])
    print(
        f"{name:10} {len(shared):3} parameters by name, worst gradient {worst:.1e}, step time ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        compare("ResNet-18", ResNet18(), torch.randn(4, 3, 96, 96), Path(place))
        compare("tiny GPT", TinyGpt(), torch.randint(0, 256, (8, 128)), Path(place))
