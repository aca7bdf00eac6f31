"""Training wins back what was lost, keeps what must stay, and survives being killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto
from support.nets import Net

from studio.base.errors import Cancelled, StudioError
from studio.base.progress import Progress
from studio.engine import edit, execute, graph
from studio.engine.dataset import Dataset, open_data
from studio.engine.graph import Model
from studio.engine.layers import Listing, list_layers
from studio.engine.planning import plan_step
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.engine.trainable import GraphModule, write_back
from studio.engine.training import Course, Hooks, Lesson, train
from studio.engine.training.norms import Norms
from studio.engine.training.session import keep_zeros
from studio.records.measure import DataSpec
from studio.records.steps import Distill, Finetune, Step


def conv_net(folder: Path, batch: int | str = "N", *, flatten: bool = True) -> Listing:
    """A small classifier of 8×8 pictures; without Flatten it shapes what it makes for one picture."""
    net = Net(seed=5)
    net.add("Conv", ["x", net.weight("w1", 8, 1, 3, 3), net.weight("b1", 8)], "c1", pads=[1, 1, 1, 1])
    net.add("Relu", ["c1"], "r1")
    net.add(
        "Conv",
        ["r1", net.weight("w2", 8, 8, 3, 3), net.weight("b2", 8)],
        "c2",
        strides=[2, 2],
        pads=[1, 1, 1, 1],
    )
    net.add("Relu", ["c2"], "r2")
    if flatten:
        net.add("Flatten", ["r2"], "f")
    else:
        net.add("Reshape", ["r2", net.constant("one", np.array([1, 128]))], "f")
    net.add("Gemm", ["f", net.weight("w3", 4, 128), net.weight("b3", 4)], "y", transB=1)
    proto = net.build({"x": (TensorProto.FLOAT, [batch, 1, 8, 8])}, {"y": (TensorProto.FLOAT, [batch, 4])})
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return list_layers(graph.load(path))


def pictures(listing: Listing, folder: Path, count: int = 400, labelled: bool = True) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 1, 8, 8)).astype(np.float32)
    answers = execute.run(execute.session(listing.model, threads=1), {"x": x})[0]
    more: dict[str, Any] = {"labels": answers.argmax(1)} if labelled else {}
    np.savez(folder / "data.npz", x=x, **more)
    return open_data(DataSpec(path=str(folder / "data.npz")), listing.inputs, dict(listing.input_sizes))


def damaged(model: Model, share: float = 0.6) -> Model:
    """The model with noise on its weights."""
    rng = np.random.default_rng(1)
    result = graph.copy(model)
    for value in result.graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if array.dtype.kind != "f":
            continue
        edit.set_constant(
            value, (array + share * array.std() * rng.normal(size=array.shape)).astype(np.float32)
        )
    return result


def agreement(a: Model, b: Model, data: Dataset) -> float:
    answers = [
        np.concatenate([o[0] for o in execute.outputs(m, data.feeds(), Progress(), threads=1)]).argmax(1)
        for m in (a, b)
    ]
    return float((answers[0] == answers[1]).mean())


LESSON: dict[str, Any] = {"batch": 32, "threads": 1, "rate": 5e-3, "course": Course(steps=150)}


def test_distillation_without_labels_wins_back_what_was_lost(tmp_path: Path) -> None:
    listing = conv_net(tmp_path)
    data = pictures(listing, tmp_path, labelled=False)
    student = damaged(listing.model)
    trained, outcome = train(student, Lesson(data=data, teacher=listing.model, **LESSON), Hooks())
    assert agreement(listing.model, trained, data) > agreement(listing.model, student, data) + 0.1
    assert outcome.after < 0.5 * outcome.before
    assert [n.name for n in graph.nodes(trained)] == [n.name for n in graph.nodes(student)]
    assert list(trained.graph.initializers) == list(student.graph.initializers)


@pytest.mark.parametrize("flatten", [True, False])
def test_a_model_that_takes_one_sample_at_a_time_learns_like_others(tmp_path: Path, flatten: bool) -> None:
    pictures(conv_net(tmp_path), tmp_path, 200, labelled=False)
    teacher = conv_net(tmp_path, 1, flatten=flatten)
    data = open_data(DataSpec(path=str(tmp_path / "data.npz")), teacher.inputs, dict(teacher.input_sizes))
    student = damaged(teacher.model)
    lesson = Lesson(data=data, teacher=teacher.model, **{**LESSON, "course": Course(steps=30)})
    trained, outcome = train(student, lesson, Hooks())
    assert outcome.after < 0.7 * outcome.before
    assert agreement(teacher.model, trained, data) > agreement(teacher.model, student, data)


def test_one_number_a_sample_is_judged_by_how_much_samples_differ(tmp_path: Path) -> None:
    """One value has no variance: an error over that would be of any size."""
    net = Net(seed=3)
    net.add("Reshape", ["x", net.constant("one", np.array([1, 16]))], "flat")
    net.add("Gemm", ["flat", net.weight("w", 1, 16)], "y", transB=1)
    shape = {"x": (TensorProto.FLOAT, [1, 16])}
    (tmp_path / "m.onnx").write_bytes(
        net.build(shape, {"y": (TensorProto.FLOAT, [1, 1])}).SerializeToString()
    )
    listing = list_layers(graph.load(tmp_path / "m.onnx"))
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32))
    data = open_data(DataSpec(path=str(tmp_path / "data.npz")), listing.inputs)
    lesson = Lesson(data=data, teacher=listing.model, **{**LESSON, "course": Course(steps=5)})
    _, outcome = train(damaged(listing.model), lesson, Hooks())
    assert 0.01 < outcome.before < 2


def test_fine_tuning_needs_labels_and_learns_from_them(tmp_path: Path) -> None:
    listing = conv_net(tmp_path)
    data = pictures(listing, tmp_path)
    student = damaged(listing.model)
    trained, outcome = train(student, Lesson(data=data, **LESSON), Hooks())
    assert outcome.right is not None
    assert outcome.right_before is not None
    assert outcome.right > outcome.right_before + 0.1
    assert agreement(listing.model, trained, data) > agreement(listing.model, student, data)
    (tmp_path / "bare").mkdir()
    bare = pictures(listing, tmp_path / "bare", labelled=False)
    with pytest.raises(StudioError, match="no labels"):
        train(student, Lesson(data=bare, **LESSON), Hooks())


def test_the_result_is_never_worse_than_the_beginning_on_the_judging_samples(tmp_path: Path) -> None:
    listing = conv_net(tmp_path)
    data = pictures(listing, tmp_path)
    lesson = Lesson(data=data, teacher=listing.model, rate=1.0, batch=32, threads=1, course=Course(steps=20))
    trained, outcome = train(listing.model, lesson, Hooks())
    assert outcome.after <= outcome.before + 1e-6
    assert agreement(listing.model, trained, data) > 0.99


def test_zeros_stay_zero(tmp_path: Path) -> None:
    listing = conv_net(tmp_path)
    sparse = graph.copy(damaged(listing.model))
    value = sparse.graph.initializers["w2"]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[np.abs(array) < np.median(np.abs(array))] = 0
    edit.set_constant(value, array)
    trained, _ = train(
        sparse, Lesson(data=pictures(listing, tmp_path), teacher=listing.model, **LESSON), Hooks()
    )
    after = trained.graph.initializers["w2"].const_value.numpy()
    assert (after[array == 0] == 0).all()
    assert (after[array != 0] != array[array != 0]).any()


def test_the_same_seed_and_steps_give_the_same_bytes(tmp_path: Path) -> None:
    listing = conv_net(tmp_path)
    lesson = Lesson(
        data=pictures(listing, tmp_path), teacher=listing.model, **{**LESSON, "course": Course(steps=25)}
    )
    student = damaged(listing.model)
    first, second = (graph.to_bytes(train(student, lesson, Hooks())[0]) for _ in range(2))
    assert first == second
    assert graph.to_bytes(train(student, replace(lesson, seed=1), Hooks())[0]) != first


def test_normalisations_come_and_go_without_a_trace(tmp_path: Path) -> None:
    listing = conv_net(tmp_path)
    module = GraphModule(listing.model)
    x = np.random.default_rng(2).normal(size=(64, 1, 8, 8)).astype(np.float32)
    before = module.numpy({"x": x})["y"]
    norms = Norms(module)
    norms.observe(on=True)
    module.numpy({"x": x})
    norms.observe(on=False)
    norms.start()
    norms.train(False)
    assert len(norms.added) == 2
    np.testing.assert_allclose(module.numpy({"x": x})["y"], before, atol=1e-4)
    norms.train(True)
    np.testing.assert_allclose(module.numpy({"x": x})["y"], before, atol=1e-4)
    norms.train(False)
    running = module.numpy({"x": x})["y"]
    norms.fold()
    np.testing.assert_allclose(module.numpy({"x": x})["y"], running, atol=1e-4)
    folded = execute.run(execute.session(write_back(module), threads=1), {"x": x})[0]
    np.testing.assert_allclose(folded, running, atol=1e-4)


def test_a_pattern_of_zeros_follows_its_weight_to_another_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    sparse = graph.copy(conv_net(tmp_path).model)
    value = sparse.graph.initializers["w2"]
    assert value.const_value is not None
    edit.set_constant(value, np.where(value.const_value.numpy() > 0, value.const_value.numpy(), 0))
    module = GraphModule(sparse)
    keep_zeros(module)
    assert module.weights["w2"].transform is not None
    module.place("meta")
    assert module.weights["w2"].current.device.type == "meta"


def test_a_rate_that_only_does_harm_is_lowered_until_it_helps(tmp_path: Path) -> None:
    listing = conv_net(tmp_path)
    rates: list[float] = []
    lesson = Lesson(
        data=pictures(listing, tmp_path),
        teacher=listing.model,
        **{**LESSON, "rate": 0.5, "norms": False, "course": Course(steps=300)},
    )
    hooks = Hooks(told=lambda _step, _total, _loss, _right, rate: rates.append(rate))
    _, outcome = train(damaged(listing.model, 0.05), lesson, hooks)
    assert max(rates) > 20 * max(rates[100:])
    assert outcome.after < outcome.before


def test_asking_for_an_end_keeps_the_best_so_far(tmp_path: Path) -> None:
    listing = conv_net(tmp_path)
    steps: list[int] = []
    hooks = Hooks(told=lambda step, *_: steps.append(step), enough=lambda: len(steps) >= 60)
    lesson = Lesson(
        data=pictures(listing, tmp_path), teacher=listing.model, **{**LESSON, "course": Course(steps=5000)}
    )
    _, outcome = train(damaged(listing.model), lesson, hooks)
    assert outcome.steps == 60
    assert outcome.after < outcome.before
    assert "as asked" in outcome.ended


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.engine.training.checkpoint._FIRST", 0.0)
    monkeypatch.setattr("studio.engine.training.checkpoint._SHARE", 1e9)
    monkeypatch.setattr("studio.engine.training.checkpoint._SELDOM", 0.0)
    listing = conv_net(tmp_path)
    data, student = pictures(listing, tmp_path), damaged(listing.model)
    lesson = Lesson(data=data, teacher=listing.model, **{**LESSON, "course": Course(steps=40)})
    whole, _ = train(student, lesson, Hooks())
    seen: list[int] = []
    place = tmp_path / "run.safetensors"

    def killed() -> bool:
        return len(seen) >= 20

    dying = Hooks(Progress(cancelled=killed), lambda step, *_: seen.append(step), checkpoint=place)
    with pytest.raises(Cancelled):
        train(student, lesson, dying)
    assert place.is_file()
    again: list[int] = []
    resumed, outcome = train(
        student, lesson, Hooks(told=lambda step, *_: again.append(step), checkpoint=place)
    )
    assert again[0] >= 19
    assert outcome.resumed == again[0] - 1
    assert graph.to_bytes(resumed) == graph.to_bytes(whole)
    third: list[int] = []  # what is over stays over: only what comes after it is done again
    over, _ = train(student, lesson, Hooks(told=lambda step, *_: third.append(step), checkpoint=place))
    assert not third
    assert graph.to_bytes(over) == graph.to_bytes(whole)


def test_a_checkpoint_that_cannot_be_read_is_ignored(tmp_path: Path) -> None:
    listing = conv_net(tmp_path)
    place = tmp_path / "run.safetensors"
    place.write_bytes(b"not a checkpoint")
    lesson = Lesson(
        data=pictures(listing, tmp_path), teacher=listing.model, **{**LESSON, "course": Course(steps=3)}
    )
    _, outcome = train(damaged(listing.model), lesson, Hooks(checkpoint=place))
    assert outcome.steps == 3


def test_distil_is_a_step_like_any_other(tmp_path: Path) -> None:
    listing = conv_net(tmp_path)
    student = list_layers(damaged(listing.model))
    notes: list[str] = []
    context = Context(
        calibration=pictures(listing, tmp_path),
        teacher=listing.model,
        threads=1,
        note=notes.append,
        scratch=tmp_path / "s",
    )
    step = Step(settings=Distill(steps=60, batch=32, rate=5e-3))
    plan = plan_step(student, step, context)
    assert len(plan.actions) == 3
    assert plan.after == plan.before
    model = find(step.settings).apply(student, plan, context)
    assert agreement(listing.model, model, context.calibration) > agreement(
        listing.model, student.model, context.calibration
    )
    assert "agreement with the teacher" in notes[0]


def test_only_chosen_layers_are_trained(tmp_path: Path) -> None:
    listing = conv_net(tmp_path)
    student = list_layers(damaged(listing.model))
    context = Context(calibration=pictures(listing, tmp_path), teacher=listing.model, threads=1)
    name = student.layers[1].name
    plan = plan_step(student, Step(settings=Distill(steps=20, rate=5e-3), layers=(name,)), context)
    model = find(Distill()).apply(student, plan, context)
    before, after = student.model.graph.initializers, model.graph.initializers
    changed = {
        n for n in before if not np.array_equal(before[n].const_value.numpy(), after[n].const_value.numpy())
    }
    assert changed == {"w2", "b2"}


def test_without_samples_or_labels_every_layer_is_refused_in_words(tmp_path: Path) -> None:
    listing = conv_net(tmp_path)
    for settings in (Distill(), Finetune()):
        plan = plan_step(listing, Step(settings=settings), Context())
        assert not plan.actions
        assert all("samples" in r.reason for r in plan.refusals)


def test_training_leaves_the_number_of_threads_alone(tmp_path: Path) -> None:
    listing = conv_net(tmp_path)
    before = torch.get_num_threads()
    train(listing.model, Lesson(data=pictures(listing, tmp_path), threads=1, course=Course(steps=1)), Hooks())
    assert torch.get_num_threads() == before
