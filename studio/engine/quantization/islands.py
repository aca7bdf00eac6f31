"""Which layers are better left in float: those around the few values that 8 bits would spoil the answer with.

Noises of sites nearly add up. The noisiest goes first: the layers that make it and read it are left in float, so that it
is no site any more; until what is left is little, or too much of the work would be done in float. What is left is
measured: behind a logarithm, say, noises make more than their sum, and more layers have to go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from studio.engine.graph import constant, node_key
from studio.engine.quantization.static import Workshop
from studio.engine.quantization.survey import Finding

# Noise (share of the outputs' power) that makes one look for islands, and that one is content with.
_TOO_MUCH, _LITTLE = 10**-2.1, 10**-2.5
# Share of the multiplications that may be left in float; any, where the answer would be worthless.
_WORK, _WORTHLESS = 0.25, 10**-1.0
# A site that makes most of the noise, where there is more than that, may cost any work, too.
_MOST, _HEARD = 0.5, 10**-2.0
# Sites that make less than this share of the noise are not worth an island.
_WORTH = 0.01
# How often what is left is measured, and with how much noise one goes on.
_ROUNDS, _POOR = 4, 10**-1.5


def find_islands(
    shop: Workshop,
    findings: Mapping[str, Finding],
    work: Mapping[str, int],
    noise: Callable[[Workshop], float],
) -> dict[str, float]:
    """Layers to leave in float, with the SQNR in dB that their noisiest value would leave by itself; none, mostly.

    Args:
        shop: with all layers on integers.
        findings: by site.
        work: multiplications by layer.
        noise: measured in the answers of a model with these layers on integers.
    """
    kept: dict[str, float] = {}
    rest, little, share = shop, _LITTLE, _WORK
    for round_ in range(_ROUNDS):
        measured = noise(rest)
        if measured < (_POOR if round_ else _TOO_MUCH) or not rest.layers:
            break
        if round_:
            share = 1.0 if measured > _WORTHLESS else _WORK
            little = min(little, _TOO_MUCH * _left(rest, findings) / measured)
        more = _noisiest(shop, findings, work, little, share)
        if len(more) > len(kept):
            kept, rest = more, shop.without(more)
    return kept


def _noisiest(
    shop: Workshop, findings: Mapping[str, Finding], work: Mapping[str, int], little: float, share: float
) -> dict[str, float]:
    """The layers around the noisiest sites, until the others are expected to make little noise."""
    total = max(1, sum(work[key] for key in shop.layers))
    kept: dict[str, float] = {}
    left = _left(shop, findings)
    for name in sorted(findings, key=lambda name: -findings[name].noise):
        noise = findings[name].noise
        if left < little or noise < _WORTH * left:
            break
        around = {key for key in _around(shop, name) if key not in kept}
        alone = noise > _MOST * left and left > _HEARD
        if not around or sum(work[key] for key in {*kept, *around}) > (1.0 if alone else share) * total:
            continue
        rest = _left(shop.without({*kept, *around}), findings)
        if rest < left:
            kept.update(dict.fromkeys(around, float(-10 * np.log10(noise))))
            left = rest
    return kept


def _left(shop: Workshop, findings: Mapping[str, Finding]) -> float:
    """The noise of all sites that are still there."""
    return sum(findings[name].noise for name in shop.placed.sites if name in findings)


def _around(shop: Workshop, name: str) -> set[str]:
    """The layers that make a site and those that read it; and those that share weights with them.

    Shared weights that one reads in float and another as integers would be stored twice.
    """
    value = shop.placed.sites[name].last
    found = {node_key(user) for user, _ in value.uses()} & shop.layers.keys()
    waiting, seen = [value], set[ir.Value]()
    while waiting:
        value = waiting.pop()
        producer = value.producer()
        if producer is None or value in seen or constant(value) is not None:
            continue
        seen.add(value)
        if node_key(producer) in shop.layers:
            found.add(node_key(producer))
        else:
            waiting.extend(v for v in producer.inputs if v is not None)
    weights = {shop.layers[key].inputs[1] for key in found}
    return {key for key, node in shop.layers.items() if key in found or node.inputs[1] in weights}
