"""What holds for every technique of the catalogue, whatever it does."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import nets

from studio.base.errors import Cancelled, StudioError
from studio.base.progress import Progress
from studio.engine import execute, graph
from studio.engine.dataset import Dataset, open_data
from studio.engine.layers import Listing, list_layers
from studio.engine.planning import plan_step
from studio.engine.run import apply_steps
from studio.engine.techniques import find
from studio.engine.techniques.contract import Context
from studio.records import steps
from studio.records.measure import DataSpec
from studio.records.plan import Plan

# One of every kind of settings; quick ones, since this runs on every net.
EXAMPLES: tuple[steps.AnySettings, ...] = (
    steps.Fp16(),
    steps.Fp16(keep_io=False),
    steps.QuantizeWeights(bits=8),
    steps.QuantizeWeights(bits=4, form="qdq"),
    steps.QuantizeWeights(bits=4, symmetric=False, zeros="float", solver="hqq"),
    steps.QuantizeDynamic(),
    steps.QuantizeStatic(),
    steps.ShareWeights(),
    steps.ShareWeights(bits=8),
    steps.StoreNarrow(format="fp8"),
    steps.Sparsify(ratio=0.5),
    steps.Sparsify(pattern="2:4"),
    steps.PruneChannels(ratio=0.5),
    steps.PruneChannels(macs=0.7, inside="both", refit=False),
    steps.RemoveBlocks(),
    steps.Student(width=0.75, depth=0.6),
    steps.Factorize(params=0.85),
    steps.Qat(weights=8, steps=2, batch=4),
)
EACH = pytest.mark.parametrize("settings", EXAMPLES, ids=lambda s: s.__struct_config__.tag + "-" + s.chip)
NETS = pytest.mark.parametrize("net", list(nets.NETS))


@pytest.fixture
def listing(net: str, tmp_path: Path) -> Listing:
    return list_layers(graph.load(nets.write(net, tmp_path)), {"N": 4, "T": 12})


@pytest.fixture
def data(net: str, listing: Listing, tmp_path: Path) -> Dataset:
    if net == "recurrent":
        folder = tmp_path / "feeds"
        folder.mkdir()
        for number in range(4):
            np.savez(folder / f"{number}.npz", **nets.feed(net, 4, number))
        return open_data(DataSpec(path=str(folder)), listing.inputs, dict(listing.input_sizes))
    np.savez(tmp_path / "data.npz", **nets.feed(net, 16))
    return open_data(DataSpec(path=str(tmp_path / "data.npz")), listing.inputs, dict(listing.input_sizes))


@pytest.fixture
def context(data: Dataset) -> Context:
    return Context(calibration=data, threads=1, agreed=True)


def bytes_of(model: graph.Model) -> bytes:
    return graph.to_bytes(model)


def saved(model: graph.Model, folder: Path, name: str = "out.onnx") -> Path:
    graph.save(model, folder / name)
    return folder / name


def test_every_kind_of_settings_has_an_example_and_a_technique() -> None:
    assert {type(s) for s in EXAMPLES} >= {s for s in steps.SETTINGS if s.slot != "train"}
    for settings in EXAMPLES:
        assert find(settings).settings is type(settings)


@NETS
@EACH
def test_a_plan_names_every_layer_once_and_changes_nothing(
    listing: Listing, settings: steps.AnySettings, context: Context
) -> None:
    before = bytes_of(listing.model)
    plan = plan_step(listing, steps.Step(settings=settings), context)
    assert bytes_of(listing.model) == before
    named = [a.layer for a in plan.actions] + [r.layer for r in plan.refusals]
    assert sorted(named) == sorted(layer.name for layer in listing.layers)
    assert all(r.reason for r in plan.refusals)


@NETS
@EACH
def test_what_is_predicted_is_what_is_counted(
    listing: Listing, settings: steps.AnySettings, context: Context, tmp_path: Path
) -> None:
    plan = plan_step(listing, steps.Step(settings=settings), context)
    if not plan.actions:
        return
    result = find(settings).apply(listing, plan, context)
    counted = list_layers(graph.load(saved(result, tmp_path)), dict(listing.input_sizes)).cost
    assert (counted.bytes, counted.parameters, counted.macs) == (
        plan.after.bytes,
        plan.after.parameters,
        plan.after.macs,
    )


@NETS
@EACH
def test_the_result_passes_the_checker_and_runs(
    listing: Listing, net: str, settings: steps.AnySettings, context: Context, tmp_path: Path
) -> None:
    plan = plan_step(listing, steps.Step(settings=settings), context)
    if not plan.actions:
        return
    before = bytes_of(listing.model)
    treated: list[str] = []
    noting = Context(
        calibration=context.calibration,
        threads=1,
        agreed=True,
        treated=lambda _m, layer, _w: treated.append(layer),
    )
    result = find(settings).apply(listing, plan, noting)
    assert bytes_of(listing.model) == before, "the given model was changed"
    assert sorted(treated) == sorted(a.layer for a in plan.actions)
    path = saved(result, tmp_path)
    onnx.checker.check_model(str(path))
    inputs = nets.feed(net, 4)
    if isinstance(settings, steps.Fp16) and not settings.keep_io:
        inputs = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in inputs.items()}
    outputs = execute.run(execute.session(path, threads=1), inputs)
    reference = execute.run(execute.session(listing.model, threads=1), nets.feed(net, 4))
    assert outputs[0].shape == reference[0].shape
    noise = np.square(reference[0] - outputs[0].astype(np.float64)).sum() / np.square(reference[0]).sum()
    assert noise < 0.5, "the outputs have nothing to do with the original's"


@NETS
@EACH
def test_the_same_seed_gives_the_same_bytes(
    listing: Listing, settings: steps.AnySettings, context: Context, tmp_path: Path
) -> None:
    step = steps.Step(settings=settings)
    digests = set()
    for name in ("a.onnx", "b.onnx"):
        plan = plan_step(listing, step, context)
        if not plan.actions:
            return
        digests.add(graph.digest(saved(find(settings).apply(listing, plan, context), tmp_path, name)))
    assert len(digests) == 1


@NETS
@EACH
def test_a_layer_that_was_not_chosen_is_untouched_bit_for_bit(
    listing: Listing, settings: steps.AnySettings, context: Context
) -> None:
    alone = next(
        (
            p
            for layer in listing.layers
            if (p := plan_step(listing, _step(settings, layer.name), context)).actions
        ),
        None,
    )
    if alone is None or settings.slot == "prune":  # pruning narrows its neighbours, as its plan says
        return
    result = list_layers(find(settings).apply(listing, alone, context), dict(listing.input_sizes))
    touched = {a.layer for a in alone.actions}
    for name, node in listing.nodes.items():
        if name not in touched:
            before, after = graph.constant(node.weight), graph.constant(result.nodes[name].weight)
            assert before is not None
            assert after is not None
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before.numpy(), after.numpy())


def _step(settings: steps.AnySettings, *layers: str) -> steps.Step:
    return steps.Step(settings=settings, layers=layers)


@pytest.mark.parametrize("net", ["cnn"])
@EACH
def test_cancelling_at_any_tick_leaves_the_given_model_unchanged(
    listing: Listing, settings: steps.AnySettings, context: Context
) -> None:
    before = bytes_of(listing.model)
    plan = plan_step(listing, steps.Step(settings=settings), context)
    if not plan.actions:
        return
    for allowed in _some(_ticks(listing, plan, context)):
        left = iter(range(allowed))
        stopping = Context(
            progress=Progress(cancelled=lambda left=left: next(left, None) is None),
            calibration=context.calibration,
            threads=1,
            agreed=True,
        )
        with pytest.raises(Cancelled):
            find(settings).apply(listing, plan, stopping)
        assert bytes_of(listing.model) == before


def _ticks(listing: Listing, plan: Plan, context: Context) -> int:
    """How often carrying out a plan asks whether it should stop."""
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    counting = Context(
        progress=Progress(cancelled=count), calibration=context.calibration, threads=1, agreed=True
    )
    for _run in range(2):  # the first one may fill caches that later ones find
        asked = 0
        find(plan.step.settings).apply(listing, plan, counting)
    assert asked, "a technique that never ticks cannot be cancelled"
    return asked


def _some(ticks: int) -> Iterator[int]:
    yield from sorted({0, ticks // 3, ticks // 2, ticks - 1})


@pytest.mark.parametrize("net", ["cnn", "transformer"])
@pytest.mark.parametrize(
    "pair", list(permutations(EXAMPLES, 2)), ids=lambda pair: "+".join(s.__struct_config__.tag for s in pair)
)
def test_any_two_techniques_work_in_a_row_or_refuse_in_words(
    listing: Listing, net: str, pair: tuple[steps.AnySettings, ...], context: Context, tmp_path: Path
) -> None:
    chain = [steps.Step(settings=s) for s in pair]
    refused: StudioError | None = None
    try:
        result, plans = apply_steps(listing.model, chain, context, dict(listing.input_sizes))
    except StudioError as error:
        refused = error
    if refused is not None:
        assert refused.why
        return
    counted = list_layers(graph.load(saved(result, tmp_path)), dict(listing.input_sizes)).cost
    assert counted.bytes == plans[-1].after.bytes
    runs = execute.session(result, threads=1)
    halves = {i.name for i in runs.get_inputs() if i.type == "tensor(float16)"}
    inputs = {k: v.astype(np.float16) if k in halves else v for k, v in nets.feed(net, 4).items()}
    outputs = execute.run(runs, inputs)
    assert np.isfinite(outputs[0].astype(np.float64)).all()
