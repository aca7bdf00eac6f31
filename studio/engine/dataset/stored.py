"""Arrays in .npy and .npz files, read row by row and never all at once.

Only the plain array format is read. Pickled objects are refused: unpickling runs code.
"""

from __future__ import annotations

import contextlib
import itertools
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from studio.base.errors import StudioError
from studio.engine.dataset.core import Array, Order

_SKIP = 1 << 20
# What the standard library raises on files that are none of theirs, or no longer.
_DAMAGE = (
    OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, UnicodeDecodeError,
)  # fmt: skip


@dataclass(frozen=True)
class StoredArray:
    """One array in a file.

    Attributes:
        path: the .npy or .npz file.
        member: its name inside an .npz; '' for a .npy file.
        name: of the array.
        shape: all of it, the first axis being that of the samples.
        dtype: as stored.
        fortran: stored column by column.
    """

    path: Path
    member: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    def all(self) -> Array:
        """The whole array."""
        with _opened(self.path, self.member) as stream:
            _header(stream, self.path)
            return self._whole(stream)

    def rows(self, order: Order, size: int) -> Iterator[Array]:
        """The rows of `order` (ascending), `size` at a time, each block an array of its own."""
        if self.fortran:
            whole = self.all()
            for start in range(0, len(order), size):
                yield whole[order[start : start + size]]
            return
        width = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        with _opened(self.path, self.member) as stream:
            _header(stream, self.path)
            at = 0
            for start in range(0, len(order), size):
                wanted = order[start : start + size]
                block = np.empty((len(wanted), *self.shape[1:]), self.dtype)
                for first, last in _stretches(wanted):
                    _skip(stream, (int(wanted[first]) - at) * width)
                    self._fill(stream, block[first:last])
                    at = int(wanted[last - 1]) + 1
                yield _native(block)

    def _whole(self, stream: IO[bytes]) -> Array:
        flat = np.empty(self.shape[::-1] if self.fortran else self.shape, self.dtype)
        self._fill(stream, flat)
        return _native(np.ascontiguousarray(flat.T) if self.fortran else flat)

    def _fill(self, stream: IO[bytes], block: Array) -> None:
        if block.nbytes == 0:
            return
        view = block.reshape(-1).view(np.uint8).data
        with _damage_in_words(self.path):
            while view:
                got = stream.readinto(view)  # type: ignore[attr-defined]
                if not got:
                    raise StudioError(
                        f"Cannot read {self.path.name}", f"it ends in the middle of '{self.name}'"
                    )
                view = view[got:]


def arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays of an .npz file by name, or of an .npy file under ''.

    Raises:
        StudioError: no such file, damaged, or it holds Python objects.
    """
    if path.suffix.lower() == ".npy":
        return {"": _describe(path, "", path.stem)}
    with _damage_in_words(path), zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
    if not members:
        raise StudioError(f"Cannot read {path.name}", "it holds no arrays")
    return {name.removesuffix(".npy"): _describe(path, name, name.removesuffix(".npy")) for name in members}


def _describe(path: Path, member: str, name: str) -> StoredArray:
    with _opened(path, member) as stream:
        shape, fortran, dtype = _header(stream, path)
    if dtype.hasobject:
        raise StudioError(
            f"Cannot read '{name}' of {path.name}",
            "it holds Python objects, which could run code when they are read",
            "Save plain numbers: numpy.savez(path, name=array).",
        )
    if any(size < 0 for size in shape):
        raise StudioError(f"Cannot read '{name}' of {path.name}", "its header is damaged")
    if dtype.kind not in "biuf":
        raise StudioError(f"Cannot read '{name}' of {path.name}", f"values of type {dtype} are no numbers")
    return StoredArray(path, member, name, shape, dtype, fortran)


@contextlib.contextmanager
def _opened(path: Path, member: str) -> Iterator[IO[bytes]]:
    with _damage_in_words(path), contextlib.ExitStack() as stack:
        if not member:
            yield stack.enter_context(path.open("rb"))
        else:
            archive = stack.enter_context(zipfile.ZipFile(path))
            yield stack.enter_context(archive.open(member))


@contextlib.contextmanager
def _damage_in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StudioError(f"Cannot read {path.name}", "there is no such file") from error
    except _DAMAGE as error:
        raise StudioError(
            f"Cannot read {path.name}", f"the file is damaged or no array file ({error})"
        ) from error


def _header(stream: IO[bytes], path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type; the stream then stands at the first value."""
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(stream)
    except (ValueError, TypeError, tokenize.TokenError) as error:  # numpy parses the header as Python text
        raise StudioError(
            f"Cannot read {path.name}", f"the file is damaged or no array file ({error})"
        ) from error
    raise StudioError(
        f"Cannot read {path.name}", f"version {version[0]}.{version[1]} of the format is not known"
    )


def _stretches(order: Order) -> Iterator[tuple[int, int]]:
    """Positions (first, last + 1) of runs of consecutive numbers."""
    breaks = np.flatnonzero(np.diff(order) != 1) + 1
    edges = [0, *breaks.tolist(), len(order)]
    yield from itertools.pairwise(edges)


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        got = stream.read(min(count, _SKIP))
        if not got:
            return
        count -= len(got)


def _native(block: Array) -> Array:
    return block if block.dtype.isnative else block.astype(block.dtype.newbyteorder("="))
