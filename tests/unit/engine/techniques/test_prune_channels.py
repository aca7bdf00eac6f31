"""Structured pruning as a user meets it: plans, refusals, questions, exact costs, verification, repair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from studio.base.errors import StudioError
from studio.engine.dataset import open_for
from studio.engine.execute import run, session
from studio.engine.graph import load, save
from studio.engine.layers import Listing, list_layers
from studio.engine.planning import plan_step, warm
from studio.engine.pruning import staircase
from studio.engine.pruning.staircase import Stair, Staircase
from studio.engine.techniques import channel_orders, prune_channels
from studio.engine.techniques.channel_orders import grouping_of, orders_of
from studio.engine.techniques.contract import Context
from studio.engine.techniques.prune_channels import ChannelPruning
from studio.records.measure import DataSpec
from studio.records.plan import Plan
from studio.records.steps import PruneChannels, Step

NETS = Path(__file__).parents[3] / "data" / "nets"


def listing_of(name: str) -> Listing:
    return list_layers(load(NETS / f"{name}.torchscript.onnx"), {"N": 2})


def context_of(listing: Listing, tmp_path: Path, samples: int = 64, **kwargs) -> Context:
    shape = listing.model.graph.inputs[0].shape
    assert shape is not None
    rng = np.random.default_rng(0)
    values = rng.standard_normal((samples, *(int(d) for d in list(shape)[1:]))).astype("f4")
    np.savez(tmp_path / "data.npz", x=values)
    data = open_for(listing.model, DataSpec(path=str(tmp_path / "data.npz"), batch=16))
    return Context(calibration=data, threads=1, **kwargs)


def plan_of(
    listing: Listing, settings: PruneChannels, context: Context, layers: tuple[str, ...] = ("*",)
) -> Plan:
    return plan_step(listing, Step(settings=settings, layers=layers), context)


@pytest.mark.parametrize("name", ["residual", "depthwise_se", "transposed", "lstm", "split"])
def test_the_plan_promises_what_is_counted_afterwards(name, tmp_path):
    listing = listing_of(name)
    context = context_of(listing, tmp_path)
    plan = plan_of(listing, PruneChannels(ratio=0.5), context)
    result = ChannelPruning().apply(listing, plan, context)
    save(result, tmp_path / "out.onnx")
    after = list_layers(load(tmp_path / "out.onnx"), dict(listing.input_sizes))
    assert after.cost == plan.after
    for action in plan.actions:
        assert after.nodes[action.layer].record.cost == action.after


@pytest.mark.parametrize("name", ["residual", "depthwise_se", "transposed", "concat", "grouped", "lstm"])
def test_refit_answers_nearer_to_the_original_than_a_plain_cut(name, tmp_path):
    listing = listing_of(name)
    context = context_of(listing, tmp_path)
    feed = next(iter(context.calibration.feeds()))
    wanted = run(session(listing.model, threads=1), feed)[0]
    errors = {}
    for refit in (False, True):
        settings = PruneChannels(ratio=0.4, criterion="l2", refit=refit)
        plan = plan_of(listing, settings, context)
        result = ChannelPruning().apply(listing, plan, context)
        errors[refit] = float(np.square(run(session(result, threads=1), feed)[0] - wanted).mean())
    assert errors[True] < 0.7 * errors[False]


@pytest.mark.parametrize("resource", ["macs", "params", "bytes"])
def test_a_budget_is_kept_and_hardly_undercut(resource, tmp_path):
    listing = listing_of("residual")
    context = context_of(listing, tmp_path)
    plan = plan_of(listing, PruneChannels(**{resource: 0.6}), context)
    name = {"macs": "macs", "params": "parameters", "bytes": "bytes"}[resource]
    share = getattr(plan.after, name) / getattr(plan.before, name)
    assert 0.5 < share <= 0.6


def test_an_impossible_budget_is_refused_with_what_remains(tmp_path):
    listing = listing_of("gpt")
    plan = plan_of(listing, PruneChannels(params=0.01), Context(threads=1))
    assert not plan.actions
    assert all("even at the smallest widths" in refusal.reason for refusal in plan.refusals)
    assert {r.layer for r in plan.refusals} == {layer.name for layer in listing.layers}


def test_two_budgets_at_once_are_refused():
    plan = plan_of(listing_of("residual"), PruneChannels(macs=0.5, params=0.5), Context(threads=1))
    assert not plan.actions
    assert "one budget" in plan.refusals[0].reason


def test_without_calibration_data_a_deep_cut_asks_and_a_criterion_on_activations_is_refused():
    listing = listing_of("residual")
    assert plan_of(listing, PruneChannels(ratio=0.5), Context(threads=1)).questions
    assert not plan_of(listing, PruneChannels(ratio=0.5, criterion="obs"), Context(threads=1)).actions


def test_every_chosen_layer_is_acted_on_or_refused_with_a_reason(tmp_path):
    listing = listing_of("gpt")
    plan = plan_of(listing, PruneChannels(ratio=0.5), Context(threads=1))
    named = {a.layer for a in plan.actions} | {r.layer for r in plan.refusals}
    assert named >= {layer.name for layer in listing.layers}
    assert all(refusal.reason for refusal in plan.refusals)


def test_a_ratio_of_nothing_gives_a_plan_without_actions(tmp_path):
    listing = listing_of("residual")
    plan = plan_of(listing, PruneChannels(ratio=0.0), context_of(listing, tmp_path))
    assert not plan.actions
    assert plan.after == plan.before


def test_only_groups_of_the_chosen_layers_narrow():
    listing = listing_of("residual")
    first = listing.layers[1].name
    plan = plan_of(listing, PruneChannels(ratio=0.5), Context(threads=1), (first,))
    narrowed = [g for g in plan.groups if g.keep is not None]
    assert [g.name for g in narrowed] == [first]
    assert any("in" in action.what for action in plan.actions)


def test_the_same_seed_gives_the_same_bytes_and_the_notes_say_verified(tmp_path):
    listing = listing_of("concat")
    written = []
    for number in range(2):
        notes: list[str] = []
        context = context_of(listing, tmp_path, seed=3, note=notes.append)
        plan = plan_of(listing, PruneChannels(ratio=0.5), context)
        save(ChannelPruning().apply(listing, plan, context), tmp_path / f"{number}.onnx")
        written.append((tmp_path / f"{number}.onnx").read_bytes())
        assert any("verified" in note for note in notes)
    assert written[0] == written[1]


def test_a_cut_that_fails_its_check_is_never_handed_out(tmp_path, monkeypatch):
    listing = listing_of("residual")
    context = context_of(listing, tmp_path)
    plan = plan_of(listing, PruneChannels(ratio=0.5), context)
    honest = prune_channels.cut_twins
    monkeypatch.setattr(prune_channels, "cut_twins", lambda trace, gone: _spoiled(honest(trace, gone)))
    with pytest.raises(StudioError, match="failed its check"):
        ChannelPruning().apply(listing, plan, context)


def _spoiled(twins):
    import onnx_ir as ir

    for value in twins.copy.graph.initializers.values():
        if value.const_value is not None and len(value.const_value.shape) == 4:
            value.const_value = ir.tensor(value.const_value.numpy()[::-1].copy() + 1, name=value.name)
            return twins
    raise AssertionError


def test_heads_or_what_is_within_them_or_both(tmp_path):
    listing = listing_of("vit")
    kinds = {}
    for inside in ("whole", "within", "both"):
        plan = plan_of(listing, PruneChannels(ratio=0.5, inside=inside), Context(threads=1))
        kinds[inside] = {
            g.name.split(" · ")[-1] for g in plan.groups if g.keep is not None and " · " in g.name
        }
    assert kinds == {"whole": {"heads"}, "within": {"within"}, "both": {"heads", "within"}}


def test_a_preview_spreads_a_budget_without_running_the_calibration_data(tmp_path, monkeypatch):
    listing = listing_of("residual")
    context = context_of(listing, tmp_path, preview=True)
    monkeypatch.setattr(channel_orders, "second_moments", lambda *_: pytest.fail("ran the calibration data"))
    plan = plan_of(listing, PruneChannels(macs=0.7), context)
    assert plan.after.macs <= 0.7 * plan.before.macs
    assert any("guess" in note for note in plan.notes)


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_gradients_find_the_channels_that_no_answer_feels(criterion, tmp_path):
    listing = listing_of("residual")
    groups = grouping_of(listing).groups
    group = next(g for g in groups if sum(m.axis == "in" for m in g.record.members) == 1)
    reader = next(m.layer for m in group.record.members if m.axis == "in")
    weight = listing.nodes[reader].weight
    data = weight.const_value.numpy().copy()
    deaf = np.arange(0, data.shape[1], 3)
    data[:, deaf] = 0
    weight.const_value = ir.tensor(data, name=weight.name)
    settings = PruneChannels(ratio=0.25, criterion=criterion, round_to=1)
    context = context_of(listing, tmp_path)
    plan = plan_of(listing, settings, context)
    result = list_layers(ChannelPruning().apply(listing, plan, context), dict(listing.input_sizes))
    assert result.cost == plan.after
    orders = orders_of(
        listing,
        grouping_of(listing),
        settings,
        {g.record.name: g.record.width for g in groups},
        context,
    )
    assert set(orders[group.record.name].channels[: len(deaf)].tolist()) == set(deaf.tolist())


def test_gradients_that_cannot_be_had_are_a_refusal_in_words(tmp_path, monkeypatch):
    from studio.engine import trainable
    from studio.engine.trainable.program import Unsupported

    listing = listing_of("residual")
    monkeypatch.setattr(trainable, "unsupported", lambda _: (Unsupported("n", "NonMaxSuppression"),))
    plan = plan_of(listing, PruneChannels(ratio=0.5, criterion="taylor"), context_of(listing, tmp_path))
    assert not plan.actions
    assert all("NonMaxSuppression" in refusal.reason for refusal in plan.refusals)


def test_a_latency_budget_is_aimed_until_the_measured_time_fits(tmp_path, monkeypatch):
    listing = listing_of("residual")
    context = context_of(listing, tmp_path)
    settings = PruneChannels(latency=0.6, round_to=1)
    grouping = grouping_of(listing)
    shown = plan_of(listing, settings, context_of(listing, tmp_path, preview=True))
    assert any("guess from the multiply-accumulates" in note for note in shown.notes)

    def stairs(_listing, _grouping, widths, *_):
        names = [layer.name for layer in listing.layers]
        return Staircase(
            stairs=tuple(
                Stair(kept=dict(kept), layers=dict.fromkeys(names, share), other=0.1)
                for share, kept in widths.items()
            )
        )

    took = []

    def timed(listing, _grouping, kept, *_):
        shares = [kept[g.record.name] / g.record.width for g in grouping.groups]
        took.append(min(1.0, 1.3 * sum(shares) / len(shares)))
        return took[-1], False

    monkeypatch.setattr(staircase, "measure", stairs)
    monkeypatch.setattr(staircase, "timed", timed)
    plan = plan_of(listing, settings, context)
    assert plan.actions
    assert any("measured on this machine" in note for note in plan.notes)
    assert took[0] > 0.61 >= took[-1]
    monkeypatch.setattr(staircase, "timed", lambda *_: pytest.fail("timed again"))
    assert plan_of(listing, settings, context).groups == plan.groups
    again = plan_of(listing, settings, context_of(listing, tmp_path, preview=True))
    assert not any("guess from the multiply-accumulates" in note for note in again.notes)


def test_what_a_latency_budget_needs_is_timed_while_the_forecast_is_made(tmp_path, monkeypatch):
    listing = listing_of("residual")
    context = context_of(listing, tmp_path, preview=True)
    plan = plan_of(listing, PruneChannels(latency=0.6), context)
    asked = []
    monkeypatch.setattr(staircase, "measure", lambda *a: asked.append(a) or Staircase(stairs=()))
    warm(listing, plan, context)
    warm(listing, plan, context)
    assert len(asked) == 1
    warm(listing, plan_of(listing, PruneChannels(ratio=0.5), context), context)
    assert len(asked) == 1


def test_a_latency_budget_that_no_width_keeps_is_refused_with_the_share_that_remains(tmp_path, monkeypatch):
    listing = listing_of("residual")
    names = [layer.name for layer in listing.layers]
    flat = lambda _l, _g, widths, *_: Staircase(  # noqa: E731
        stairs=tuple(
            Stair(kept=dict(kept), layers=dict.fromkeys(names, 1.0), other=0.0) for kept in widths.values()
        )
    )
    monkeypatch.setattr(staircase, "measure", flat)
    monkeypatch.setattr(staircase, "timed", lambda *_: (1.0, False))
    plan = plan_of(listing, PruneChannels(latency=0.5), context_of(listing, tmp_path))
    assert not plan.actions
    assert all("running time" in refusal.reason for refusal in plan.refusals)


def test_a_layer_that_a_budget_spares_is_told_so():
    settings = PruneChannels(macs=0.98, round_to=1, refit=False)
    plan = plan_of(listing_of("split"), settings, Context(threads=1))
    assert plan.actions
    assert any("the budget is kept with all" in refusal.reason for refusal in plan.refusals)


def test_a_layer_that_no_faster_width_is_near_is_told_so():
    plan = plan_of(listing_of("depthwise_se"), PruneChannels(ratio=0.1, refit=False), Context(threads=1))
    assert any("no fewer than its 24 channels would be faster" in refusal.reason for refusal in plan.refusals)


def test_a_layer_kept_whole_keeps_its_channels_and_so_does_what_is_tied_to_it():
    listing = listing_of("residual")
    settings = PruneChannels(ratio=0.25, round_to=1, refit=False)
    free = plan_of(listing, settings, Context())
    group = next(g for g in free.groups if g.keep is not None and sum(m.axis == "out" for m in g.members) > 1)
    first, *tied = [m.layer for m in group.members if m.axis == "out"]
    settings = PruneChannels(ratio=0.25, round_to=1, refit=False, keep=(first,))
    plan = plan_of(listing, settings, Context())
    cut = {g.name for g in plan.groups if g.keep is not None}
    assert cut == {g.name for g in free.groups if g.keep is not None} - {group.name}
    plan = plan_of(listing, settings, Context(), layers=(first, *tied))
    reasons = {r.layer: r.reason for r in plan.refusals}
    assert reasons.pop(first) == "it is kept whole, as asked"
    assert reasons == dict.fromkeys(tied, f"its channels go with those of '{first}', which is kept whole")


def test_a_name_kept_whole_that_matches_nothing_is_an_error():
    with pytest.raises(StudioError, match="No layer is called 'stem'"):
        plan_of(listing_of("residual"), PruneChannels(keep=("stem",)), Context())


def test_a_group_is_probed_on_fewer_samples_where_that_is_dear(tmp_path, monkeypatch):
    listing = listing_of("residual")
    context = context_of(listing, tmp_path)
    asked = []
    unseen = channel_orders.unseen
    monkeypatch.setattr(
        channel_orders, "unseen", lambda feeds, samples: asked.append(samples) or unseen(feeds, samples)
    )
    plan_of(listing, PruneChannels(macs=0.7), context)
    monkeypatch.setattr(channel_orders, "_PROBE_MACS", 1.0)
    plan_of(listing_of("residual"), PruneChannels(macs=0.7), context)
    assert asked[0] == 32
    assert 8 in asked
