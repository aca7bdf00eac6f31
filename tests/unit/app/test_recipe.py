from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from studio.app import recipe
from studio.base.errors import StudioError
from studio.records.measure import DataSpec
from studio.records.steps import SETTINGS, Fp16, QuantizeWeights, Recipe, Settings, Sparsify, Step


def values(info: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    """Any value that a settings field may have, from its type alone."""
    match info:
        case msgspec.inspect.Metadata(type=inner):
            return values(inner)
        case msgspec.inspect.LiteralType(values=choices):
            return st.sampled_from(choices)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.IntType(ge=low, le=high):
            return st.integers(low or 0, high if high is not None else 10**6)
        case msgspec.inspect.FloatType(ge=ge, gt=gt, le=le, lt=lt):
            low, high = ge if ge is not None else gt, le if le is not None else lt
            return st.floats(
                low, high, exclude_min=gt is not None, exclude_max=lt is not None, allow_nan=False
            )
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.StrType():
            return st.from_regex(r"[a-z0-9_./*-]{1,12}", fullmatch=True)
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(values(item), max_size=3).map(tuple)
        case msgspec.inspect.UnionType(types=types):
            return st.one_of([values(t) for t in types])
    raise AssertionError(info)


@st.composite
def any_settings(draw: st.DrawFn) -> Settings:
    kind = draw(st.sampled_from(SETTINGS))
    fields = msgspec.inspect.type_info(kind).fields  # type: ignore[attr-defined]
    chosen = {f.name: draw(values(f.type)) for f in fields if draw(st.booleans())}
    return msgspec.convert(chosen, kind)


@given(any_settings())
def test_every_setting_survives_the_command_line(settings: Settings) -> None:
    assert recipe.parse_step(recipe.step_text(settings)).settings == settings


@given(st.lists(any_settings(), min_size=1, max_size=3), st.integers(0, 2**31), st.text(max_size=20))
def test_every_recipe_survives_yaml(settings: list[Any], seed: int, name: str) -> None:
    steps = tuple(Step(settings=s, layers=("a*", "b[0]")) for s in settings)
    whole = Recipe(steps=steps, seed=seed, name=name)
    assert recipe.from_yaml(recipe.to_yaml(whole)) == whole


def test_layers_may_be_given_within_a_step() -> None:
    assert recipe.parse_step("fp16:layers=stem|head*").layers == ("stem", "head*")


def test_percent_and_words_are_understood() -> None:
    assert recipe.parse_step("sparsify:ratio=30%").settings == Sparsify(ratio=0.3)
    assert recipe.parse_step("fp16:keep_io=no").settings == Fp16(keep_io=False)


def test_the_short_form_stands_in_a_file_too() -> None:
    found = recipe.from_yaml("steps:\n- quantize_weights:bits=8\n- technique: fp16\n  layers: head\n")
    assert found.steps == (
        Step(settings=QuantizeWeights(bits=8)),
        Step(settings=Fp16(), layers=("head",)),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "There is no technique called 'nonsense'"),
        ("fp16:keep", "not of the form key=value"),
        ("fp16:colour=red", "It has: keep_io, keep"),
        ("quantize_weights:bits=5", "bits must be one of 2, 3, 4, 8"),
        ("sparsify:ratio=1.5", "ratio must be below 1"),
        ("sparsify:ratio=-1", "ratio must be at least 0"),
        ("sparsify:ratio=much", "ratio must be a number"),
        ("fp16:keep_io=perhaps", "keep_io must be yes or no"),
    ],
)
def test_a_step_that_cannot_be_used_is_a_sentence(text: str, words: str) -> None:
    with pytest.raises(StudioError) as caught:
        recipe.parse_step(text)
    assert words in caught.value.sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "no YAML"),
        ("- fp16", "no list of 'steps'"),
        ("steps: []", "no list of 'steps'"),
        ("steps: [fp16]\ncolour: red", "'colour' is unknown"),
        ("steps: [fp16]\nseed: x", "seed"),
        ("steps: [{bits: 4}]", "names no 'technique'"),
        ("steps: [{technique: fp16, layers: []}]", "no list of names"),
        ("steps: [{technique: sparsify, ratio: 7}]", "step 1 of the recipe"),
        ("steps: !!python/object/apply:os.system [ls]", "no YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_a_sentence(text: str, words: str) -> None:
    with pytest.raises(StudioError) as caught:
        recipe.from_yaml(text)
    assert words in caught.value.sentence
    assert "\n" not in caught.value.sentence


def test_the_command_fits_on_a_line_where_it_can() -> None:
    short = Recipe(steps=(Step(settings=Sparsify(ratio=0.3)), Step(settings=Fp16())), seed=7)
    data = DataSpec(path="my data.npz", limit=64)
    assert recipe.command(short, "a.onnx", "b c.onnx", calibration=data) == (
        "featherweight compress a.onnx -o 'b c.onnx' --step sparsify:ratio=0.3 --step fp16 --seed 7 "
        "--calibration 'my data.npz:limit=64'"
    )
    mixed = Recipe(steps=(Step(settings=Fp16(), layers=("a",)), Step(settings=Sparsify(), layers=("b",))))
    assert recipe.command(mixed, "a.onnx", "b.onnx", recipe_file="r.yaml").endswith("--recipe r.yaml")
    assert recipe.command(mixed, "a.onnx", "b.onnx").endswith(
        "--step fp16:layers=a --step sparsify:layers=b"
    )  # no file: none is named
    awkward = Recipe(steps=(Step(settings=Fp16(keep=("a,b",))),))
    assert "--recipe" in recipe.command(awkward, "a.onnx", "b.onnx")
