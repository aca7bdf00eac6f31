"""`featherweight inspect`: a model's layers, costs and preflight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studio.base import units
from studio.cli.options import input_sizes
from studio.cli.terminal import Terminal
from studio.records.model import Cost, Layer, ModelInfo

COLUMNS = ["layer", "op", "weights", "precision", "parameters", "bytes", "share", "MACs", "activations"]
WIDE = 110  # characters that all columns need


def inspect(model: Path, sizes: Sequence[str], *, as_json: bool) -> None:
    """List a model."""
    with Terminal() as terminal:
        info = terminal.inspect(model, input_sizes(sizes)).info
        if as_json:
            terminal.json(info)
        else:
            _print(terminal, info)


def _print(terminal: Terminal, info: ModelInfo) -> None:
    cost = info.cost
    terminal.line(
        f"{info.name}: {units.file_size(info.file_bytes)}, opset {info.opset}, {units.counted(info.nodes, 'node')}, "
        f"{units.counted(len(info.layers), 'layer')}, {units.short(cost.parameters)} parameters, {macs(cost)} MACs"
    )
    for tensor, role in [(t, "input") for t in info.inputs] + [(t, "output") for t in info.outputs]:
        dims = units.shape(tensor.shape) if tensor.shape is not None else "any shape"
        terminal.line(f"{role} {tensor.name}: {tensor.dtype} {dims}")
    if info.input_sizes:
        chosen = ", ".join(f"{name}={size}" for name, size in info.input_sizes)
        terminal.line(f"dynamic dimensions, sizes chosen for the figures: {chosen}")
    if info.layers:
        _layers(terminal, info)
    for finding in info.findings:
        terminal.line()
        hint = f" {finding.hint}" if finding.hint else ""
        terminal.line(f"{finding.level}, {finding.subject}: {finding.what.rstrip('.')}.{hint}")


def _layers(terminal: Terminal, info: ModelInfo) -> None:
    terminal.line()
    shown = (
        COLUMNS if terminal.width >= WIDE else [c for c in COLUMNS if c not in {"parameters", "activations"}]
    )
    rows = [_row(layer) for layer in info.layers]
    terminal.table(shown, [[row[COLUMNS.index(c)] for c in shown] for row in rows], left=4)


def _row(layer: Layer) -> tuple[str, ...]:
    cost = layer.cost
    return (
        layer.name,
        layer.op,
        units.shape(layer.weight_shape),
        layer.precision,
        units.short(cost.parameters),
        units.file_size(cost.bytes),
        units.percent(layer.share),
        macs(cost),
        units.file_size(cost.activation_bytes) if cost.activation_bytes is not None else "?",
    )


def macs(cost: Cost) -> str:
    """Multiply-accumulates in short; '?' where not known."""
    return "?" if cost.macs is None else units.short(cost.macs)
