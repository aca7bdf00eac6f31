"""Canned records and a session without workers, for tests of panels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from studio.app.project import Project, ScanResult, Version
from studio.app.view import Live, View
from studio.records.measure import Accuracy, Latency, LayerTime, Measurement, OutputError, Sensitivity
from studio.records.model import Cost, Layer, ModelInfo, Outline, OutlineNode
from studio.records.plan import Action, Plan
from studio.records.steps import QuantizeStatic, Treatment
from studio.records.task import Profiled


class FakeSession:
    """Has a session's `view`, `listen` and the calls that panels make; remembers what was asked."""

    def __init__(self, view: View | None = None) -> None:
        self.view = view or View()
        self.asked: list[tuple[str, Any]] = []
        self._listeners: list[Callable[[View, View], None]] = []

    def listen(self, callback: Callable[[View, View], None]) -> Callable[[], None]:
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback) if callback in self._listeners else None

    def show(self, **changes: Any) -> None:
        """Replace fields of the view and tell the panels."""
        self.show_view(msgspec.structs.replace(self.view, **changes))

    def show_view(self, view: View) -> None:
        old, self.view = self.view, view
        for callback in tuple(self._listeners):
            callback(old, view)

    def set_treatment(self, layers: Iterable[str], slot: Any, settings: Any) -> None:
        names = tuple(layers)
        self.asked.append(("set_treatment", (names, slot, settings)))
        if self.view.project is not None:
            self.show(project=self.view.project.with_treatment(names, slot, settings))

    def clear_treatments(self, layers: Iterable[str] | None = None) -> None:
        self.asked.append(("clear_treatments", layers))
        if self.view.project is not None:
            self.show(project=self.view.project.without_treatments(layers))

    def go_to(self, version_id: int) -> None:
        self.asked.append(("go_to", version_id))

    def measure(self, version_ids: Any = ()) -> int:
        self.asked.append(("measure", version_ids))
        return 1


def layer(name: str, op: str = "Conv", shape: tuple[int, ...] = (64, 64, 3, 3), **changes: Any) -> Layer:
    """A layer with plausible figures."""
    count = 1
    for dim in shape:
        count *= dim
    known = {
        "name": name, "key": f"{name}_out", "op": op, "operators": (op,), "nodes": (f"{name}_out",), "weight": f"{name}.weight",
        "weight_shape": shape, "dtype": "float32", "precision": "fp32",
        "cost": Cost(parameters=count, bytes=4 * count, macs=count * 196, activation_bytes=shape[0] * 196 * 4), "share": 0.05,
        "output_shape": (1, shape[0], 14, 14),
    }  # fmt: skip
    return Layer(**{**known, **changes})


def resnet_layers() -> tuple[Layer, ...]:
    """A small residual network's layers."""
    found = [layer("conv1", shape=(64, 3, 7, 7))]
    for block, width in ((1, 64), (2, 128), (3, 256), (4, 512)):
        for unit in (0, 1):
            narrow = width // 2 if block > 1 and unit == 0 else width
            found.append(layer(f"layer{block}.{unit}.conv1", shape=(width, narrow, 3, 3)))
            found.append(layer(f"layer{block}.{unit}.conv2", shape=(width, width, 3, 3)))
            if block > 1 and unit == 0:
                found.append(layer(f"layer{block}.{unit}.downsample.0", shape=(width, narrow, 1, 1)))
    return (*found, layer("fc", "Gemm", (1000, 512)))


def outline_of(layers: tuple[Layer, ...]) -> Outline:
    """A chain: every layer followed by a Relu."""
    nodes: list[OutlineNode] = []
    for one in layers:
        nodes.append(OutlineNode(key=one.key, op=one.op, name=one.name, layer=one.name))
        nodes.append(OutlineNode(key=f"{one.key}_relu", op="Relu", name=f"{one.name}/relu"))
    return Outline(nodes=tuple(nodes), edges=tuple((i, i + 1) for i in range(len(nodes) - 1)))


def info_of(layers: tuple[Layer, ...], name: str = "resnet18") -> ModelInfo:
    """The record of a model with these layers."""
    total = Cost()
    for one in layers:
        total += one.cost
    return ModelInfo(
        path=f"{name}.onnx", name=name, digest="d0", file_bytes=total.bytes + 9000, opsets=(("", 17),), ir_version=8,
        producer="pytorch", inputs=(), outputs=(), input_sizes=(), cost=total, layers=layers, findings=(), nodes=2 * len(layers),
    )  # fmt: skip


def measurement(ms: float, megabytes: float, top1: float | None = None, sqnr: float = 200.0) -> Measurement:
    """A measured version."""
    return Measurement(
        digest="d",
        file_bytes=int(megabytes * 1e6),
        latency=Latency(median_ms=ms, low_ms=ms * 0.97, high_ms=ms * 1.03, runs=40, threads=2),
        error=OutputError(sqnr_db=sqnr, samples=64),
        accuracy=None if top1 is None else Accuracy(metric="top-1", value=top1, samples=1000),
    )


def sensitivities(layers: tuple[Layer, ...]) -> tuple[Sensitivity, ...]:
    """A score for every layer, spread over three decades, the first layer most sensitive."""
    count = len(layers)
    return tuple(
        Sensitivity(
            layer=one.name,
            error=OutputError(sqnr_db=20.0, kl=0.5 * 10 ** (-3.2 * ((i * 7) % count) / count), samples=64),
        )
        for i, one in enumerate(layers)
    )


def project_of(layers: tuple[Layer, ...], *, stripped: str = "", known: bool = True) -> Project:
    """A project at its original; `known`: with profile and scan."""
    count = max(1, len(layers))
    times = tuple(
        LayerTime(layer=x.name, ms=1 + i % 5, share=(1 + i % 5) / (3.2 * count), kernel="FusedConv")
        for i, x in enumerate(layers)
    )
    version = Version(
        id=0, name="Original", digest="d0", file="resnet18.onnx", info=info_of(layers), outline=outline_of(layers),
        stripped=stripped, measurement=measurement(21.4, 44.7, 0.924),
        profile=Profiled(layers=times, other_ms=1.0, total_ms=22.0) if known else None,
        scans=(ScanResult(settings=QuantizeStatic(), layers=sensitivities(layers), samples=64, complete=True, digest="d0"),) if known else (),
    )  # fmt: skip
    return Project(name="resnet18", versions=(version,), head=0)


def plan_of(project: Project, layers: Iterable[str]) -> Plan:
    """A plan that makes these layers a quarter as large."""
    assert project.current is not None
    chosen = set(layers)
    actions = tuple(
        Action(
            layer=one.name,
            what="int8",
            before=one.cost,
            after=Cost(
                parameters=one.cost.parameters,
                bytes=one.cost.bytes // 4 + 256,
                macs=one.cost.macs,
                activation_bytes=0,
            ),
        )
        for one in project.current.layers
        if one.name in chosen
    )
    saved = sum(a.before.bytes - a.after.bytes for a in actions)
    before = project.current.info.cost if project.current.info else Cost()
    step = project.with_treatment(tuple(chosen), "quantize", QuantizeStatic()).steps()[0]
    return Plan(step=step, actions=actions, before=before, after=before - Cost(bytes=saved))


def busy_view() -> View:
    """What the design's picture shows: a scan, treatments, a running job, versions measured."""
    project = project_of(resnet_layers())
    treated = tuple(
        x.name for x in project.versions[0].layers if x.name not in {"conv1", "layer2.0.downsample.0"}
    )
    treatment = Treatment(settings=(QuantizeStatic(),))
    original = project.versions[0]
    others = (
        ("INT8, all layers", 10.1, 11.3, 0.902), ("INT8, stem and head kept", 10.6, 12.0, 0.919),
        ("channels −30 %", 8.2, 9.1, 0.906), ("distilled 2 epochs", 8.3, 9.1, 0.920), ("INT4 weights only", 20.9, 7.2, 0.911),
    )  # fmt: skip
    versions = tuple(
        Version(
            id=i, name=name, digest=f"d{i}", file=f"{i}.onnx", parent=0, measurement=measurement(ms, mb, top1)
        )
        for i, (name, ms, mb, top1) in enumerate(others, 1)
    )
    project = msgspec.structs.replace(
        project, treatments=tuple((n, treatment) for n in treated), versions=(original, *versions)
    )
    plan = plan_of(project, treated)
    sizes = tuple((i, int(44.7e6 - i**1.6 * 7.6e5)) for i in range(1, 10))
    times = tuple((i, 21.4 - i * 0.85, 21.0 - i * 0.86, 21.9 - i * 0.83) for i in (1, 3, 5, 7, 9))
    live = Live(job=1, total=14, start_bytes=44_700_000, start_ms=21.4, sizes=sizes, times=times)
    return View(project=project, plans=(plan,), predicted=plan.after, live=live)
