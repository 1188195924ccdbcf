"""Memory that one process fills and others on its machine read: a file without a name.

A name in /dev/shm would outlive a process that is killed. Here memory is a memfd, which others
open by way of /proc, and which the kernel frees once nobody has it open or mapped any more.
Linux only: elsewhere `host_id` is empty, and tensors go over the network.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from ditmesh.tensors import WireTensor

TOKEN_BYTES = 16
MAPPED_FROM_BYTES = 64 << 10
"""Smaller tensors are copied: a mapping takes whole pages and a system call."""

_PAGE = mmap.ALLOCATIONGRANULARITY
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


@lru_cache(maxsize=1)
def host_id() -> str:
    """Equal for processes that can read one another's memory files; empty where there are none.

    They must run on one kernel, see one another in /proc, and be the same user's.
    """
    if not hasattr(os, "memfd_create"):
        return ""
    try:
        boot = _BOOT_ID.read_text().strip()
        return f"{boot}:{_PID_NAMESPACE.stat().st_ino}:{os.geteuid()}"
    except OSError:
        return ""


class Memory:
    """Memory to share, filled tensor by tensor; a context manager that closes it."""

    def __init__(self) -> None:
        """Raises OSError where memory files are not to be had."""
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self.fd = os.memfd_create("ditmesh", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # A file that shrinks kills whoever reads a mapping beyond its end.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._end = 0
        self._append(self.token)  # a page

    def add(self, tensor: WireTensor) -> int:
        """Put a tensor's bytes at the end; returns where. Raises OSError when there is no room."""
        return self._append(tensor.data)

    @property
    def nbytes(self) -> int:
        """How much there is of it, whole pages."""
        return self._end

    def leave_room(self, nbytes: int) -> int:
        """Have so many bytes at the end for whoever has it mapped; returns where. Raises OSError
        when there is no room: who writes to pages that cannot be had is killed.
        """
        offset = self._end
        os.posix_fallocate(self.fd, offset, nbytes)
        self._end += nbytes + -nbytes % _PAGE
        return offset

    def map(self) -> memoryview:
        """All of it as it is now, to read and write."""
        return memoryview(mmap.mmap(self.fd, os.fstat(self.fd).st_size))

    def close(self) -> None:
        """Let go of it. Who has mapped it keeps it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _append(self, data: bytes | memoryview) -> int:
        offset = self._end
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self.fd, rest, self._end)
            rest = rest[written:]
            self._end += written
        self._end += -self._end % _PAGE
        return offset


def read(
    pid: int, fd: int, token: bytes, places: Iterable[tuple[int, int]]
) -> list[bytes | memoryview]:
    """The data at each (offset, length) of another process's memory.

    Large ones are mapped, not copied; they stay readable whatever becomes of that process. Raises
    OSError when it cannot be opened, or is not the memory that begins with `token`.
    """
    with _opened(pid, fd, token, os.O_RDONLY) as own:
        size = os.fstat(own).st_size
        return [_read(own, offset, length, size) for offset, length in places]


def attach(pid: int, fd: int, token: bytes) -> memoryview:
    """All of another process's memory as it is now, to read and write. Raises OSError as `read`."""
    with _opened(pid, fd, token, os.O_RDWR) as own:
        return memoryview(mmap.mmap(own, os.fstat(own).st_size))


@contextmanager
def _opened(pid: int, fd: int, token: bytes, mode: int) -> Iterator[int]:
    own = os.open(f"/proc/{pid}/fd/{fd}", mode | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not fcntl.fcntl(own, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise OSError(f"process {pid} can shorten its file {fd}")
        if not token or os.pread(own, len(token), 0) != token:
            raise OSError(f"process {pid} has other memory at {fd}")
        yield own
    finally:
        os.close(own)


def _read(fd: int, offset: int, length: int, size: int) -> bytes | memoryview:
    if offset + length > size:
        raise OSError(f"the memory has {size} bytes, not {offset + length}")
    if length < MAPPED_FROM_BYTES:
        return os.pread(fd, length, offset)
    if offset % _PAGE:
        raise OSError(f"a tensor at byte {offset} is not on a page of its own")
    return memoryview(mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset))
