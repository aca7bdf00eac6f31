"""Makes the files in nets/: small nets of every kind that channel groups must understand, from both exporters.

    python make_nets.py            # needs torch and onnxscript

An input for every net lies in nets/inputs.npz.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.a, self.b = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.fc = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.b(F.gelu(self.a(x))))
        return self.fc(x.mean((2, 3)))


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 1)
        self.c, self.d = nn.Conv2d(20, 16, 3, padding=1), nn.Conv2d(36, 8, 1)
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([F.relu(self.a(x)), torch.sigmoid(self.b(x))], 1)
        z = self.d(torch.cat([self.c(y), y], 1))
        return self.fc(F.adaptive_avg_pool2d(z, 4).flatten(1))


class Divided(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 24, 3, padding=1),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.Conv2d(16, 16, 1),
        )
        self.d = nn.Conv2d(32, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(F.silu(self.a(x)), [8, 16], 1)
        return self.d(torch.cat([self.b(left), self.c(right)], 1))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 48, 3, padding=1, groups=8)
        self.norm, self.c = nn.BatchNorm2d(48), nn.Conv2d(48, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.norm(self.b(F.relu(self.a(x))))))


class DepthwiseSE(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.down, self.up, self.project = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1), nn.Conv2d(24, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.depthwise(F.relu6(self.expand(x))))
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.project(x * gate).mean((2, 3)))


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.up = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ConvTranspose2d(16, 12, 4, 2, 1)
        self.up2 = nn.ConvTranspose2d(12, 12, 3, padding=1, groups=4)
        self.c = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.leaky_relu(self.up2(F.leaky_relu(self.up(F.elu(self.a(x)))))))


class Attention(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).split(c, dim=2)
        q, k, v = (z.view(b, t, self.heads, c // self.heads).transpose(1, 2) for z in (q, k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(c // self.heads)
        if self.causal:
            scores = scores.masked_fill(torch.triu(torch.ones(t, t, dtype=torch.bool), 1), -1e9)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))


class Fused(nn.Module):
    """QKV in one reshape (ViT of timm) and the runtime's own attention."""

    def __init__(self, width: int = 32, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, t, c))


class Block(nn.Module):
    def __init__(self, attention: nn.Module, width: int = 32):
        super().__init__()
        self.n1, self.n2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), attention
        self.up, self.down = nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 17, 32))
        self.block, self.head = Block(Fused()), nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.block(x)[:, 0])


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Embedding(50, 32), nn.Embedding(16, 32)
        self.block, self.head = Block(Attention(causal=True)), nn.Linear(32, 50, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1]))
        return self.head(self.block(x))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 12)
        self.lstm, self.gru = (
            nn.LSTM(12, 16, batch_first=True, bidirectional=True),
            nn.GRU(32, 10, batch_first=True),
        )
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(torch.tanh(self.embed(x)))
        z, _ = self.gru(y)
        return self.head(z[:, -1])


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.both, self.down = nn.Linear(16, 48), nn.Linear(24, 16)
        self.gate, self.up, self.out = nn.Linear(16, 40), nn.Linear(16, 40), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.glu(self.both(x), -1))
        return self.out(F.silu(self.gate(y)) * self.up(y))


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(F.pixel_shuffle(F.prelu(self.a(x), torch.tensor([0.2])), 2)))


class GroupNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 24, 3, padding=1), nn.GroupNorm(6, 24), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.norm(self.a(x))))


class ChannelShuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 1, bias=False), nn.Conv2d(24, 24, 1, groups=4)
        self.c, self.d = nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b(F.relu(self.a(x))))
        n, c, h, w = y.shape
        return self.d(self.c(y.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)))


def nets() -> dict[str, tuple[nn.Module, Tensor]]:
    """Every net with an input, from one seed, in eval mode with lively statistics."""
    torch.manual_seed(0)
    image, sequence = torch.randn(2, 3, 16, 16), torch.randn(2, 7, 16)
    made = {
        "residual": (Residual(), image),
        "concat": (Concatenated(), image),
        "split": (Divided(), image),
        "grouped": (Grouped(), image),
        "depthwise_se": (DepthwiseSE(), image),
        "transposed": (Transposed(), image),
        "vit": (ViT(), image),
        "gpt": (GPT(), torch.randint(0, 50, (2, 9))),
        "lstm": (Recurrent(), torch.randn(2, 5, 6)),
        "glu": (Gated(), sequence),
        "pixel_shuffle": (Shuffled(), image),
        "group_norm": (GroupNormed(), image),
        "channel_shuffle": (ChannelShuffle(), image),
    }
    for module, _ in made.values():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.running_var, 0.5, 2.0)
                nn.init.normal_(part.running_mean)
                nn.init.normal_(part.bias)
        module.eval()
    return made


def main() -> None:
    folder = Path(__file__).parent / "nets"
    folder.mkdir(exist_ok=True)
    made = nets()
    for name, (module, x) in made.items():
        torch.onnx.export(
            module, (x,), str(folder / f"{name}.torchscript.onnx"), dynamo=False, input_names=["x"],
            dynamic_axes={"x": {0: "N"}},
        )  # fmt: skip
        torch.onnx.export(
            module,
            (x,),
            str(folder / f"{name}.dynamo.onnx"),
            dynamo=True,
            input_names=["x"],
            external_data=False,
        )
    np.savez(folder / "inputs.npz", **{name: x.numpy() for name, (_, x) in made.items()})


if __name__ == "__main__":
    main()
