"""A worker that answers at once without weights, and misbehaves when the model's name says so.

Names: 'hang' never answers and is deaf, 'slow' works until it is cancelled, 'die' ends at once,
'eat' takes memory, 'fail' answers Failed, 'child' starts a process of its own and hangs, 'chatter'
sends ten thousand notes; everything else gets a plausible answer. A model file may hold any bytes.
"""

from __future__ import annotations

import hashlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from studio.base.process import read_frame, write_frame
from studio.records import task as t
from studio.records.base import decode, encode, replace
from studio.records.measure import DataSummary, Latency, Measurement, OutputError, Sensitivity
from studio.records.model import Cost, Layer, ModelInfo, Outline, OutlineNode
from studio.records.plan import Action, Plan, Refusal

LAYERS = ("stem", "body", "head")
SOURCE, TARGET = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")


def digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def layer(name: str) -> Layer:
    return Layer(
        name=name, key=f"{name}_out", op="Conv", operators=("Conv",), nodes=(f"{name}_out",), weight=f"{name}.weight",
        weight_shape=(10, 10), dtype="float32", precision="fp32", cost=Cost(parameters=100, bytes=400, macs=100), share=1 / 3,
    )  # fmt: skip


def inspected(task: t.Inspect) -> t.Inspected:
    if task.stripped:
        Path(task.stripped).write_bytes(b"stripped")
    size = Path(task.model).stat().st_size
    info = ModelInfo(
        path=task.model, name=Path(task.model).stem, digest=digest(task.model), file_bytes=size, opsets=(("", 17),), ir_version=8,
        producer="", inputs=(), outputs=(), input_sizes=task.input_sizes or (("N", 1),), cost=Cost(parameters=300, bytes=1200),
        layers=tuple(map(layer, LAYERS)), findings=(), nodes=3,
    )  # fmt: skip
    nodes = tuple(OutlineNode(key=f"{name}_out", op="Conv", name=name, layer=name) for name in LAYERS)
    return t.Inspected(
        info=info, outline=Outline(nodes=nodes, edges=((0, 1), (1, 2))), stripped=task.stripped
    )


def plans(steps: tuple) -> tuple[Plan, ...]:
    total, made = Cost(parameters=300, bytes=1200), []
    for step in steps:
        names = LAYERS if step.layers == ("*",) else step.layers
        saved = Cost(bytes=300 * len(names))
        actions = tuple(
            Action(layer=n, what="int8", before=Cost(bytes=400), after=Cost(bytes=100)) for n in names
        )
        made.append(Plan(step=step, actions=actions, before=total, after=total - saved))
        total = total - saved
    return tuple(made)


def refusing(steps: tuple) -> tuple[Plan, ...]:
    """The stem refuses all but 8-bit weights; no layer is treated twice."""
    made, done = [], set()
    for step, plan in zip(steps, plans(steps), strict=True):
        refused = {a.layer for a in plan.actions if a.layer == "stem" and step.settings.chip != "W8"} | done
        actions = tuple(a for a in plan.actions if a.layer not in refused)
        refusals = tuple(Refusal(layer=a.layer, reason="no") for a in plan.actions if a.layer in refused)
        made.append(replace(plan, actions=actions, refusals=refusals))
        done |= {a.layer for a in actions}
    return tuple(made)


def perform(ask: t.Ask, cancelled: set[int]) -> t.Answer:
    def note(news: t.News) -> None:
        write_frame(TARGET, encode(t.Note(id=ask.id, news=news)))

    task = ask.task
    name = Path(getattr(task, "model", "") or task.models[-1]).name
    match name.split(".")[0].split("-")[0]:
        case "hang" | "child":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if name.startswith("child"):
                subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            time.sleep(600)
        case "slow":
            if isinstance(task, t.Apply):
                Path(task.output).write_bytes(b"half a model")
            if isinstance(task, t.Scan):
                note(t.ScannedLayer(sensitivity=Sensitivity(layer="stem", error=OutputError(sqnr_db=30))))
            for i in range(10_000):
                note(t.Progressed(share=i / 10_000, words=f"part {i}"))
                if ask.id in cancelled:
                    return t.Stopped()
                time.sleep(0.01)
        case "die":
            sys.stderr.write("the last words\n")
            sys.stderr.flush()
            os._exit(3)
        case "eat":
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1024) * 20_000))
                time.sleep(0.02)
        case "fail":
            return t.Failed(what="Cannot read it", why="it is broken", hint="Mend it.")
        case "chatter":
            for i in range(10_000):
                note(t.Progressed(share=i / 10_000, words=str(i)))
    return answer(task, note)


def answer(task: t.Task, note) -> t.Answer:
    match task:
        case t.Inspect():
            return inspected(task)
        case t.PreviewSteps():
            picky = Path(task.model).name.startswith("picky")
            return t.Previewed(plans=refusing(task.steps) if picky else plans(task.steps))
        case t.Forecast():
            timed = Latency(median_ms=0.5, low_ms=0.4, high_ms=0.6, ratio=2.0, runs=10, threads=1)
            return t.Forecasted(latency=timed)
        case t.DescribeLayer():
            return t.LayerDetail(layer=task.layer)
        case t.DescribeData():
            summary = DataSummary(spec=task.spec, samples=8, labelled=8, classes=2, description="data")
            return t.DataPreview(summary=summary, inputs=())
        case t.Apply():
            made = plans(task.recipe.steps)
            names = [a.layer for plan in made for a in plan.actions]
            for done, treated in enumerate(names, 1):
                note(t.Treated(layer=treated, done=done, total=len(names), bytes=1200 - 300 * done))
                note(t.TimedSoFar(done=done, total=len(names), median_ms=1.0, low_ms=0.9, high_ms=1.1))
            written = Path(task.model).read_bytes() + encode(task.recipe)
            if not task.recipe.steps:
                written = Path(task.model).read_bytes()
            Path(task.output).write_bytes(written)
            return t.Applied(
                output=task.output,
                digest=digest(task.output),
                plans=made,
                file_bytes=len(written),
                seconds=0.0,
            )
        case t.Measure():
            latency = Latency(median_ms=1.0, low_ms=0.9, high_ms=1.1, runs=30, threads=1)
            found = tuple(
                Measurement(digest=digest(m), file_bytes=Path(m).stat().st_size, latency=latency)
                for m in task.models
            )
            for measurement in found:
                note(t.Measured(measurement=measurement))
            return t.Measurements(measurements=found)
        case t.Profile():
            return t.Profiled(layers=(), other_ms=0.0, total_ms=1.0)
        case t.Footprint():
            return t.Footprinted(peak_bytes=1_000_000)
        case t.Scan():
            found = tuple(
                Sensitivity(layer=n, error=OutputError(sqnr_db=30 + i)) for i, n in enumerate(LAYERS)
            )
            for one in found:
                note(t.ScannedLayer(sensitivity=one))
            return t.Scanned(layers=found, samples=8, seconds=0.0)
        case t.CheckExport():
            return t.ExportChecked(valid=True, loads=True, words=("onnxruntime loads it",))
    raise AssertionError(task)


def main() -> None:
    os.dup2(2, 1)
    asks: queue.SimpleQueue[t.Ask] = queue.SimpleQueue()
    cancelled: set[int] = set()

    def listen() -> None:
        while (frame := read_frame(SOURCE)) is not None:
            message = decode(frame, t.ToWorker)
            if isinstance(message, t.Ask):
                asks.put(message)
            else:
                cancelled.add(message.id)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        ask = asks.get()
        write_frame(TARGET, encode(t.Reply(id=ask.id, answer=perform(ask, cancelled))))


if __name__ == "__main__":
    main()
