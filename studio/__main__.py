"""One entry for every role: window, terminal, self-test, worker.

Nothing heavy is imported before the role is known: the window must be usable in a second and a
half, a worker brings its own libraries.
"""

from __future__ import annotations

import os
import sys

TERMINAL = {
    "inspect",
    "compress",
    "import",
    "measure",
    "scan",
    "self-test",
    "train",
    "--help",
    "-h",
    "--version",
}


def main() -> int:
    """Run the role that the command line names; without a command, the window."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["worker"]:
        # Its threads spin while they wait and take the cores from one another: two cost twice the time of one.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from studio.engine.worker import serve

        return serve()
    if arguments[:1] == ["import-child"]:
        from pathlib import Path

        from studio.engine.importing.child import main as convert

        return convert(Path(arguments[1]))
    if arguments and arguments[0] in TERMINAL:
        from studio.cli import run

        return run(arguments)
    return _window(arguments)


def _window(arguments: list[str]) -> int:
    options = [a for a in arguments if a.startswith("-")]
    paths = [a for a in arguments if not a.startswith("-")]
    if len(paths) > 1 or set(options) - {"--sample"}:
        _complain(f"'{' '.join(arguments)}' is not understood", "See: featherweight --help")
        return 2
    if sys.platform == "linux" and not any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    ):
        _complain("There is no display for a window", "The terminal can do the same: featherweight --help")
        return 2
    if paths and not os.path.exists(paths[0]):  # noqa: PTH110 - pathlib is not imported yet
        _complain(f"There is no file {paths[0]}", "See: featherweight --help")
        return 2
    from studio.gui.app import run

    return run(paths[0] if paths else "", sample="--sample" in options)


def _complain(what: str, hint: str) -> None:
    sys.stderr.write(f"featherweight: {what}. {hint}\n")


if __name__ == "__main__":
    sys.exit(main())
