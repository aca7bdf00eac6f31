"""Running models over a data set and comparing what they answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.engine.accuracy.fidelity import Fidelity
from studio.engine.accuracy.kinds import Array, Kind, final_operator, kind_of
from studio.engine.accuracy.metric import Score
from studio.engine.dataset import Batch, Dataset
from studio.engine.execute import run, session
from studio.engine.graph import Model, load
from studio.records.measure import Accuracy, OutputError

if TYPE_CHECKING:
    import onnxruntime as ort

# Outputs of the reference are kept up to this size, so that a scan of many models runs it once.
_KEPT_BYTES = 64_000_000


def compare(
    reference: Model | Path, other: Model | Path, data: Dataset, progress: Progress, threads: int = 0
) -> tuple[OutputError, Accuracy | None]:
    """The error of `other` against `reference` over all samples, and its accuracy where labels exist.

    Raises:
        StudioError: a model cannot be loaded or run, or their outputs differ in number or shape.
        Cancelled: at any tick.
    """
    return Reference(reference, data, threads, keep=0).compare(other, progress)


def accuracy_of(model: Model | Path, data: Dataset, progress: Progress, threads: int = 0) -> Accuracy | None:
    """How often a model is right; None without labels that fit its output.

    Raises:
        StudioError: the model cannot be loaded or run.
        Cancelled: at any tick.
    """
    if not data.source.labelled:
        return None
    sess, score = session(model, threads=threads), Score(_final(model))
    name = next(iter(_tensors(sess)), None)
    if name is None:
        return None
    for done, batch in enumerate(data.batches()):
        progress.tick(done / max(1, data.runs()), "checking answers")
        if batch.labels is not None:
            score.add(run(sess, batch.feed, [name])[0], batch.labels)
    progress.tick(1.0)
    return score.result()


class Reference:
    """The model whose answers are the truth, on one data set.

    Args:
        model: usually the original.
        data: what both models are run on.
        threads: intra-op threads; 0 = the runtime's choice.
        keep: bytes of outputs that may be held, so that a second comparison need not run it again.
        called: what the data are called beside a figure.
    """

    def __init__(
        self,
        model: Model | Path,
        data: Dataset,
        threads: int = 0,
        keep: int = _KEPT_BYTES,
        called: str = "calibration data",
    ) -> None:
        self._data, self._threads, self._keep, self._called = data, threads, keep, called
        self._session: ort.InferenceSession | None = session(model, threads=threads)
        self._names = _tensors(self._session)
        self._final = _final(model)
        self._kind: Kind | None = None
        self._kept: list[list[Array]] | None = None

    @property
    def comparable(self) -> bool:
        """Whether any output is a tensor; sequences and maps have no distance."""
        return bool(self._names)

    def compare(self, other: Model | Path, progress: Progress) -> tuple[OutputError, Accuracy | None]:
        """The error of `other` over all samples, and its accuracy where labels exist.

        Raises:
            StudioError: `other` cannot be loaded or run, or its outputs differ in number or shape.
            Cancelled: at any tick.
        """
        if not self.comparable:
            raise StudioError("The model has nothing to compare", "none of its outputs is a tensor")
        sess = session(other, threads=self._threads)
        have = {output.name for output in sess.get_outputs()}
        if missing := [name for name in self._names if name not in have]:
            raise StudioError("The two models cannot be compared", f"one has no output '{missing[0]}'")
        fidelity, score = None, Score(self._final)
        for done, (batch, truth) in enumerate(self._runs()):
            progress.tick(done / max(1, self._data.runs()), "comparing outputs")
            answer = run(sess, batch.feed, self._names)
            if fidelity is None:
                self._kind = self._kind or kind_of(truth[0], batch.labels, self._final)
                fidelity = Fidelity(self._kind)
            fidelity.add(truth, answer, batch.count)
            if batch.labels is not None:
                score.add(answer[0], batch.labels)
        progress.tick(1.0)
        if fidelity is None:
            raise StudioError("There is nothing to compare on", "the data set holds no samples")
        error = msgspec.structs.replace(
            fidelity.result(), data="random inputs" if self._data.random else self._called
        )
        return error, score.result()

    def _runs(self) -> Iterator[tuple[Batch, list[Array]]]:
        """Every batch with the reference's outputs, from memory where they are kept."""
        if self._kept is not None:
            yield from zip(self._data.batches(), self._kept, strict=True)
            return
        assert self._session is not None
        kept: list[list[Array]] | None = []
        held = 0
        for batch in self._data.batches():
            truth = run(self._session, batch.feed, self._names)
            held += sum(array.nbytes for array in truth)
            if kept is not None and held <= self._keep:
                kept.append(truth)
            else:
                kept = None
            yield batch, truth
        if kept is not None:
            self._kept, self._session = kept, None


def _tensors(sess: ort.InferenceSession) -> list[str]:
    """The outputs that are tensors; sequences and maps have no distance."""
    return [output.name for output in sess.get_outputs() if output.type.startswith("tensor(")]


def _final(model: Model | Path) -> str:
    return final_operator(model if isinstance(model, Model) else load(model))
