"""The command line: the same engine, without a window.

Exit codes: 0 done, 1 the work failed or was cancelled, 2 the input cannot be used.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from studio.base.errors import Cancelled, StudioError


def run(arguments: list[str]) -> int:
    """Carry out a command line; returns the exit code."""
    from studio.app.jobs import WorkFailed
    from studio.cli.commands import app

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    try:
        app(arguments, prog_name="featherweight")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except Cancelled:
        return _say("Cancelled. Nothing was changed.", 1)
    except WorkFailed as error:
        return _say(error.sentence, 1)
    except StudioError as error:
        return _say(error.sentence, 2)
    return 0


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Cancelled


def _say(sentence: str, code: int) -> int:
    sys.stderr.write(f"featherweight: {sentence}\n")
    return code
