"""Memory that one process fills and others on its machine read: a file without a name.

A name in /dev/shm would outlive a process that is killed. Here memory is a memfd, which others
open by way of /proc, and which the kernel frees once nobody has it open or mapped any more.
Linux only: elsewhere `host_id` is empty, and tensors go over the network.
"""

from __future__ import annotations

import mmap
import os
import secrets
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from ditmesh.tensors import WireTensor

if sys.platform != "win32":
    import fcntl

TOKEN_BYTES = 16
MAPPED_FROM_BYTES = 1 << 20
"""Smaller tensors are copied: each mapping has an open file for as long as it is kept, and a LoRA
has hundreds of matrices."""
_LEAST_SHARE = 8
"""What is less than this part of its memory is copied: a mapping keeps all of it, and whoever
keeps a tensor counts that tensor alone."""

# Versions that do not lock what they read are not to share memory with those that rely on it.
_LOCKS = "locks"
_NAME = "ditmesh"
_LINK = f"/memfd:{_NAME}"
_PAGE = mmap.ALLOCATIONGRANULARITY
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


@lru_cache(maxsize=1)
def host_id() -> str:
    """Equal for processes that can read one another's memory files; empty where there are none.

    They must run on one kernel, see one another in /proc, be the same user's, and agree on locks.
    """
    if not hasattr(os, "memfd_create"):
        return ""
    try:
        boot = _BOOT_ID.read_text().strip()
        return f"{boot}:{_PID_NAMESPACE.stat().st_ino}:{os.geteuid()}:{_LOCKS}"
    except OSError:
        return ""


class Memory:
    """Memory to share, filled tensor by tensor; a context manager that closes it.

    It is this process's to write until it is published. Then others `read` it, and it stays as it
    is until none of them has it mapped any more: each holds a lock on the file for so long, which
    the kernel takes from it when it dies. What is to be written by both sides is never published,
    and others `attach` to it.
    """

    def __init__(self) -> None:
        """Raises OSError where memory files are not to be had."""
        self.fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # Also when it is dropped unclosed, such as by a thread whose caller is gone.
        self._close = weakref.finalize(self, os.close, self.fd)
        # A file that shrinks kills whoever reads a mapping beyond its end.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.room = 0
        """Bytes that it has had; they stay its own, and are faster to write than new ones."""
        self._begin()

    def publish(self) -> None:
        """Let others read it."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def seal(self) -> None:
        """Let others read it, and nobody write to it any more: it cannot be used again."""
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW)
        self.publish()

    def reuse(self) -> bool:
        """Make it this process's own again, and empty. False: somebody still reads it."""
        try:
            self._begin()
        except BlockingIOError:
            return False
        return True

    @property
    def is_read(self) -> bool:
        """Whether somebody has what was published mapped."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        self.publish()
        return False

    def _begin(self) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who comes late, for what it was before, must not take it for that.
        self.token = secrets.token_bytes(TOKEN_BYTES)
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
        self.room = max(self.room, self._end)
        return offset

    def map(self) -> memoryview:
        """All of it as it is now, to read and write."""
        return memoryview(mmap.mmap(self.fd, os.fstat(self.fd).st_size))

    def close(self) -> None:
        """Let go of it. Who has mapped it keeps it."""
        self._close()
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
        self.room = max(self.room, self._end)
        return offset


class SealedMemory:
    """Another process's memory that nobody can write to any more, held open here.

    So this process can tell others of it, whatever becomes of the one whose it was.
    """

    def __init__(self, pid: int, fd: int, token: bytes) -> None:
        """Raises OSError as `read`, and when it is not sealed."""
        self.token = token
        with _opened(pid, fd, token, os.O_RDONLY) as own:
            if not fcntl.fcntl(own, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE:
                raise OSError(f"process {pid} can write to its file {fd}")
            self.fd = os.dup(own)
        weakref.finalize(self, os.close, self.fd)

    def read(self, places: Iterable[tuple[int, int]]) -> list[bytes | memoryview]:
        """As the function `read`."""
        size = os.fstat(self.fd).st_size
        return [_read(self.fd, offset, length, size) for offset, length in places]


def read(
    pid: int, fd: int, token: bytes, places: Iterable[tuple[int, int]]
) -> list[bytes | memoryview]:
    """The data at each (offset, length) of another process's memory.

    Those that are large, and no small part of that memory, are mapped, not copied; they stay as
    they are whatever becomes of that process.
    Raises OSError when it cannot be opened, is not published, or is not the memory that begins
    with `token`.
    """
    with _opened(pid, fd, token, os.O_RDONLY, lock=True) as own:
        size = os.fstat(own).st_size
        return [_read(own, offset, length, size) for offset, length in places]


def attach(pid: int, fd: int, token: bytes) -> memoryview:
    """All of another process's memory as it is now, to read and write. Raises OSError as `read`."""
    with _opened(pid, fd, token, os.O_RDWR) as own:
        return memoryview(mmap.mmap(own, os.fstat(own).st_size))


def write(
    pid: int, fd: int, token: bytes, place: tuple[int, int], data: bytes | memoryview
) -> None:
    """Put data into the room (offset, length) that another process has left in its memory.

    Raises OSError as `read`, and when the room is not there or not as large as the data.
    """
    offset, length = place
    with _opened(pid, fd, token, os.O_RDWR) as own:
        if length != len(data) or offset < TOKEN_BYTES or offset + length > os.fstat(own).st_size:
            raise OSError(f"process {pid} has no room for {len(data)} bytes at byte {offset}")
        rest = memoryview(data)
        while rest:
            written = os.pwrite(own, rest, offset)
            rest, offset = rest[written:], offset + written


@contextmanager
def _opened(pid: int, fd: int, token: bytes, mode: int, *, lock: bool = False) -> Iterator[int]:
    path = f"/proc/{pid}/fd/{fd}"
    # What a client names may be anything: to open a device or a pipe can do something to it.
    if not os.readlink(path).startswith(_LINK):
        raise OSError(f"process {pid} has no memory at {fd}")
    own = os.open(path, mode | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if lock:
            # Held by what is mapped as well: Python's mmap has a duplicate of the descriptor.
            fcntl.flock(own, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not fcntl.fcntl(own, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise OSError(f"process {pid} can shorten its file {fd}")
        # All of it: a part could be guessed by who was not told.
        if len(token) != TOKEN_BYTES or os.pread(own, TOKEN_BYTES, 0) != token:
            raise OSError(f"process {pid} has other memory at {fd}")
        yield own
    finally:
        os.close(own)


def _read(fd: int, offset: int, length: int, size: int) -> bytes | memoryview:
    if offset + length > size:
        raise OSError(f"the memory has {size} bytes, not {offset + length}")
    if length < MAPPED_FROM_BYTES or length * _LEAST_SHARE < size:
        data = os.pread(fd, length, offset)
        if len(data) < length:
            # Linux reads no more than 2 GiB at once.
            raise OSError(f"{length} bytes cannot be copied at once")
        return data
    if offset % _PAGE:
        raise OSError(f"a tensor at byte {offset} is not on a page of its own")
    # Private: what has to be able to write to it, as torch has, gets copies of the pages it writes.
    prot = mmap.PROT_READ | mmap.PROT_WRITE
    return memoryview(mmap.mmap(fd, length, mmap.MAP_PRIVATE, prot, offset=offset)).toreadonly()
