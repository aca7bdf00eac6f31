"""What a process that runs foreign code may still do: read what Python needs, write into one folder, compute.

Three layers, each as far as the system has it: limits on memory, time and file size; Landlock (files, Linux
5.13 and newer); a system-call filter that refuses sockets, new programs and tracing. `confine` says in words
which of them hold. There is no way back.

Source: Linux kernel documentation, *Landlock: unprivileged access control* and *Seccomp BPF*.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

_MEMORY = 16 * 2**30
_CPU_SECONDS = 1800
_FILE_BYTES = 8 * 2**30

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
# System calls refused, by machine: the audit number of the machine, then sockets, connect, exec, ptrace, bpf, keys.
_REFUSED = {
    "x86_64": (0xC000003E, (41, 42, 53, 59, 101, 310, 311, 321, 322, 425)),
    "aarch64": (0xC00000B7, (198, 199, 203, 221, 117, 270, 271, 280, 281, 425)),
}
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # errno EPERM
_LANDLOCK = (444, 445, 446)
_READ = 0b1101  # execute, read file, read directory
_ALL = (1 << 13) - 1


def confine(readable: Sequence[Path], writable: Path) -> tuple[str, ...]:
    """Confine this process for good; what holds, in words.

    Args:
        readable: files and folders beside Python's own.
        writable: the one folder to write into.
    """
    held = [*_limit()]
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is not None and libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0:
        if _files(libc, readable, writable):
            held.append("files: reads only what Python needs, writes only its own folder")
        if _calls(libc):
            held.append("no network, no other programs")
    return tuple(held)


def _limit() -> list[str]:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        return ["limits on memory, time and file size"]
    return []


def _files(libc: ctypes.CDLL, readable: Sequence[Path], writable: Path) -> bool:
    create, add, restrict = _LANDLOCK
    rules = ctypes.create_string_buffer(struct.pack("<Q", _ALL), 8)
    handle = libc.syscall(create, rules, ctypes.c_size_t(8), 0)
    if handle < 0:
        return False
    own = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values(), *sys.path]
    system = ["/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev", "/opt"]
    for place in {*map(Path, filter(None, (*own, *system))), *readable}:
        _allow(libc, add, handle, place, _READ)
    _allow(libc, add, handle, writable, _ALL)
    _allow(libc, add, handle, Path("/dev/null"), _READ | 0b10)
    done = bool(libc.syscall(restrict, handle, 0) == 0)
    os.close(handle)
    return done


def _allow(libc: ctypes.CDLL, add: int, handle: int, place: Path, rights: int) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(place, getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC)
        rights = rights if place.is_dir() else rights & 0b111
        rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, descriptor), 12)
        libc.syscall(add, handle, 1, rule, 0)
        os.close(descriptor)


def _calls(libc: ctypes.CDLL) -> bool:
    known = _REFUSED.get(platform.machine())
    if known is None:
        return False
    machine, numbers = known
    # Each line: operation, jump if true, jump if false, operand.
    lines = [(0x20, 0, 0, 4), (0x15, 1, 0, machine), (0x06, 0, 0, _REFUSE), (0x20, 0, 0, 0)]
    lines += [
        (0x15, left, 0, number) for left, number in zip(range(len(numbers), 0, -1), numbers, strict=True)
    ]
    lines += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _REFUSE)]
    code = [struct.pack("<HBBI", *line) for line in lines]
    body = ctypes.create_string_buffer(b"".join(code))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(body)), 16)
    return bool(libc.prctl(_SET_SECCOMP, _FILTER, program, 0, 0) == 0)
