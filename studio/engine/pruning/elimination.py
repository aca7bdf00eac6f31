"""Optimal brain surgery on whole channels: always those go that the others can best make up for.

Removing the columns c of W costs tr(W_c (H⁻¹_cc)⁻¹ W_cᵀ) when all other columns make up for them, with
H = XᵀX / n; the others then are W − W_c (H⁻¹_cc)⁻¹ H⁻¹_c: and the inverse of what is left of H is
H⁻¹ − H⁻¹_:c (H⁻¹_cc)⁻¹ H⁻¹_c:. That is what least squares behind the cut can repair, no more and no less.

Sources: Hassibi & Stork, Optimal Brain Surgeon, 1993; Kurtic et al., ZipLM, 2023, section 3.1 (structures).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from studio.engine.groups.atoms import Array
from studio.engine.pruning.orders import Order, Reader

_DAMPINGS = (0.03, 0.1)
_TRIED = 0.3  # share of the channels that go when dampings are compared
_ASKED = 256  # outputs that a layer answers for then
_ROUNDS = 32  # to remove all channels; a round brings W and H⁻¹ up to date
_TINY = 1e-12


def by_elimination(readers: Sequence[Reader], limit: int) -> Order:
    """Eliminate with the damping under which what makes up for gone channels holds for other samples, too.

    A few images, however many positions they have, do not tell how a thousand channels hang together.
    """
    errors = np.sum([held_out(reader, _DAMPINGS) for reader in readers], axis=0)
    return eliminate(readers, limit, _DAMPINGS[int(np.argmin(errors))])


def held_out(reader: Reader, dampings: Sequence[float]) -> Array:
    """Share of the output's power that is wrong on one half of the samples after make-up learned on the other.

    Every third channel goes, so that the question is the same for every damping (dampings,). A wide layer answers
    for some of its outputs.
    """
    count = len(reader.columns)
    gone = reader.columns[:: round(1 / _TRIED)] if count > 1 else reader.columns
    taught, h = reader.moments(0), reader.moments(1)
    w = reader.w[:: -(-len(reader.w) // _ASKED)]
    power = max(float(((w @ h) * w).sum()), 1e-30)
    changes = [_made_up(w, taught, gone.reshape(-1), damping) - w for damping in dampings]
    return np.array([float(((change @ h) * change).sum()) / power for change in changes])


def made_up(reader: Reader, columns: Array, damping: float, half: int | None = None) -> Array:
    """W (rows, cols) without some columns, the others making up for them on a half of the samples (None = all)."""
    return _made_up(reader.w, reader.moments(half), columns, damping)


def _made_up(w: Array, h: Array, columns: Array, damping: float) -> Array:
    stay = np.setdiff1d(np.arange(len(h)), columns)
    kept = h[stay]
    damped = kept[:, stay]
    damped[np.diag_indices_from(damped)] += damping * max(float(np.mean(np.diag(h))), _TINY)
    found = np.zeros_like(w)
    found[:, stay] = w[:, stay]
    if len(stay):
        found[:, stay] += _solved(damped, kept[:, columns] @ w[:, columns].T).T
    return found


def _solved(damped: Array, wanted: Array) -> Array:
    """What a damped H makes of some columns; H is symmetric, and positive but for rounding."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    try:
        factor = cho_factor(damped, lower=True, check_finite=False)
    except LinAlgError:
        return np.asarray(np.linalg.solve(damped, wanted))
    return np.asarray(cho_solve(factor, wanted, check_finite=False))


def eliminate(readers: Sequence[Reader], limit: int, damping: float) -> Order:
    """Remove channels a few at a time, always those that cost least with the others making up for them.

    Args:
        readers: every layer that reads the group.
        limit: after so many the order is that of the last round, which nobody asks for.
        damping: added to the diagonal of H, relative to its mean.
    """
    width = len(readers[0].columns)
    states = [_State(reader, damping) for reader in readers]
    left = np.arange(width)
    order: list[int] = []
    error = [0.0]
    chunk = max(1, width // _ROUNDS)
    while len(left):
        if len(order) >= limit:
            chunk = len(left)
        scores = np.sum([state.scores() for state in states], axis=0)
        gone = np.argsort(scores, kind="stable")[:chunk]
        for k in gone:
            order.append(int(left[k]))
            error.append(error[-1] + float(scores[k]))
        if len(gone) < len(left):
            for state in states:
                state.remove(gone)
        left = np.delete(left, gone)
    return Order(np.array(order), np.maximum.accumulate(error), damping)


class _State:
    """W and H⁻¹ of one reader while channels go.

    Columns are ordered channel by channel, those of no channel last, and shrink as channels go.
    """

    def __init__(self, reader: Reader, damping: float) -> None:
        self._span = reader.columns.shape[1]
        first = reader.columns.reshape(-1)
        place = np.concatenate([first, np.setdiff1d(np.arange(reader.w.shape[1]), first)])
        h = reader.moments()[place][:, place]
        w = reader.w[:, place]
        w = w / np.sqrt(max(float(((w @ h) * w).sum()), 1e-30))
        if len(w) > w.shape[1]:  # only WᵀW counts, and a factor of it has fewer rows
            w = np.asarray(np.linalg.qr(w, mode="r"))
        self._w = w.astype(np.float32)
        self._inverse = inverse(h, damping).astype(np.float32)
        self._channels = len(reader.columns)

    def scores(self) -> Array:
        """What each channel that is left would cost: (channels,)."""
        n, b = self._channels, self._span
        if b == 1:
            diagonal = np.maximum(np.diag(self._inverse)[:n], 1e-30)
            return np.asarray(np.square(self._w[:, :n]).sum(axis=0, dtype=np.float64) / diagonal)
        blocks = np.einsum("ibic->ibc", self._inverse[: n * b, : n * b].reshape(n, b, n, b))
        parts = self._w[:, : n * b].reshape(-1, n, b).transpose(1, 2, 0)
        gram = (parts @ parts.transpose(0, 2, 1)).astype(np.float64)
        return np.asarray((np.linalg.inv(blocks.astype(np.float64)) * gram).sum(axis=(1, 2)))

    def remove(self, channels: Array) -> None:
        """Take channels (positions among those left) away, with the others making up for them."""
        mask = np.zeros(len(self._inverse), bool)
        for offset in range(self._span):
            mask[channels * self._span + offset] = True
        gone, stay = np.flatnonzero(mask), np.flatnonzero(~mask)
        rows = self._inverse[gone]
        across = np.ascontiguousarray(rows[:, stay])
        solved = np.linalg.solve(rows[:, gone], across)
        self._w = self._w[:, stay] - self._w[:, gone] @ solved
        self._inverse = self._inverse[stay][:, stay] - across.T @ solved
        self._channels -= len(channels)


def inverse(hessian: Array, damping: float) -> Array:
    """(H + damping · mean diagonal)⁻¹ (cols, cols), with more damping where rounding left it indefinite."""
    from scipy.linalg.lapack import dpotrf, dpotri

    h = hessian.astype(np.float64)
    h[np.diag_indices_from(h)] += damping * max(float(np.mean(np.diag(h))), _TINY)
    factor, failed = dpotrf(h, lower=1)
    if failed:
        return inverse(hessian, 10 * damping)
    found, _ = dpotri(factor, lower=1)
    np.copyto(found, found.T, where=~np.tri(len(found), dtype=bool))
    return np.asarray(found)
