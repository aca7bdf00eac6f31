"""How alike two models answer, and how often one is right: streamed, side by side, nothing held.

    error, accuracy = compare(original, compressed, data, progress)

A `Reference` keeps the original's outputs where they are few, for comparing many models with it.
"""

from studio.engine.accuracy.compare import Reference, accuracy_of, compare
from studio.engine.accuracy.fidelity import EQUAL_DB, Fidelity
from studio.engine.accuracy.kinds import Kind, final_operator, kind_of
from studio.engine.accuracy.metric import Score

__all__ = [
    "EQUAL_DB",
    "Fidelity",
    "Kind",
    "Reference",
    "Score",
    "accuracy_of",
    "compare",
    "final_operator",
    "kind_of",
]
