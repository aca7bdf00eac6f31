"""Training a model's weights in place of the graph: objectives, the loop, checkpoints.

The one thing to know: `train` takes a model and gives a model with the same nodes and names; only weights
that are trained have changed.
"""

from studio.engine.training.loop import Course, Hooks, Outcome
from studio.engine.training.losses import Objective
from studio.engine.training.session import Lesson, train

__all__ = ["Course", "Hooks", "Lesson", "Objective", "Outcome", "train"]
