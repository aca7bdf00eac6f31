"""Distillation: the weights are trained until the model answers as its teacher does. No labels are needed.

minimise E[T²·KL(softmax(t(x)/T) ‖ softmax(s(x)/T))] (+ inner values, + labels where wanted), t the teacher's
answer and s the student's.

Source: Hinton, Vinyals, Dean 2015, *Distilling the Knowledge in a Neural Network*. See `engine/training`.
"""

from __future__ import annotations

from studio.engine.graph import Model
from studio.engine.layers import Listing
from studio.engine.techniques.contract import Context
from studio.records.plan import Plan
from studio.records.steps import Distill, Settings, Step


class Distillation:
    """See the module."""

    settings: type[Settings] = Distill

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`; costs stay as they are."""
        from studio.engine.techniques.learning import plan_training, without_samples

        return plan_training(listing, step, context, without_samples(context, "distillation"))

    def draft(self, listing: Listing, plan: Plan, context: Context) -> Model:  # noqa: ARG002 - the contract's
        """See `Drafting.draft`."""
        return listing.model

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        from studio.engine.techniques.learning import carry_out

        settings = plan.step.settings
        assert isinstance(settings, Distill)
        return carry_out(
            listing,
            plan,
            context,
            teacher=context.teacher or listing.model,
            labels=settings.labels,
            features=settings.features,
            temperature=settings.temperature,
        )
