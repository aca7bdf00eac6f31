"""The command line as a user runs it: real workers, real models, exit codes, files."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from studio.app.recipe import name_of
from studio.records.steps import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 250


def featherweight(
    *arguments: object, before: Callable[[], None] | None = None, limit_s: float = LIMIT_S
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "studio", *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, env=env, timeout=limit_s, preexec_fn=before
    )  # fmt: skip


def succeeded(*arguments: object, **options: Any) -> str:
    done = featherweight(*arguments, **options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # quiet in a pipe
    return done.stdout


def refused(*arguments: object, code: int = 2, **options: Any) -> str:
    """The sentence with which a command line was refused."""
    done = featherweight(*arguments, **options)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("featherweight: ")
    assert "Traceback" not in lines[0]
    return lines[0]


@pytest.fixture
def net(sample: Path) -> Path:
    return sample / "fashion_cnn.onnx"


# ---------------------------------------------------------------- inspect


def test_inspect_lists_layers_and_costs(net: Path) -> None:
    text = succeeded("inspect", net)
    assert "stage4.conv2" in text
    assert "13 layers" in text
    info = json.loads(succeeded("inspect", net, "--json", "--input-size", "N=2"))
    assert len(info["layers"]) == 13
    assert info["input_sizes"] == [["N", 2]]
    stem = info["layers"][0]
    assert (stem["op"], stem["weight_shape"]) == ("Conv", [16, 1, 3, 3])
    assert stem["cost"]["macs"] == 2 * 16 * 9 * 28 * 28  # twice the batch; the stem is 3×3 on 28×28
    assert info["cost"]["bytes"] < info["file_bytes"]


# ---------------------------------------------------------------- compress


def answer(path: Path, feed: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: feed})[0]


def test_compress_writes_a_smaller_model_that_answers_alike(net: Path, sample: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    told = json.loads(
        succeeded(
            "compress", net, "-o", output, "--step", "quantize_static", "--layers", "stage3.*", "--layers", "stage4.*",
            "--calibration", f"{sample / 'calibration.npz'}:limit=64", "--no-measure", "--json",
        )
    )  # fmt: skip
    assert told["output"]["file_bytes"] == output.stat().st_size < told["model"]["file_bytes"] / 2
    assert told["predicted"]["bytes"] == told["output"]["weight_bytes"]
    treated = {row["name"] for row in told["layers"] if row["treated"]}
    assert treated == {row["name"] for row in told["layers"] if row["name"].startswith(("stage3", "stage4"))}
    assert told["check"]["loads"]
    assert told["refusals"] == []
    assert told["measurements"] == []
    feed = np.load(sample / "evaluation.npz")["image"][:64]
    agree = (answer(net, feed).argmax(1) == answer(output, feed).argmax(1)).mean()
    assert agree > 0.9
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]


def test_the_command_that_is_printed_repeats_the_result(net: Path, tmp_path: Path) -> None:
    output = tmp_path / "a b.onnx"
    told = json.loads(
        succeeded("compress", net, "-o", output, "--step", "sparsify:ratio=30%", "--step", "fp16", "--seed", 3,
                  "--no-measure", "--json")
    )  # fmt: skip
    digest = told["output"]["digest"]
    output.unlink()
    words = shlex.split(told["command"])
    assert words[0] == "featherweight"
    again = json.loads(succeeded(*words[1:], "--no-measure", "--json"))
    assert again["output"]["digest"] == digest
    assert [plan["step"]["settings"]["technique"] for plan in again["plans"]] == ["sparsify", "fp16"]


def test_a_saved_recipe_repeats_the_result(net: Path, tmp_path: Path) -> None:
    first, second, recipe = tmp_path / "1.onnx", tmp_path / "2.onnx", tmp_path / "recipe.yaml"
    told = succeeded("compress", net, "-o", first, "--step", "quantize_weights:bits=8,block=64,layers=head",
                     "--step", "fp16:layers=stage1.*|stem", "--save-recipe", recipe, "--no-measure")  # fmt: skip
    assert f"--recipe {recipe}" in told
    succeeded("compress", net, "-o", second, "--recipe", recipe, "--no-measure")
    assert first.read_bytes() == second.read_bytes()


def test_a_report_is_one_page_that_needs_nothing_else(net: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    succeeded(
        "compress", net, "-o", tmp_path / "o.onnx", "--step", "fp16", "--report", report, "--no-measure"
    )
    page = report.read_text()
    assert "Half precision: 13 layers treated" in page
    assert "stage4.conv2" in page
    assert "src=" not in page
    assert "<script" not in page


def test_an_output_is_replaced_whole(net: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.onnx"
    output.write_bytes(b"something older")
    succeeded("compress", net, "-o", output, "--step", "fp16", "--no-measure")
    onnx.checker.check_model(str(output))


@pytest.mark.slow
def test_measuring_compares_with_the_first_model(net: Path, sample: Path, tmp_path: Path) -> None:
    output = tmp_path / "half.onnx"
    succeeded("compress", net, "-o", output, "--step", "fp16", "--no-measure")
    told = json.loads(
        succeeded(
            "measure",
            net,
            output,
            "--threads",
            1,
            "--evaluation",
            f"{sample / 'evaluation.npz'}:limit=200",
            "--json",
        )
    )
    first, second = (row["measurement"] for row in told["measurements"])
    assert first["latency"]["ratio"] is None
    assert second["latency"]["ratio"] > 0
    assert second["latency"]["runs"] >= 30
    assert second["latency"]["threads"] == 1
    assert first["accuracy"]["samples"] == 200
    assert second["error"]["sqnr_db"] > 30
    assert "onnxruntime" in second["runtime"]


def test_scan_ranks_every_layer(net: Path, sample: Path) -> None:
    told = json.loads(
        succeeded("scan", net, "--step", "quantize_weights:form=qdq", "--layers", "head", "--layers", "stem",
                  "--calibration", f"{sample / 'calibration.npz'}:limit=16", "--json")
    )  # fmt: skip
    assert {row["layer"] for row in told["layers"]} == {"head", "stem"}
    assert told["complete"]
    assert told["samples"] == 16


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_self_test_passes() -> None:
    text = succeeded("self-test", limit_s=880)
    assert "FAILED" not in text
    assert text.splitlines()[-1] == "All parts work."


def test_the_help_names_every_step_and_every_setting() -> None:
    text = succeeded("compress", "--help")
    for kind in SETTINGS:
        assert name_of(kind) in text
        for key in kind.__struct_fields__:
            assert f"{key}=" in text


# ---------------------------------------------------------------- stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_compress_leaves_nothing(
    net: Path, sample: Path, tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "o.onnx"
    output.write_bytes(b"older")
    command = [sys.executable, "-m", "studio", "compress", str(net), "-o", str(output),
               "--calibration", str(sample / "calibration.npz")]  # fmt: skip
    for _ in range(20):
        command += ["--step", "sparsify:ratio=0.5"]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)  # until it has begun to write
    running.send_signal(number)
    _, told = running.communicate(timeout=30)
    assert running.returncode == 1
    assert told == "featherweight: Cancelled. Nothing was changed.\n"
    assert [p.name for p in tmp_path.iterdir()] == ["o.onnx"]
    assert output.read_bytes() == b"older"


# ---------------------------------------------------------------- what cannot be used


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step", "quantise"], "Choose one of: fp16"),
        (["--step", "fp16:bits=4"], "It has: keep_io"),
        (["--step", "quantize_weights:bits=5"], "bits must be one of 2, 3, 4, 8"),
        (["--step", "sparsify:ratio=2"], "ratio must be below 1"),
        (["--step", "fp16", "--layers", "nothing*"], "No layer is called 'nothing*'"),
        (["--step", "fp16", "--recipe", "r.yaml"], "More than one thing says what to do"),
        ([], "Nothing says what to do"),
        (["--recipe", "missing.yaml"], "Cannot read the recipe missing.yaml"),
        (["--step", "fp16", "--calibration", "missing.npz"], "there is no file or folder missing.npz"),
        (["--step", "fp16", "--input-size", "N=0"], "expected NAME=N"),
        (["--step", "quantize_static"], "needs calibration data"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    net: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    assert words in refused("compress", net, "-o", tmp_path / "o.onnx", *arguments)
    assert list(tmp_path.iterdir()) == []


def linear(weight: onnx.TensorProto, op: str = "Gemm", domain: str = "") -> onnx.ModelProto:
    """y = x·w, x of 64 values, y of 32."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], name="fc", domain=domain)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])], [weight],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def weights(poison: float = 0.0) -> onnx.TensorProto:
    values = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    values[3, 3] += poison
    return numpy_helper.from_array(values, "w")


def external(location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 32], data_location=1)
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file"),
        (b"", "the file is empty"),
        (b"hello world\n" * 50, "no ONNX"),
        (linear(weights()).SerializeToString()[:4000], "cut off or damaged"),
        (linear(external("missing.bin")).SerializeToString(), "there is no such file"),
        (linear(external("../../etc/passwd")).SerializeToString(), "outside of the model's folder"),
        (linear(external("/etc/passwd")).SerializeToString(), "outside of the model's folder"),
    ],
    ids=[
        "missing",
        "empty",
        "text",
        "truncated",
        "no external data",
        "../ external data",
        "absolute external data",
    ],
)
def test_a_model_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    model = tmp_path / "model.onnx"
    if content is not None:
        model.write_bytes(content)
    sentence = refused("inspect", model)
    assert "Cannot read model.onnx" in sentence
    assert words in sentence


@pytest.mark.parametrize("command", ["compress", "measure", "scan"])
def test_every_command_refuses_a_broken_model_alike(tmp_path: Path, command: str) -> None:
    model, output = tmp_path / "model.onnx", tmp_path / "o.onnx"
    model.write_bytes(linear(weights()).SerializeToString()[:4000])
    rest = {"compress": ["-o", output, "--step", "fp16"], "scan": ["--step", "fp16"]}.get(command, [])
    assert "cut off or damaged" in refused(command, model, *rest)
    assert not output.exists()


@pytest.mark.parametrize("domain", ["", "com.example"])
def test_an_unknown_operator_is_named(tmp_path: Path, domain: str) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(linear(weights(), "Frobnicate", domain).SerializeToString())
    assert "Frobnicate" in succeeded("inspect", model)
    assert "Frobnicate" in refused("measure", model)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model, output = tmp_path / "model.onnx", tmp_path / "o.onnx"
    model.write_bytes(linear(weights(np.nan)).SerializeToString())
    assert "NaN" in refused("compress", model, "-o", output, "--step", "quantize_weights", "--no-measure")
    assert not output.exists()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((16, 10), np.float32)}, "does not fit input 'x'"),
        ({"x": np.zeros((0, 64), np.float32)}, "holds no samples"),
        ({"z": np.zeros((16, 64), np.float32)}, "has nothing for input 'x'"),
        ({"x": np.full((16, 64), np.nan, np.float32)}, "not numbers"),
        (None, "damaged"),
    ],
    ids=["shape", "empty", "name", "NaN", "junk"],
)
def test_data_that_do_not_fit_are_one_sentence(
    tmp_path: Path, arrays: dict[str, Any] | None, words: str
) -> None:
    model, data, output = tmp_path / "model.onnx", tmp_path / "data.npz", tmp_path / "o.onnx"
    model.write_bytes(linear(weights()).SerializeToString())
    if arrays is None:
        data.write_bytes(b"junk")
    else:
        np.savez(data, **arrays)
    assert words in refused(
        "compress", model, "-o", output, "--step", "quantize_static", "--calibration", data
    )
    assert not output.exists()


# ---------------------------------------------------------------- where it cannot be written


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(linear(weights()).SerializeToString())
    before = model.read_bytes()
    link = tmp_path / "link.onnx"
    link.symlink_to(model)
    for output in (model, link):
        assert "never altered" in refused("compress", model, "-o", output, "--step", "fp16")
    assert model.read_bytes() == before


def test_a_file_of_another_kind_is_not_overwritten(net: Path, tmp_path: Path) -> None:
    weights_of_another = tmp_path / "other.onnx.data"
    weights_of_another.write_bytes(b"precious")
    assert "does not end in .onnx" in refused("compress", net, "-o", weights_of_another, "--step", "fp16")
    assert weights_of_another.read_bytes() == b"precious"


@pytest.mark.parametrize("target", ["missing/o.onnx", ".", "/proc/o.onnx"])
def test_a_place_that_cannot_be_written_is_one_sentence(net: Path, tmp_path: Path, target: str) -> None:
    assert "Cannot write" in refused("compress", net, "-o", tmp_path / target, "--step", "fp16")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_loses_nothing(net: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.onnx"
    output.write_bytes(b"older")

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    sentence = refused("compress", net, "-o", output, "--step", "fp16", "--no-measure", before=small_disk)
    assert "Cannot write" in sentence
    assert output.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == ["o.onnx"]


def test_a_window_without_a_display_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert "no display" in refused()
    assert "not understood" in refused("a.onnx", "b.onnx")


# ---------------------------------------------------------------- what the studio process holds


def test_the_studio_process_never_imports_what_holds_weights(net: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
import studio.cli.commands, studio.cli.compress, studio.cli.scan, studio.cli.self_test
from studio.app.jobs import Inbox
from studio.app.session import Session
from studio.records.steps import Fp16
inbox = Inbox()
session = Session(inbox.post, Path({str(tmp_path)!r}))
session.open_model({str(net)!r})
assert inbox.run_until(lambda: session.view.project is not None, 100)
session.cancel_all()
session.set_treatment(["head"], "quantize", Fp16())
session.compress()
assert inbox.run_until(lambda: len(session.view.project.versions) == 2, 100)
session.shutdown()
heavy = {{"onnx", "onnx_ir", "onnxruntime", "torch", "numpy", "scipy"}} & set(sys.modules)
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr


def test_training_that_was_killed_goes_on_when_the_same_command_runs_again(
    net: Path, sample: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    step = "distill:minutes=0.1,batch=16"
    command = [
        *(sys.executable, "-m", "studio", "compress", str(net), "-o", str(tmp_path / "small.onnx")),
        *(
            "--step",
            "prune_channels:ratio=0.5",
            "--step",
            step,
            "--calibration",
            str(sample / "calibration.npz"),
        ),
        *("--no-measure", "--threads", "1", "--json"),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FEATHERWEIGHT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = time.monotonic()
    while not list(home.glob("training/*/*.safetensors")):
        assert first.poll() is None
        assert time.monotonic() - begun < LIMIT_S
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert not (tmp_path / "small.onnx").exists()
    second = subprocess.run(
        command, check=True, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S
    )
    notes = json.loads(second.stdout)["notes"]
    assert any("of a run that was cut off" in note for note in notes), notes
    assert (tmp_path / "small.onnx").is_file()
    assert not list(home.glob("training/*"))


def test_train_is_the_step_of_the_same_name(net: Path, sample: Path, tmp_path: Path) -> None:
    calibration = sample / "calibration.npz"
    how = ("--no-measure", "--threads", "1", "--json")
    trained = succeeded(
        *("train", net, "-o", tmp_path / "a.onnx", "--method", "qat", "--set", "weights=4"),
        *("--set", "steps=2,batch=8", "--training", calibration, *how),
    )
    step = "qat:weights=4,steps=2,batch=8"
    stepped = succeeded(
        *("compress", net, "-o", tmp_path / "b.onnx", "--step", step, "--calibration", calibration, *how)
    )
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert json.loads(trained)["recipe"] == json.loads(stepped)["recipe"]
    said = refused("train", net, "-o", tmp_path / "c.onnx", "--method", "fp16", "--training", calibration)
    assert "distill" in said
