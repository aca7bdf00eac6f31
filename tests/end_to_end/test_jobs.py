"""Jobs with real workers on the bundled sample: through to an export, cancelled, killed, recovered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from studio.app.export import Exported
from studio.app.jobs import Inbox, Job
from studio.app.session import Session
from studio.app.view import View
from studio.records.steps import Distill, Fp16, QuantizeStatic, Sparsify

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 240.0

Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def until(inbox: Inbox) -> Until:
    def wait(done: Callable[[], bool]) -> None:
        assert inbox.run_until(done, WAIT_S), "it never came to that"

    return wait


@pytest.fixture
def session(inbox: Inbox, tmp_path: Path) -> Iterator[Session]:
    before = set(psutil.Process().children(recursive=True))
    made = Session(inbox.post, tmp_path / "home")
    yield made
    made.shutdown()
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not alive


@pytest.fixture
def opened(session: Session, until: Until) -> Session:
    """The sample, its background work stopped."""
    session.open_sample()
    until(lambda: session.view.project is not None)
    session.cancel_all()
    until(lambda: idle(session))
    return session


def idle(session: Session) -> bool:
    return not session.view.planning and not any(job.active for job in session.view.jobs)


def job(session: Session, job_id: int) -> Job:
    found = session.view.job(job_id)
    assert found is not None
    return found


def layers(session: Session) -> tuple[str, ...]:
    assert session.view.project is not None
    assert session.view.project.current is not None
    return tuple(layer.name for layer in session.view.project.current.layers)


def worker_of(title: str) -> psutil.Process:
    """The youngest worker of this process: that of the running deed."""
    workers = [p for p in psutil.Process().children() if "worker" in p.cmdline()]
    assert workers, f"no worker for {title}"
    return max(workers, key=lambda p: p.create_time())


def test_a_model_is_opened_compressed_measured_undone_and_exported(
    session: Session, tmp_path: Path, until: Until
) -> None:
    import onnxruntime as ort

    views: list[View] = []
    session.listen(lambda _old, new: views.append(new))
    session.open_sample()
    until(lambda: session.view.project is not None and session.view.project.evaluation_summary is not None)
    names = layers(session)
    assert len(names) == 13
    session.set_treatment(names[-4:-1], "quantize", QuantizeStatic())
    until(lambda: not session.view.planning)
    assert session.view.plan_error == ""
    predicted = session.view.predicted
    assert predicted is not None
    made = session.compress()
    until(lambda: idle(session))
    assert job(session, made).state == "done"
    project = session.view.project
    assert project is not None
    version = project.current
    assert version is not None
    until(lambda: session.view.project.current.info is not None)  # type: ignore[union-attr]
    counted = session.view.project.current.info.cost  # type: ignore[union-attr]
    assert (counted.bytes, counted.parameters) == (predicted.bytes, predicted.parameters)
    live = session.view.live
    assert live is not None
    assert [done for done, _ in live.sizes] == [1, 2, 3]
    assert live.times
    assert any(view.live and view.live.running and len(view.live.sizes) > 0 for view in views)
    measurement = version.measurement
    assert measurement is not None
    assert measurement.latency is not None
    assert measurement.latency.ratio is not None
    assert measurement.error is not None
    assert measurement.accuracy is not None
    assert project.original is not None
    assert project.original.profile is not None
    session.undo()
    assert session.view.project.head == 0  # type: ignore[union-attr]
    exported: list[Exported] = []
    target = tmp_path / "exported.onnx"
    session.export(version.id, target, exported.append)
    until(lambda: idle(session))
    assert exported[0].sound
    feed = np.load(ROOT / "resources" / "sample" / "evaluation.npz")["image"][:8]
    runtime = ort.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    assert runtime.run(None, {"image": feed})[0].shape == (8, 10)


def test_weights_that_lie_beside_the_model_go_along(session: Session, tmp_path: Path, until: Until) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    model = onnx.load(ROOT / "resources" / "sample" / "fashion_cnn.onnx")
    for number, tensor in enumerate(model.graph.initializer):
        if len(tensor.raw_data) > 1000:
            onnx.external_data_helper.set_external_data(tensor, location=f"part{number % 2}.bin")
    onnx.save(model, source / "net.onnx")
    assert len(list(source.iterdir())) > 1
    session.open_model(source / "net.onnx")
    until(lambda: session.view.project is not None)
    session.cancel_all()
    exported: list[Exported] = []
    session.export(0, out / "copy.onnx", exported.append)
    session.save(tmp_path / "project.fwz")
    until(lambda: idle(session))
    assert exported[0].sound
    assert exported[0].check is not None
    assert exported[0].check.error is not None
    assert exported[0].check.error.max_abs == 0
    for path in source.iterdir():
        path.unlink()
    reopened = session.open_project(tmp_path / "project.fwz")
    until(lambda: job(session, reopened).state == "done")
    session.set_treatment(["head"], "quantize", Fp16())
    until(lambda: idle(session))
    started = session.compress()
    until(lambda: not job(session, started).active)
    assert job(session, started).state == "done"
    assert not [line for line in session.view.log if line.level != "note"]


def test_training_stands_still_goes_on_and_ends_with_the_best_so_far(opened: Session, until: Until) -> None:
    session = opened
    session.set_treatment(layers(session), "train", Distill(minutes=30, batch=16))
    until(lambda: not session.view.planning)
    started = session.compress()

    def step() -> int:
        live = session.view.live
        return live.training[-1][0] if live is not None and live.training else 0

    until(lambda: step() > 0)
    worker = worker_of("training")
    session.pause(started, on=True)
    until(lambda: worker.status() == psutil.STATUS_STOPPED)
    assert job(session, started).paused
    session.pause(started, on=False)
    assert not job(session, started).paused
    stood = step()
    until(lambda: step() > stood + 2)
    session.pause(started, on=True)
    session.finish(started)  # also wakes it
    until(lambda: not job(session, started).active)
    assert job(session, started).state == "done"
    version = session.view.project.current  # type: ignore[union-attr]
    assert version is not None
    assert any("ended early, as asked" in note for note in version.notes)


def start_long_work(session: Session, until: Until) -> int:
    """A compress job that takes a while, at work."""
    session.set_treatment(layers(session), "sparsify", Sparsify(ratio=0.7, method="sparsegpt"))
    until(lambda: not session.view.planning)
    started = session.compress()
    until(lambda: job(session, started).state == "running" and job(session, started).share > 0)
    return started


def test_a_cancel_in_the_middle_leaves_nothing_and_the_next_job_works(
    opened: Session, tmp_path: Path, until: Until
) -> None:
    started = start_long_work(opened, until)
    worker = worker_of("compress")
    opened.cancel(started)
    assert job(opened, started).state == "cancelling"
    until(lambda: job(opened, started).state == "cancelled")
    assert not worker.is_running()
    assert not list((tmp_path / "home").rglob("*.onnx.data"))
    assert not list((tmp_path / "home").rglob("models/*/model.onnx"))
    assert opened.view.project is not None
    assert len(opened.view.project.versions) == 1
    assert opened.view.project.staged == layers(opened)
    opened.clear_treatments()
    opened.set_treatment(layers(opened)[-1:], "quantize", Fp16())
    after = opened.compress()
    until(lambda: job(opened, after).state == "done")


def test_a_killed_worker_is_a_failed_job_and_nothing_more(opened: Session, until: Until) -> None:
    started = start_long_work(opened, until)
    worker_of("compress").kill()
    until(lambda: not job(opened, started).active)
    failed = job(opened, started)
    assert failed.state == "failed"
    assert "ended unexpectedly (killed by SIGKILL)" in failed.words
    assert opened.view.project is not None
    assert opened.view.project.staged == layers(opened)
    answers: list[object] = []
    opened.describe_layer(layers(opened)[0], None, answers.append)
    until(lambda: bool(answers))


def test_a_hostile_model_is_a_sentence_and_the_session_goes_on(
    session: Session, tmp_path: Path, until: Until
) -> None:
    """83 bytes that hang the checker, onnx's shape inference and onnxruntime."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a"])
    node = helper.make_node("Einsum", ["x"], ["y"], equation="....")
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", 1, None)])
    path = tmp_path / "hang.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    started = session.open_model(path)
    until(lambda: not job(session, started).active)
    assert job(session, started).state == "failed"
    assert "hang.onnx" in job(session, started).words
    session.open_sample()
    until(lambda: session.view.project is not None)


CRASH = """
import sys
from pathlib import Path
from studio.app.jobs import Inbox
from studio.app.session import Session
from studio.records.steps import Fp16
inbox = Inbox()
session = Session(inbox.post, Path(sys.argv[1]))
session.open_sample()
inbox.run_until(lambda: session.view.project is not None, 200)
session.cancel_all()
session.set_treatment(["head"], "quantize", Fp16())
session.compress()
inbox.run_until(lambda: len(session.view.project.versions) == 2, 200)
session.set_treatment(["head"], "sparsify", None)
session.annotate(1, "precious")
session.autosave()
path = session._desk.home.session / "project.json"
inbox.run_until(lambda: path.exists() and "precious" in path.read_text(encoding="utf-8"), 100)
import psutil
print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)
inbox.run_until(lambda: False)
"""


def test_a_killed_studio_leaves_no_process_and_its_work_comes_back(
    inbox: Inbox, tmp_path: Path, until: Until
) -> None:
    home = tmp_path / "home"
    command = [sys.executable, "-c", CRASH, str(home)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as studio:
        assert studio.stdout is not None
        workers = [int(pid) for pid in studio.stdout.readline().split()]
        assert workers
        studio.kill()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)
    session = Session(inbox.post, home)
    try:
        (found,) = session.recover()
        session.open_recovered(found)
        until(lambda: session.view.project is not None)
        project = session.view.project
        assert project is not None
        assert [v.name for v in project.versions] == ["Original", "FP16"]
        assert project.version(1).note == "precious"
        assert Path(project.version(1).file).is_file()
        assert session.view.modified
        until(lambda: not Path(found.folder).exists())
    finally:
        session.shutdown()


TRAINING = """
import sys
from pathlib import Path
from studio.app.jobs import Inbox
from studio.app.session import Session
from studio.records.steps import Distill, PruneChannels
inbox = Inbox()
session = Session(inbox.post, Path(sys.argv[1]))
session.open_sample()
inbox.run_until(lambda: session.view.project is not None, 200)
session.cancel_all()
names = [layer.name for layer in session.view.project.current.layers]
session.set_treatment(names, "prune", PruneChannels(ratio=0.25, refit=False))
session.set_treatment(names, "train", Distill(minutes=0.1, batch=16))
session.compress(agreed=True)
inbox.run_until(lambda: False)
"""


def test_training_goes_on_when_a_studio_that_was_killed_opens_again(
    inbox: Inbox, tmp_path: Path, until: Until
) -> None:
    home = tmp_path / "home"
    with subprocess.Popen([sys.executable, "-c", TRAINING, str(home)], cwd=ROOT) as studio:
        deadline = time.monotonic() + WAIT_S
        while not list(home.glob("training/*/*.safetensors")):
            assert studio.poll() is None
            assert time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.05)
        studio.kill()
    session = Session(inbox.post, home)
    try:
        (found,) = session.recover()
        session.open_recovered(found)
        until(lambda: session.view.project is not None)
        session.cancel_all()
        until(lambda: idle(session))
        made = session.compress(agreed=True)
        until(lambda: not job(session, made).active)
        assert job(session, made).state == "done", job(session, made).words
        project = session.view.project
        assert project is not None
        assert any("of a run that was cut off" in note for note in project.version(1).notes)
        assert not list(home.glob("training/*"))
    finally:
        session.shutdown()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIG_DFL)
    except ProcessLookupError:
        return False
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
