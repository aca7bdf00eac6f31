"""The one root of all errors that are not bugs.

A `StudioError` says what happened, why, and what to do next; the faces print it as it is
(exit code 2 on the command line, a dialog in the window). Anything else that is raised is a bug.
"""

from __future__ import annotations


class StudioError(Exception):
    """Something a user can understand and act on.

    Args:
        what: what happened, one sentence without a full stop ("Cannot read model.onnx").
        why: the reason, one sentence.
        hint: what to do next, one sentence; may be empty.
        details: anything long (a traceback, the runtime's own message), to copy.
    """

    def __init__(self, what: str, why: str = "", hint: str = "", details: str = "") -> None:
        self.what, self.why, self.hint, self.details = what, why, hint, details
        super().__init__(self.sentence)

    @property
    def sentence(self) -> str:
        """Everything but the details on one line."""
        text = f"{self.what}: {self.why}" if self.why else self.what
        return f"{text.rstrip('.')}. {self.hint}".strip() if self.hint else f"{text.rstrip('.')}."


class Cancelled(Exception):  # noqa: N818 - not an error: somebody asked for it
    """The work was asked to stop; raised by `Progress.tick` and never shown as an error."""
