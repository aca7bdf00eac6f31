"""Atoms: the variables 'this position is removed', and what must be equal among them.

An axis of a tensor carries one atom a position. Two statements build everything:

- `unify(a, b)`: position i of one axis is removed exactly when position i of the other is;
- `fix(a, reason)`: these positions are never removed, and the reason is what the user reads.

An atom may be a *product*: removed when any of its parts is (position (h, d) of a merged axis
heads × dim goes when head h or dimension d goes). Products appear where a reshape splits or merges
axes; everything else is union-find. All functions take whole axes, `atoms (n,)`.

The one thing to know: whatever cannot be expressed is fixed. That forbids a cut, it never makes a wrong one.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Axis: TypeAlias = npt.NDArray[np.int64]
Array: TypeAlias = npt.NDArray[Any]

NEVER = 0  # the atom that is never removed; neutral in a product
_MIXED = "the same channels are divided in two different ways"


class Atoms:
    """The store of atoms: union-find with products and reasons."""

    def __init__(self) -> None:
        self._parent = np.zeros(1024, np.int64)
        self._reason = np.zeros(1024, np.int64)  # index into reasons; 0 = free
        self._product = np.zeros(1024, bool)
        self._parts: dict[int, tuple[int, ...]] = {}
        self._interned: dict[tuple[int, ...], int] = {}
        self._expanded: dict[int, list[int]] = {}  # of product roots, until the next statement
        self.reasons: list[str] = ["", "never removed"]
        self.count = 1
        self._reason[NEVER] = 1

    # ------------------------------------------------------------------ making

    def fresh(self, n: int) -> Axis:
        """An axis of `n` new, free atoms."""
        start, end = self.count, self.count + n
        while end > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
            self._reason = np.concatenate([self._reason, np.zeros_like(self._reason)])
            self._product = np.concatenate([self._product, np.zeros_like(self._product)])
        self._parent[start:end] = np.arange(start, end)
        self.count = end
        return np.arange(start, end, dtype=np.int64)

    def fixed(self, n: int, reason: str) -> Axis:
        """An axis of `n` new atoms that are never removed."""
        axis = self.fresh(n)
        self.fix(axis, reason)
        return axis

    def product(self, rows: Array) -> Axis:
        """One atom a row of `rows (n, k)`: removed when any atom of its row is. Free parts only are kept."""
        parts = (
            self.parts(rows.reshape(-1)).reshape(len(rows), -1) if rows.size else rows.reshape(len(rows), 0)
        )
        found = np.zeros(len(rows), np.int64)
        if parts.shape[1] == 1:
            return parts[:, 0]
        for i, row in enumerate(parts.tolist()):
            key = tuple(sorted({p for p in row if p}))
            if len(key) == 1:
                found[i] = key[0]
            elif key:
                found[i] = self._intern(key)
        return found

    def _intern(self, key: tuple[int, ...]) -> int:
        known = self._interned.get(key)
        if known is None:
            known = int(self.fresh(1)[0])
            self._interned[key] = known
            self._parts[known] = key
            self._product[known] = True
        return known

    # ------------------------------------------------------------------ reading

    def roots(self, atoms: Array) -> Axis:
        """The representative of every atom."""
        found = self._parent[atoms]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[atoms] = found
        return np.asarray(found, np.int64)

    def parts(self, atoms: Array) -> Array:
        """The free primitive atoms that remove each atom: (n, k), filled up with NEVER, ordered within a row."""
        roots = self.roots(atoms)
        free = np.where(self._reason[roots] > 0, NEVER, roots)
        if not self._product[roots].any():
            return free[:, None]
        unique, inverse = np.unique(roots, return_inverse=True)
        rows = [self._expand(int(root)) for root in unique]
        width = max(1, *map(len, rows))
        table = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            table[i, : len(row)] = row
        return table[inverse]

    def _expand(self, root: int) -> list[int]:
        if not self._product[root]:
            return [] if self._reason[root] else [root]
        known = self._expanded.get(root)
        if known is None:
            found: set[int] = set()
            for part in self.roots(np.array(self._parts[root])).tolist():
                found.update(self._expand(part))
            known = self._expanded[root] = sorted(found)
        return known

    def reason(self, atom: int) -> str:
        """Why an atom is never removed; '' when it may be. A product is as fixed as all of its parts."""
        root = int(self.roots(np.array([atom]))[0])
        if self._reason[root]:
            return self.reasons[int(self._reason[root])]
        if not self._product[root]:
            return ""
        reasons = [self.reason(part) for part in self._parts[root]]
        return reasons[0] if all(reasons) else ""

    # ------------------------------------------------------------------ stating

    def fix(self, atoms: Array | None, reason: str) -> None:
        """Never remove these positions."""
        if atoms is None or not len(atoms):
            return
        if reason not in self.reasons:
            self.reasons.append(reason)
        index = self.reasons.index(reason)
        self._expanded.clear()
        pending = np.unique(self.roots(atoms))
        while len(pending):
            products = pending[self._product[pending]]
            plain = pending[~self._product[pending]]
            free = plain[self._reason[plain] == 0]
            self._reason[free] = index
            inner = [p for root in products.tolist() for p in self._parts[root]]
            pending = np.unique(self.roots(np.array(inner, np.int64))) if inner else np.zeros(0, np.int64)

    def unify(self, a: Axis, b: Axis) -> None:
        """Position i of `a` is removed exactly when position i of `b` is."""
        ra, rb = self.roots(a), self.roots(b)
        differ = ra != rb
        if not differ.any():
            return
        ra, rb = ra[differ], rb[differ]
        both_products = self._product[ra] & self._product[rb]
        if both_products.any():
            self._unify_products(ra[both_products], rb[both_products])
            ra, rb = ra[~both_products], rb[~both_products]
        self._union(ra, rb)

    def _union(self, a: Axis, b: Axis) -> None:
        self._expanded.clear()
        products = self._product[a] | self._product[b]
        for x, y in zip(a[products].tolist(), b[products].tolist(), strict=True):
            self._union_product(x, y)
        a, b = a[~products], b[~products]
        while len(a):
            a, b = self.roots(a), self.roots(b)
            differ = (a != b) & ~(self._product[a] & self._product[b])
            a, b = a[differ], b[differ]
            late = self._product[a] | self._product[b]  # became products meanwhile
            for x, y in zip(a[late].tolist(), b[late].tolist(), strict=True):
                self._union_product(x, y)
            low, high = np.minimum(a[~late], b[~late]), np.maximum(a[~late], b[~late])
            why = self._reason[high]
            self._parent[high] = low
            lead = self.roots(high)
            inherits = (why > 0) & (self._reason[lead] == 0)
            self._reason[lead[inherits]] = why[inherits]

    def _union_product(self, x: int, y: int) -> None:
        """Union of two atoms of which at least one was a product; a product leads."""
        rx, ry = (int(r) for r in self.roots(np.array([x, y])))
        if rx == ry:
            return
        if self._product[rx] and self._product[ry]:
            self._unify_products(np.array([rx]), np.array([ry]))
            return
        product, plain = (rx, ry) if self._product[rx] else (ry, rx)
        why = int(self._reason[plain])
        if plain in self._expand(product):  # x = (x or y) would tie y to x: forbid both
            self.fix(np.array([product]), _MIXED)
            return
        self._parent[plain] = product
        self._expanded.clear()
        if why:
            self.fix(np.array([product]), self.reasons[why])

    def _unify_products(self, a: Axis, b: Axis) -> None:
        """Unify products part by part: parts that vary alike over the axis belong together."""
        pa, pb = self.parts(a), self.parts(b)
        width = (pa > 0).sum(axis=1) * 1000 + (pb > 0).sum(axis=1)
        for w in np.unique(width):
            rows = width == w
            self._unify_columns(_compact(pa[rows]), _compact(pb[rows]))

    def _unify_columns(self, pa: Array, pb: Array) -> None:
        left = list(pa.T)
        right = list(pb.T)
        for column in list(left):
            match = next((i for i, c in enumerate(right) if np.array_equal(c, column)), None)
            if match is not None:
                right.pop(match)
                left = [c for c in left if c is not column]
        for column in list(left):
            codes = _codes(column)
            match = next((i for i, c in enumerate(right) if np.array_equal(_codes(c), codes)), None)
            if match is not None:
                self.unify(column, right.pop(match))
                left = [c for c in left if c is not column]
        for one, many in ((left, right), (right, left)):
            if len(one) == 1 and len(many) > 1:
                self._define(one[0], np.stack(many, axis=1))
                return
        for column in (*left, *right):
            self.fix(column, _MIXED)

    def _define(self, column: Array, rows: Array) -> None:
        """Let every atom of `column` be the product of its row, where it has only one row."""
        unique, index = np.unique(column, return_index=True)
        same = (rows == rows[index[np.searchsorted(unique, column)]]).all()
        if same:
            self._union(unique, self.product(rows[index]))
        else:
            self.fix(column, _MIXED)
            self.fix(rows.reshape(-1), _MIXED)


def _compact(rows: Array) -> Array:
    """Rows with equally many parts, without the filling."""
    kept = int((rows[0] > 0).sum())
    return np.sort(rows, axis=1)[:, rows.shape[1] - kept :]


def _codes(column: Array) -> Array:
    """Numbers by first appearance: equal codes mean equal partitions of the positions."""
    _unique, first, inverse = np.unique(column, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return np.asarray(order[inverse])
