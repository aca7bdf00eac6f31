"""Fine-tuning: the weights are trained on labelled samples by AdamW; nodes and names stay as they are.

minimise E[−log p_w(label | x)] over the weights w that belong to the chosen layers.

Source: Loshchilov & Hutter 2019, *Decoupled Weight Decay Regularization*. See `engine/training`.
"""

from __future__ import annotations

from studio.engine.graph import Model
from studio.engine.layers import Listing
from studio.engine.techniques.contract import Context
from studio.records.plan import Plan
from studio.records.steps import Finetune, Settings, Step


class FineTuning:
    """See the module."""

    settings: type[Settings] = Finetune

    def plan(self, listing: Listing, step: Step, context: Context) -> Plan:
        """See `Technique.plan`; costs stay as they are."""
        from studio.engine.techniques.learning import plan_training, samples

        data = samples(context)
        missing = "fine-tuning needs labelled samples" if data is None or not data.source.labelled else ""
        return plan_training(listing, step, context, missing)

    def draft(self, listing: Listing, plan: Plan, context: Context) -> Model:  # noqa: ARG002 - the contract's
        """See `Drafting.draft`."""
        return listing.model

    def apply(self, listing: Listing, plan: Plan, context: Context) -> Model:
        """See `Technique.apply`."""
        from studio.engine.techniques.learning import carry_out

        return carry_out(listing, plan, context, teacher=None, labels=1.0)
