"""Recipes as people write them: YAML files, `--step NAME:key=value,…`, and the command that repeats one.

    name: INT8
    seed: 0
    steps:
      - technique: quantize_static
        layers: [stem, stage1.*]
        calibrator: minmax

All that is known of a technique comes from the fields of its settings record, so a new one needs
nothing here. In the place of steps may stand `preset: fast`, `careful` or `small`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import yaml

from studio.base.errors import StudioError
from studio.records import presets
from studio.records.base import convert, expected, replace
from studio.records.measure import DataSpec, data_spec_text
from studio.records.steps import SETTINGS, AnySettings, Recipe, Settings, Step

_KEYS = ("name", "seed", "preset", "steps")
_LONG = 12  # more layer names than this belong into a file
_WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False, "none": None}
_HEAD = """\
# A Featherweight recipe: steps are carried out in this order.
# Repeat it with: featherweight compress MODEL.onnx -o OUT.onnx --recipe THIS.yaml
"""


def techniques() -> dict[str, type[Settings]]:
    """Every technique's settings record by its name in recipes and on the command line."""
    return {name_of(kind): kind for kind in SETTINGS}


def name_of(kind: type[Settings]) -> str:
    """The name of a technique: 'quantize_static'."""
    return str(kind.__struct_config__.tag)


# ---------------------------------------------------------------- --step


def parse_step(text: str, layers: tuple[str, ...] = ("*",)) -> Step:
    """'sparsify:ratio=0.5,pattern=free' as a step.

    `layers=a|b` among the keys names layers or globs for this step alone; lists are written with
    '|'; yes/no, true/false and percent ('50%') are understood.

    Raises:
        StudioError: the technique, a key or a value is unknown or out of bounds.
    """
    name, _, rest = text.partition(":")
    kind = _kind(name.strip())
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = item.partition("=")
        if not equals:
            raise StudioError(f"Cannot use the step '{text}'", f"'{item}' is not of the form key=value")
        values[key.strip()] = value.strip()
    if "layers" in values:
        layers = tuple(values.pop("layers").split("|"))
    hints = get_type_hints(kind)
    _check_keys(kind, values, f"the step '{text}'")
    plain = {key: _value(value, hints[key]) for key, value in values.items()}
    return Step(settings=_settings(name.strip(), plain, f"the step '{text}'"), layers=layers)


def _value(text: str, hint: object) -> object:
    if _is_tuple(hint):
        return tuple(filter(None, text.split("|")))
    if text.lower() in _WORDS and not _takes_text(hint, text.lower()):
        return _WORDS[text.lower()]
    if text.endswith("%"):
        return text[:-1].strip() and str(float(text[:-1]) / 100) if _is_number(text[:-1]) else text
    return text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[+-]?\d*\.?\d+\s*", text) is not None


def _is_tuple(hint: object) -> bool:
    return get_origin(hint) is tuple or any(_is_tuple(part) for part in get_args(hint) if part is not hint)


def _takes_text(hint: object, text: str) -> bool:
    """Whether 'none', 'on' … is itself one of the choices of this field."""
    return hint is str or text in get_args(hint) or any(_takes_text(part, text) for part in get_args(hint))


def _kind(name: str) -> type[Settings]:
    kinds = techniques()
    if name not in kinds:
        raise StudioError(
            f"There is no technique called '{name}'", hint=f"Choose one of: {', '.join(kinds)}."
        )
    return kinds[name]


def _check_keys(kind: type[Settings], values: Iterable[str], what: str) -> None:
    valid = kind.__struct_fields__
    for key in values:
        if key not in valid:
            raise StudioError(
                f"Cannot use {what}",
                f"{name_of(kind)} has no setting '{key}'",
                f"It has: {', '.join(valid)}." if valid else "It has no settings.",
            )


def _settings(name: str, values: Mapping[str, Any], what: str) -> AnySettings:
    kind = _kind(name)
    _check_keys(kind, values, what)
    for key, value in values.items():
        _check_value(kind, key, value, what)
    settings: AnySettings = convert(dict(values), kind, what)  # type: ignore[assignment]
    return settings


def _check_value(kind: type[Settings], key: str, value: object, what: str) -> None:
    """Convert one value alone, so that the sentence can name the setting and what it may be."""
    try:
        msgspec.convert({key: value}, kind, strict=False)
    except msgspec.ValidationError as error:
        choices = _literals(get_type_hints(kind)[key])
        must = f"one of {', '.join(map(str, choices))}" if choices else expected(str(error))
        raise StudioError(
            f"Cannot use {what}", f"{key} must be {must or 'something else'}, not {value!r}"
        ) from error


def _literals(hint: object) -> tuple[object, ...]:
    args = get_args(hint)
    if args and all(isinstance(arg, str | int | float) for arg in args):
        return args
    return next((found for arg in args if (found := _literals(arg))), ())


def of_preset(name: str) -> Recipe:
    """A recipe that lets a preset choose the steps.

    Raises:
        StudioError: there is no such preset.
    """
    if name not in presets.TITLES:
        raise StudioError(f"There is no preset '{name}'", hint=f"Choose one of: {', '.join(presets.TITLES)}.")
    return convert({"preset": name}, Recipe, f"the preset '{name}'")


# ---------------------------------------------------------------- YAML


def to_yaml(recipe: Recipe) -> str:
    """A recipe as YAML, every setting written out so that later defaults do not change it."""
    steps = []
    for step in recipe.steps:
        plain = msgspec.to_builtins(step.settings)
        steps.append({"technique": plain.pop("technique"), "layers": list(step.layers), **plain})
    content: dict[str, Any] = {"name": recipe.name} if recipe.name else {}
    content["seed"] = recipe.seed
    content |= {"preset": recipe.preset} if recipe.preset else {"steps": steps}
    return _HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def from_yaml(text: str, what: str = "the recipe") -> Recipe:
    """A recipe from YAML.

    Raises:
        StudioError: it is no recipe; the sentence names the step and the setting.
    """
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or error
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise StudioError(f"Cannot read {what}", f"it is no YAML ({problem}{where})") from error
    if isinstance(content, dict) and "preset" in content and "steps" not in content:
        content["steps"] = []
    elif not isinstance(content, dict) or not isinstance(content.get("steps"), list) or not content["steps"]:
        raise StudioError(f"Cannot read {what}", "it holds no list of 'steps'")
    for key in content:
        if key not in _KEYS:
            raise StudioError(
                f"Cannot read {what}", f"'{key}' is unknown", f"It may hold: {', '.join(_KEYS)}."
            )
    if content["steps"] and "preset" in content:
        raise StudioError(f"Cannot read {what}", "it holds both a 'preset' and 'steps'", "Keep one of them.")
    steps = tuple(_step(item, f"step {i + 1} of {what}") for i, item in enumerate(content["steps"]))
    head = convert({key: content[key] for key in _KEYS if key in content and key != "steps"}, Recipe, what)
    return replace(head, steps=steps)


def _step(item: object, what: str) -> Step:
    if isinstance(item, str):  # the short form, as on the command line
        return parse_step(item)
    if not isinstance(item, dict) or not isinstance(item.get("technique"), str):
        raise StudioError(f"Cannot use {what}", "it names no 'technique'")
    values = {str(key): value for key, value in item.items()}
    name = values.pop("technique")
    layers = values.pop("layers", ["*"])
    layers = [layers] if isinstance(layers, str) else layers
    if not isinstance(layers, list) or not layers:
        raise StudioError(f"Cannot use {what}", "'layers' is no list of names or patterns")
    return Step(settings=_settings(name, values, what), layers=tuple(str(layer) for layer in layers))


def read(path: Path) -> Recipe:
    """The recipe in a file.

    Raises:
        StudioError: it cannot be read or is no recipe.
    """
    try:
        return from_yaml(path.read_text(encoding="utf-8"), f"the recipe {path.name}")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text file"
        raise StudioError(f"Cannot read the recipe {path.name}", reason) from error


# ---------------------------------------------------------------- the command that repeats it


def default_text(kind: type[Settings]) -> str:
    """All settings of a technique at their defaults: 'bits=4, block=32'."""
    default = kind()
    return ", ".join(f"{key}={_text(getattr(default, key))}" for key in kind.__struct_fields__)


def step_text(settings: AnySettings) -> str:
    """Settings as `--step` takes them; defaults are left out."""
    kind = type(settings)
    default = kind()
    parts = [
        f"{key}={_text(getattr(settings, key))}"
        for key in kind.__struct_fields__
        if getattr(settings, key) != getattr(default, key)
    ]
    return name_of(kind) + (":" + ",".join(parts) if parts else "")


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "|".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def command(
    recipe: Recipe,
    model: str,
    output: str,
    *,
    calibration: DataSpec | None = None,
    evaluation: DataSpec | None = None,
    recipe_file: str = "",
    more: Sequence[str] = (),
) -> str:
    """The shell command that repeats a recipe.

    A recipe that does not fit on a line (steps on different or on many layers) is named as the file that holds it,
    unless there is none; `more` are further words of the command line.
    """
    words = ["featherweight", "compress", model, "-o", output]
    layers = {step.layers for step in recipe.steps}
    names = next(iter(layers), ())
    if recipe.preset:
        words += ["--preset", recipe.preset]
        words += ["--seed", str(recipe.seed)] if recipe.seed else []
        return shlex.join([*words, *_data(calibration, evaluation), *more])
    awkward = any(set("|,") & set(_all_text(step)) for step in recipe.steps)
    if len(layers) == 1 and len(names) <= _LONG and not awkward:
        for step in recipe.steps:
            words += ["--step", step_text(step.settings)]
        for name in names if names != ("*",) else ():
            words += ["--layers", name]
        words += ["--seed", str(recipe.seed)] if recipe.seed else []
    elif recipe_file or awkward or any(set("|,") & set("".join(names)) for names in layers):
        words += ["--recipe", recipe_file or "recipe.yaml"]
    else:
        for step in recipe.steps:
            words += ["--step", _narrowed(step)]
        words += ["--seed", str(recipe.seed)] if recipe.seed else []
    return shlex.join([*words, *_data(calibration, evaluation), *more])


def _narrowed(step: Step) -> str:
    """A step with its layers, as `--step` takes it."""
    text = step_text(step.settings)
    if step.layers == ("*",):
        return text
    return f"{text}{',' if ':' in text else ':'}layers={'|'.join(step.layers)}"


def _data(calibration: DataSpec | None, evaluation: DataSpec | None) -> list[str]:
    specs = {"--calibration": calibration, "--evaluation": evaluation}
    return [word for name, spec in specs.items() if spec for word in (name, data_spec_text(spec))]


def _all_text(step: Step) -> str:
    values = (getattr(step.settings, key) for key in type(step.settings).__struct_fields__)
    return "".join(
        v if isinstance(v, str) else "".join(map(str, v)) for v in values if isinstance(v, str | tuple)
    )
