"""The commands and their options, declared; each hands over to a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studio import __version__
from studio.cli.help import steps_help
from studio.records.steps import Training

app = typer.Typer(
    help="See what every layer of a trained network costs, compress it, measure, export ONNX.\n\n"
    "`featherweight MODEL` opens the window with a model or a project, `featherweight --sample` with the "
    "bundled sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Calibration = Annotated[
    str,
    typer.Option(
        help="Calibration data: a .npz, .npy or .csv file, a folder of .npz files or images, or random.",
        metavar="SPEC",
        show_default=False,
    ),
]
Evaluation = Annotated[
    str,
    typer.Option(help="Evaluation data, written like calibration data.", metavar="SPEC", show_default=False),
]
Threads = Annotated[int, typer.Option(min=0, help="Threads of the runtime; 0 = its own choice.")]
Seed = Annotated[int | None, typer.Option(help="Of all randomness.", show_default="0, or the recipe's")]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-size",
        metavar="NAME=N",
        help="Size of a dynamic dimension; may be repeated.",
        show_default=False,
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Layers by name or pattern; may be repeated.", show_default="all"),
]
Steps = Annotated[
    list[str] | None,
    typer.Option(
        "--step",
        metavar="NAME:key=value,…",
        help="A technique with its settings, lists joined by |; may be repeated.",
        show_default=False,
    ),
]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"featherweight {__version__}")
        raise typer.Exit


@app.command("inspect", short_help="List a model's layers, their costs, and obstacles.")
def inspect_(model: Model, json: Json = False, input_size: Sizes = None) -> None:
    """List a model's layers, what they cost, and what stands in the way of compressing it."""
    from studio.cli.inspect import inspect

    inspect(model, input_size or [], as_json=json)


@app.command("compress", short_help="Carry out steps, check, measure, write.", epilog=steps_help())
def compress_(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write.", show_default=False)],
    step: Steps = None,
    preset: Annotated[
        str,
        typer.Option(
            help="Let the kind of each layer decide: fast (INT8 in seconds), careful (the best INT8) or small (4-bit "
            "weights where they run).",
            metavar="fast|careful|small",
            show_default=False,
        ),
    ] = "",
    recipe: Annotated[Path | None, typer.Option(help="A YAML file of steps.", show_default=False)] = None,
    layers: Layers = None,
    calibration: Calibration = "",
    evaluation: Evaluation = "",
    training: Annotated[
        str,
        typer.Option(
            help="Samples to train on, written like calibration data.",
            metavar="SPEC",
            show_default="the calibration data",
        ),
    ] = "",
    teacher: Annotated[
        Path | None, typer.Option(help="The model to distil from.", show_default="the model given")
    ] = None,
    seed: Seed = None,
    threads: Threads = 0,
    input_size: Sizes = None,
    save_recipe: Annotated[
        Path | None, typer.Option(help="Write the recipe as YAML.", show_default=False)
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report.", show_default=False)] = None,
    measure: Annotated[bool, typer.Option(help="Measure the result against the original.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Answer the plans' questions with yes.")] = False,
    json: Json = False,
) -> None:
    """Carry out steps on a model, check and measure the result, and write it."""
    from studio.cli.compress import Order, compress

    compress(
        Order(
            model=model,
            output=output,
            steps=tuple(step or ()),
            recipe=recipe,
            preset=preset,
            layers=tuple(layers or ()),
            calibration=calibration,
            evaluation=evaluation,
            training=training,
            teacher=teacher,
            seed=seed,
            threads=threads,
            sizes=tuple(input_size or ()),
            save_recipe=save_recipe,
            report=report,
            measure=measure,
            agreed=yes,
            json=json,
        )
    )


@app.command("train", short_help="Fine-tune, distil or train for few bits.", epilog=steps_help(Training))
def train_(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write.", show_default=False)],
    method: Annotated[str, typer.Option(help="How: distill, finetune (needs labels) or qat.")] = "distill",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE,…",
            help="Settings of the method; may be repeated.",
            show_default=False,
        ),
    ] = None,
    training: Annotated[
        str,
        typer.Option(
            help="Samples to train on, written like calibration data.",
            metavar="SPEC",
            show_default="the calibration data",
        ),
    ] = "",
    teacher: Annotated[
        Path | None, typer.Option(help="The model to learn from.", show_default="the model given")
    ] = None,
    calibration: Calibration = "",
    evaluation: Evaluation = "",
    layers: Layers = None,
    seed: Seed = None,
    threads: Threads = 0,
    input_size: Sizes = None,
    save_recipe: Annotated[
        Path | None, typer.Option(help="Write the recipe as YAML.", show_default=False)
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report.", show_default=False)] = None,
    measure: Annotated[bool, typer.Option(help="Measure the result against the model given.")] = True,
    json: Json = False,
) -> None:
    """Train a model's weights; run again after an interruption, it goes on where it was."""
    from studio.cli.compress import Order
    from studio.cli.train import train

    train(
        Order(
            model=model,
            output=output,
            layers=tuple(layers or ()),
            calibration=calibration or training,
            evaluation=evaluation,
            training=training,
            teacher=teacher,
            seed=seed,
            threads=threads,
            sizes=tuple(input_size or ()),
            save_recipe=save_recipe,
            report=report,
            measure=measure,
            json=json,
        ),
        method,
        setting or [],
    )


@app.command("measure", short_help="Measure models against the first.")
def measure_(
    models: Annotated[
        list[Path], typer.Argument(help="ONNX files; the first is the baseline.", show_default=False)
    ],
    evaluation: Evaluation = "",
    threads: Threads = 0,
    input_size: Sizes = None,
    json: Json = False,
) -> None:
    """Measure models against the first, runs interleaved: latency, size, memory, output error, accuracy."""
    from studio.cli.measure import measure

    measure(models, evaluation, threads, input_size or [], as_json=json)


@app.command("scan", short_help="Find out which layers are sensitive.", epilog=steps_help())
def scan_(
    model: Model,
    step: Annotated[
        str, typer.Option(metavar="NAME:key=value,…", help="The step to try.", show_default=False)
    ],
    layers: Layers = None,
    calibration: Calibration = "",
    seed: Seed = None,
    threads: Threads = 0,
    input_size: Sizes = None,
    json: Json = False,
) -> None:
    """Treat every layer alone and say what that does to the output: which layers are sensitive."""
    from studio.cli.scan import scan

    scan(model, step, layers or [], calibration, seed or 0, threads, input_size or [], as_json=json)


@app.command("self-test", short_help="Compress the sample with every technique.")
def self_test_() -> None:
    """Compress the bundled sample with every technique and check that the results run."""
    from studio.cli.self_test import self_test

    if not self_test():
        raise typer.Exit(1)


@app.command("import", short_help="Convert a PyTorch file into ONNX.")
def import_(
    source: Annotated[
        Path, typer.Argument(help="A .safetensors, .pt, .pth or .pt2 file.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write.", show_default=False)],
    factory: Annotated[
        str,
        typer.Option(metavar="MODULE:FUNCTION", help="Builds the network, for files that hold weights only."),
    ] = "",
    folder: Annotated[
        Path | None, typer.Option(help="Where that module lies.", show_default="beside the file")
    ] = None,
    input: Annotated[  # noqa: A002 - the option's name
        list[str] | None,
        typer.Option(
            metavar="[NAME=][TYPE:]SIZES", help="An example input, like 1x3x224x224; may be repeated."
        ),
    ] = None,
    run_code: Annotated[
        bool,
        typer.Option("--run-code", help="Agree that code from the file or of the factory runs, confined."),
    ] = False,
) -> None:
    """Convert a PyTorch file into an ONNX model under the same names."""
    from studio.cli.importing import Order, import_

    import_(Order(source, output, factory, folder, tuple(input or ()), run_code))
