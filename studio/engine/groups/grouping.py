"""From atoms to groups: the channels that cut the same weights alike, and why the others cannot be cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from studio.engine.groups.atoms import Array, Axis
from studio.engine.groups.trace import Role, Trace
from studio.engine.layers import Listing
from studio.records.model import Group, Member

Signature = tuple[tuple[int, int, int, bool], ...]  # (constant, axis, positions per atom, contiguous), sorted


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of which any may go, the same everywhere.

    Attributes:
        record: what the front sees.
        atoms: one a channel, in the order of the leading layer.
        kind: 'outer' and 'inner' groups share positions (heads and the dimensions within them).
        leaders: names of the layers that make these channels.
    """

    record: Group
    atoms: Axis
    kind: Literal["plain", "outer", "inner"]
    leaders: tuple[str, ...]


@dataclass(frozen=True)
class Grouping:
    """All groups of a model; and for every layer whose channels cannot go, why.

    `names` are those of the layers' nodes.
    """

    trace: Trace
    groups: tuple[ChannelGroup, ...]
    blocked: tuple[Group, ...]
    names: Mapping[ir.Node, str]

    def kept(self, gone: Array, axis: Axis) -> Array:
        """Mask of the positions of an axis that stay when the atoms in `gone` (a mask over all atoms) go."""
        return kept(self.trace, gone, axis)

    def gone(self, removed: Mapping[str, Array]) -> Array:
        """Mask over all atoms from masks over the channels of groups, by group name (True = goes)."""
        found = np.zeros(self.trace.atoms.count, bool)
        for group in self.groups:
            mask = removed.get(group.record.name)
            if mask is not None:
                found[group.atoms[np.asarray(mask, bool)]] = True
        return found

    def narrowed(self, widths: Mapping[str, int]) -> Array:
        """Mask over all atoms where groups, by name, keep only their first channels."""
        return self.gone(
            {
                g.record.name: np.arange(g.record.width) >= widths[g.record.name]
                for g in self.groups
                if g.record.name in widths
            }
        )


def kept(trace: Trace, gone: Array, axis: Axis) -> Array:
    """Mask of the positions of an axis that stay."""
    return np.asarray(~gone[trace.atoms.parts(axis)].any(axis=1))


def find_groups(trace: Trace, listing: Listing) -> Grouping:
    """Collect the free atoms of a traced model into groups, in the order of their leading layers."""
    names = {layer.node: name for name, layer in listing.nodes.items()}
    order = {name: index for index, name in enumerate(listing.nodes)}
    signatures = _signatures(trace)
    products = _in_products(trace)
    by_signature: dict[Signature, list[int]] = defaultdict(list)
    for atom, signature in signatures.items():
        by_signature[signature].append(atom)
    owner: dict[int, Signature] = {a: s for s, atoms in by_signature.items() for a in atoms}
    roles = [(names[role.node], role) for role in trace.roles if role.node in names]
    made: dict[Signature, list[tuple[str, Role, Array]]] = defaultdict(list)
    for name, role in roles:
        parts = trace.atoms.parts(role.labels)
        seen = {owner[a] for a in np.unique(parts).tolist() if a in owner}
        for signature in seen:
            made[signature].append((name, role, parts))
    groups = [
        group
        for signature, members in made.items()
        if (group := _group(by_signature[signature], members, products, order)) is not None
    ]
    groups.sort(key=lambda g: (order[g.leaders[0]], g.kind != "outer"))
    return Grouping(trace, tuple(_unique_names(groups)), _blocked(trace, roles, groups), names)


def _signatures(trace: Trace) -> dict[int, Signature]:
    """What each free atom removes: from which axes of which constants, and how many positions."""
    found: dict[int, list[tuple[int, int, int, bool]]] = defaultdict(list)
    for number, held in enumerate(trace.constants.values()):
        for k, axis in enumerate(held.labels):
            if axis is None:
                continue
            parts = trace.atoms.parts(axis)
            for column in parts.T:
                atoms, first, counts = np.unique(column, return_index=True, return_counts=True)
                last = len(column) - 1 - np.unique(column[::-1], return_index=True)[1]
                solid = last - first + 1 == counts
                rows = zip(atoms.tolist(), counts.tolist(), solid.tolist(), strict=True)
                for atom, count, contiguous in rows:
                    if atom:
                        found[atom].append((number, k, count, contiguous))
    return {atom: tuple(sorted(rows)) for atom, rows in found.items()}


def _in_products(trace: Trace) -> set[int]:
    """Atoms that share positions with other free atoms."""
    found: set[int] = set()
    for role in trace.roles:
        parts = trace.atoms.parts(role.labels)
        if parts.shape[1] > 1:
            shared = (parts > 0).sum(axis=1) > 1
            found.update(np.unique(parts[shared]).tolist())
    return found


def _group(
    atoms: list[int], members: list[tuple[str, Role, Array]], products: set[int], order: Mapping[str, int]
) -> ChannelGroup | None:
    chosen = np.array(atoms)
    counted = {}
    for name, role, parts in members:
        inside = np.isin(parts, chosen).any(axis=1)
        counted[name, role.axis] = (int(inside.sum()), parts, inside)
    makers = [key for key in counted if key[1] in {"out", "hidden"}]
    if not makers:
        return None
    makers.sort(key=lambda key: order[key[0]])
    total, parts, inside = counted[makers[0]]
    rows = parts[inside]
    line = rows[np.isin(rows, chosen)]
    first = np.sort(np.unique(line, return_index=True)[1])
    sequence = line[first]
    kind: Literal["plain", "outer", "inner"] = "plain"
    if products.intersection(atoms):
        positions = np.flatnonzero((parts == sequence[0]).any(axis=1))
        kind = "outer" if len(positions) > 1 and (np.diff(positions) == 1).any() else "inner"
    axes = [
        Member(layer=name, axis="heads" if kind == "outer" else _literal(axis), channels=count)
        for (name, axis), (count, _, _) in counted.items()
    ]
    record = Group(
        name=makers[0][0], width=len(sequence), unit=max(1, total // len(sequence)), members=tuple(axes)
    )
    return ChannelGroup(record, sequence, kind, tuple(dict.fromkeys(name for name, _ in makers)))


def _literal(axis: str) -> Literal["out", "in", "hidden"]:
    return "out" if axis == "out" else "in" if axis == "in" else "hidden"


def _unique_names(groups: list[ChannelGroup]) -> list[ChannelGroup]:
    """A layer may lead several groups; the plain one has its name, the others say what they are."""
    words = {"plain": "", "outer": " · heads", "inner": " · within"}
    taken: set[str] = set()
    found = []
    for group in groups:
        base = name = group.record.name + words[group.kind]
        number = 1
        while name in taken:
            number += 1
            name = f"{base} {number}"
        taken.add(name)
        record = Group(
            name=name, width=group.record.width, unit=group.record.unit, members=group.record.members
        )
        found.append(ChannelGroup(record, group.atoms, group.kind, group.leaders))
    return found


def _blocked(trace: Trace, roles: list[tuple[str, Role]], groups: list[ChannelGroup]) -> tuple[Group, ...]:
    """Layers that make channels of which none can go, with the reason."""
    free = {name for group in groups for name in group.leaders}
    found: dict[str, Group] = {}
    for name, role in roles:
        if role.axis == "in" or name in free or name in found:
            continue
        reason = next((r for atom in role.labels.tolist() if (r := trace.atoms.reason(atom))), "")
        if not reason:
            reason = "its channels take part in no cut"
        found[name] = Group(
            name=name, width=len(role.labels), members=(Member(layer=name, axis="out", channels=len(role.labels)),),
            blocked=reason,
        )  # fmt: skip
    return tuple(found.values())
