"""How fast a staged result will be: a draft of it, with the same structure and any weights, is timed.

The time of a run hangs on nodes, shapes and types, not on what the weights say; so what takes minutes to
compress well can be timed beforehand within seconds, fused kernels, conversions and all. It stays a prediction:
the machine may be busy, and few rounds are run. What a plan guessed because no clock had run yet is measured, too,
so that the next preview knows it.
"""

from __future__ import annotations

from studio.base.progress import Progress
from studio.engine.latency import Protocol, measure_latency, timing_feed
from studio.engine.layers import Listing
from studio.engine.planning import draft, open_calibration, warm
from studio.engine.techniques.contract import Context
from studio.records import task

_QUICK = Protocol(minimum=10, maximum=40, half_width=0.03, budget_s=1.5, limit_s=10.0)


def forecast(asked: task.Forecast, progress: Progress, listing: Listing) -> task.Forecasted:
    """Answer a `Forecast` on the model in `listing`.

    Raises:
        StudioError: the draft or the model does not run.
        Cancelled: at any tick.
    """
    context = Context(
        progress=progress, calibration=open_calibration(asked.calibration, listing), threads=asked.threads
    )
    after = listing
    for plan in asked.plans:
        warm(after, plan, context)
        after = draft(after, plan, context)
    feed = timing_feed(listing.model, asked.evaluation, asked.calibration, dict(asked.input_sizes))
    _, found = measure_latency([listing.model, after.model], feed, asked.threads, progress, _QUICK)
    return task.Forecasted(latency=found)
