"""`featherweight train`: one step of training, carried out like any other step of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from studio.app.recipe import techniques
from studio.base.errors import StudioError
from studio.cli.compress import Order, compress
from studio.records.steps import Training


def train(order: Order, method: str, settings: Sequence[str]) -> None:
    """Train as `method` says, with settings such as 'minutes=5,batch=32'.

    Raises:
        StudioError: there is no such method, or something given cannot be used.
        WorkFailed: the work failed; nothing was written.
    """
    known = [name for name, kind in techniques().items() if issubclass(kind, Training)]
    if method not in known:
        raise StudioError(f"There is no method '{method}'", f"methods of training are {', '.join(known)}")
    if not order.calibration:
        raise StudioError("There is nothing to learn from", hint="Give samples with --training SPEC.")
    text = ",".join(settings)
    teacher = order.teacher if order.teacher is not None or method == "finetune" else order.model
    compress(replace(order, steps=(f"{method}:{text}" if text else method,), teacher=teacher))
