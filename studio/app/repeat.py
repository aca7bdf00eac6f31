"""How to make a version again without a window: its recipe as YAML, and the command line."""

from __future__ import annotations

import shlex
from pathlib import Path

import msgspec
import yaml

from studio.app.project import Project
from studio.records.steps import Recipe


def recipe_text(recipe: Recipe) -> str:
    """The recipe as a YAML file."""
    return yaml.safe_dump(msgspec.to_builtins(recipe), sort_keys=False, allow_unicode=True)


def command_line(project: Project, output: str) -> str:
    """The command that makes a version of the original again, with the recipe beside its output."""
    original = project.original
    recipe = str(Path(output).with_suffix(".yaml"))
    words = ["featherweight", "compress", original.file if original else "", "-o", output, "--recipe", recipe]
    if project.calibration is not None and project.calibration.path:
        words += ["--calibration", project.calibration.path]
    if project.evaluation is not None and project.evaluation.path:
        words += ["--evaluation", project.evaluation.path]
    return shlex.join(words)
