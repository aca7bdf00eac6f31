"""Train the bundled sample: a small residual CNN on Fashion-MNIST, with calibration and evaluation data.

    python packaging/make_sample.py [--data FOLDER] [--epochs 8] [--out resources/sample]

FOLDER holds the four IDX files of Fashion-MNIST (MIT licence; Debian package dataset-fashion-mnist
puts them into /usr/share/datasets/fashion-mnist). Writes fashion_cnn.onnx, calibration.npz (512 training images
without labels) and evaluation.npz (1,000 test images with labels).
"""

from __future__ import annotations

import argparse
import gzip
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

MEAN, STD = 0.2860, 0.3530


class Block(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.shortcut = (
            nn.Identity()
            if inner == outer and stride == 1
            else nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inner, H, W) -> (N, outer, H/stride, W/stride)."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class FashionCnn(nn.Module):
    """Four stages of one block; 16, 32, 64 and 128 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.stage1, self.stage2 = Block(16, 16, 1), Block(16, 32, 2)
        self.stage3, self.stage4 = Block(32, 64, 2), Block(64, 128, 2)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) -> logits (N, 10)."""
        y = torch.relu(self.norm(self.stem(x)))
        y = self.stage4(self.stage3(self.stage2(self.stage1(y))))
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


def read_idx(folder: Path, name: str) -> np.ndarray:
    """An IDX file, gzipped or not, as an array of uint8 (labels: (n,), images: (n, 28, 28))."""
    plain = folder / name
    data = plain.read_bytes() if plain.exists() else gzip.decompress((folder / f"{name}.gz").read_bytes())
    dims = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(dims)).reshape(dims)


def normalise(images: np.ndarray) -> np.ndarray:
    """uint8 (n, 28, 28) -> float32 (n, 1, 28, 28)."""
    return ((images[:, None].astype(np.float32) / 255 - MEAN) / STD).astype(np.float32)


def train(model: nn.Module, images: np.ndarray, labels: np.ndarray, epochs: int, batch: int = 128) -> None:
    """SGD with momentum, a one-cycle learning rate, flips and shifts."""
    x, y = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(x))
        total = 0.0
        for i in range(len(x) // batch):
            rows = order[i * batch : (i + 1) * batch]
            images_now = x[rows]
            if torch.rand(()) < 0.5:
                images_now = images_now.flip(3)
            shift = torch.randint(-2, 3, (2,)).tolist()
            images_now = images_now.roll(shift, (2, 3))
            loss = nn.functional.cross_entropy(model(images_now), y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}: loss {total / (len(x) // batch):.4f}", flush=True)


def export(model: nn.Module, path: Path) -> None:
    """Write ONNX (opset 17, batch norms folded) with nodes named after their modules."""
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, 28, 28),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
            opset_version=17,
            dynamo=False,
        )
    proto = onnx.load(str(path))
    for node in proto.graph.node:
        name = node.name.strip("/").removesuffix(f"/{node.op_type}").replace("/", ".") or node.op_type
        node.name = name.replace("shortcut.shortcut.0", "shortcut")
    names = [node.name for node in proto.graph.node]
    for node in proto.graph.node:
        if names.count(node.name) > 1:
            node.name = f"{node.name}.{node.op_type.lower()}"
    proto.doc_string = "Fashion-MNIST, 10 garments; image = (pixel / 255 - 0.2860) / 0.3530"
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path))


def main() -> None:
    """Train, export, and write the two data sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "resources" / "sample")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    images = normalise(read_idx(arguments.data, "train-images-idx3-ubyte"))
    labels = read_idx(arguments.data, "train-labels-idx1-ubyte")
    test_images = normalise(read_idx(arguments.data, "t10k-images-idx3-ubyte"))
    test_labels = read_idx(arguments.data, "t10k-labels-idx1-ubyte")
    model = FashionCnn()
    train(model, images, labels, arguments.epochs)
    model.eval()
    with torch.no_grad():
        hits = sum(
            int(
                (
                    model(torch.from_numpy(test_images[i : i + 500])).argmax(1).numpy()
                    == test_labels[i : i + 500]
                ).sum()
            )
            for i in range(0, len(test_images), 500)
        )
    print(f"test accuracy {hits / len(test_images):.4f} (n = {len(test_images)})")
    export(model, arguments.out / "fashion_cnn.onnx")
    np.savez_compressed(arguments.out / "calibration.npz", image=images[:512])
    np.savez_compressed(
        arguments.out / "evaluation.npz", image=test_images[:1000], labels=test_labels[:1000].astype(np.int64)
    )


if __name__ == "__main__":
    main()
