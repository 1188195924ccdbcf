"""Memory between processes of one machine: read by others, refused when in doubt, never left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ditmesh import shared_memory
from ditmesh.shared_memory import MAPPED_FROM_BYTES, Memory, SealedMemory, host_id
from ditmesh.tensors import WireTensor

_WRITER = """
import sys, time
import numpy as np
from ditmesh.shared_memory import Memory, host_id
from ditmesh.tensors import WireTensor
memory = Memory()
places = [memory.add(WireTensor.from_numpy(np.full(n, 7, np.uint8))) for n in (2_000_000, 10)]
memory.publish()
print(host_id(), memory.fd, memory.token.hex(), *places, flush=True)
sys.stdin.read()
"""


class Writer:
    """Another process that shares 2000000 bytes and 10, all of them 7."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        words = self.process.stdout.readline().decode().split()
        self.host, self.fd, self.token = words[0], int(words[1]), bytes.fromhex(words[2])
        self.places = list(zip(map(int, words[3:]), (2_000_000, 10), strict=True))

    def read(self) -> list[bytes | memoryview]:
        return shared_memory.read(self.process.pid, self.fd, self.token, self.places)


@pytest.fixture
def writer() -> Iterator[Writer]:
    made = Writer()
    yield made
    made.process.kill()
    made.process.communicate()


def test_another_process_reads_what_was_written(writer: Writer) -> None:
    """A large tensor is mapped, a small one copied, and both processes name one host."""
    assert writer.host == host_id() != ""
    large, small = writer.read()
    assert isinstance(large, memoryview)
    assert isinstance(small, bytes)
    assert bytes(large) == b"\7" * 2_000_000
    assert small == b"\7" * 10


def test_what_is_mapped_outlives_its_process_and_nothing_else_does(writer: Writer) -> None:
    """A process that is killed takes its memory with it, but for what somebody still reads."""
    large, _ = writer.read()
    # No name by which it could outlive everybody.
    opened = [os.readlink(link) for link in Path(f"/proc/{writer.process.pid}/fd").iterdir()]
    assert not [file for file in opened if file.startswith("/dev/shm")], opened
    os.kill(writer.process.pid, signal.SIGKILL)
    writer.process.wait()
    assert bytes(large) == b"\7" * 2_000_000
    with pytest.raises(OSError):
        writer.read()


def test_memory_is_written_again_when_nobody_reads_it_any_more() -> None:
    """A view of a view counts, and a reader that dies is none. Who comes late finds other memory,
    and who comes too early none.
    """
    tensor = WireTensor.from_numpy(np.full(2_000_000, 5, np.uint8))
    with Memory() as memory:
        place = memory.add(tensor), 2_000_000
        with pytest.raises(BlockingIOError):
            shared_memory.read(os.getpid(), memory.fd, memory.token, [place])
        memory.publish()
        token = memory.token
        view = shared_memory.read(os.getpid(), memory.fd, token, [place])[0][10:20]
        assert not memory.reuse()
        assert memory.is_read
        child = subprocess.Popen(
            [sys.executable, "-c", _READER, str(os.getpid()), str(memory.fd), token.hex()],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"5\n"
        del view
        assert memory.is_read
        child.kill()
        child.communicate()
        assert not memory.is_read
        assert memory.reuse()
        assert memory.add(tensor) == place[0]
        memory.publish()
        with pytest.raises(OSError, match="other memory"):
            shared_memory.read(os.getpid(), memory.fd, token, [place])


_READER = """
import sys, time
from ditmesh import shared_memory
pid, fd, token = sys.argv[1:]
(data,) = shared_memory.read(int(pid), int(fd), bytes.fromhex(token), [(4096, 2_000_000)])
print(data[0], flush=True)
time.sleep(60)
"""


def test_a_small_part_that_is_kept_does_not_keep_all_memory() -> None:
    """A client could fill the machine with what it sends beside a tensor that is kept."""
    tensors = [WireTensor.from_numpy(np.full(n * MAPPED_FROM_BYTES, 3, np.uint8)) for n in (1, 8)]
    with Memory() as memory:
        places = [(memory.add(tensor), tensor.spec.nbytes) for tensor in tensors]
        memory.publish()
        small, large = shared_memory.read(os.getpid(), memory.fd, memory.token, places)
        assert memory.is_read
        assert large == tensors[1].data
        del large
        assert not memory.is_read
        assert small == tensors[0].data


def test_what_is_kept_of_many_matrices_takes_no_files() -> None:
    """A LoRA has hundreds, and a process may have 1024 files open."""
    matrix = WireTensor.from_numpy(np.full(100_000, 3, np.uint8))
    with Memory() as memory:
        places = [(memory.add(matrix), matrix.spec.nbytes) for _ in range(4)]
        memory.publish()
        before = len(os.listdir("/proc/self/fd"))
        kept = shared_memory.read(os.getpid(), memory.fd, memory.token, places)
        assert len(os.listdir("/proc/self/fd")) == before
        assert kept == [matrix.data] * 4


def test_what_is_read_can_be_written_to_without_the_others_seeing_it(writer: Writer) -> None:
    """Torch wants memory that it could write to."""
    large, _ = writer.read()
    assert large.readonly
    large.obj[:3] = b"new"
    assert bytes(large[:4]) == b"new\7"
    assert bytes(writer.read()[0][:4]) == b"\7" * 4


def test_memory_that_is_not_meant_is_refused(writer: Writer) -> None:
    """Another token, bytes beyond the end, and a place between pages."""
    pid, fd, token = writer.process.pid, writer.fd, writer.token
    for wrong in (bytes(16), b""):
        with pytest.raises(OSError, match="other memory"):
            shared_memory.read(pid, fd, wrong, [])
    with pytest.raises(OSError, match="bytes, not"):
        shared_memory.read(pid, fd, token, [(0, 1 << 30)])
    with pytest.raises(OSError, match="page of its own"):
        shared_memory.read(pid, fd, token, [(1, MAPPED_FROM_BYTES)])


def test_a_file_that_could_shrink_is_refused() -> None:
    """Whoever maps it could be killed by its owner; so could a reader of a file on a disk."""
    with tempfile.TemporaryFile() as file:
        file.write(bytes(32))
        file.flush()
        with pytest.raises(OSError):
            shared_memory.read(os.getpid(), file.fileno(), bytes(16), [])


def test_what_is_no_memory_is_not_even_opened(tmp_path: Path) -> None:
    """Who opens a pipe lets its writer go on; so a client must not have anything opened."""
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        with pytest.raises(OSError, match="no memory"):
            shared_memory.read(os.getpid(), pipe, bytes(16), [])
        with pytest.raises(OSError, match="no memory"):
            shared_memory.attach(os.getpid(), pipe, bytes(16))
    finally:
        os.close(pipe)


def test_sealed_memory_stays_as_it_is() -> None:
    """Neither its owner nor a reader can write to it; what is not sealed is refused as such."""
    tensor = WireTensor.from_numpy(np.full(MAPPED_FROM_BYTES, 7, np.uint8))
    with Memory() as memory:
        place = memory.add(tensor), tensor.spec.nbytes
        memory.publish()
        with pytest.raises(OSError, match="can write"):
            SealedMemory(os.getpid(), memory.fd, memory.token)
        memory.seal()
        sealed = SealedMemory(os.getpid(), memory.fd, memory.token)
        (view,) = sealed.read([place])
        with pytest.raises(OSError):
            os.pwrite(memory.fd, b"new", place[0])
        with pytest.raises(OSError):
            shared_memory.attach(os.getpid(), memory.fd, memory.token)
        with pytest.raises(OSError):
            memory.map()
    assert bytes(view) == bytes(tensor.data)
    (again,) = shared_memory.read(os.getpid(), sealed.fd, sealed.token, [place])
    assert bytes(again) == bytes(tensor.data)


_USER = """
import os
import numpy as np
from ditmesh import shared_memory
from ditmesh.tensors import WireTensor
before = set(os.listdir("/proc/self/fd"))
with shared_memory.Memory() as memory:
    offsets = [memory.add(WireTensor.from_numpy(np.zeros(5, np.uint8))) for _ in range(3)]
    assert len(set(offsets)) == 3
    memory.publish()
    shared_memory.read(os.getpid(), memory.fd, memory.token, [(offsets[1], 5)])
memory.close()
print(set(os.listdir("/proc/self/fd")) == before)
"""


def test_closed_memory_gives_its_descriptor_back() -> None:
    """Nothing stays open after a request, in a process that does nothing else meanwhile."""
    done = subprocess.run([sys.executable, "-c", _USER], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n", done.stderr


def test_where_there_is_no_such_memory_no_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then everything goes over the network."""
    monkeypatch.delattr(os, "memfd_create")
    host_id.cache_clear()
    try:
        assert host_id() == ""
    finally:
        host_id.cache_clear()


_WINDOWS = """
import sys
import grpc, numpy
sys.modules["fcntl"] = None
sys.platform = "win32"
import ditmesh.client
"""


def test_a_client_starts_where_there_are_no_such_files() -> None:
    """Windows has neither these files nor locks on them, and clients run there."""
    subprocess.run([sys.executable, "-W", "error", "-c", _WINDOWS], check=True)


def test_memory_that_two_have_mapped_is_one(writer: Writer) -> None:
    """Each sees at once what the other writes; what is not that memory is not mapped."""
    place = writer.process.pid, writer.fd
    first, second = (shared_memory.attach(*place, writer.token) for _ in range(2))
    offset = writer.places[0][0]
    first[offset : offset + 3] = b"new"
    assert bytes(second[offset : offset + 4]) == b"new\7"
    with pytest.raises(OSError, match="other memory"):
        shared_memory.attach(*place, bytes(16))


def test_room_that_is_left_is_there() -> None:
    """Whole and empty before anybody writes: a page that cannot be had is an error here."""
    with Memory() as memory:
        offset = memory.leave_room(100_000)
        assert os.fstat(memory.fd).st_blocks * 512 >= 100_000
        assert bytes(memory.map()[offset : offset + 100_000]) == bytes(100_000)
        assert memory.leave_room(1) >= offset + 100_000


def test_what_one_writes_to_the_room_of_another_is_there(writer: Writer) -> None:
    """Where its owner said, and no byte beside it; what does not fit is not written at all."""
    place = writer.process.pid, writer.fd, writer.token
    (offset, length), (after, _) = writer.places
    shared_memory.write(*place, (offset + 10, length - 20), memoryview(bytes(length - 20)))
    data, rest = writer.read()
    assert bytes(data) == bytes([7]) * 10 + bytes(length - 20) + bytes([7]) * 10
    size = len(shared_memory.attach(*place))
    for where, there in (((after, 10), 9), ((size - 9, 10), 10), ((0, 10), 10), ((15, 10), 10)):
        with pytest.raises(OSError, match="no room"):
            shared_memory.write(*place, where, bytes(there))
    assert writer.read() == [data, rest]


@pytest.mark.parametrize("known", [0, 1, 15])
def test_a_part_of_the_token_opens_nothing(writer: Writer, known: int) -> None:
    """It could be guessed: only who was told by its owner has all of it."""
    place = writer.process.pid, writer.fd, writer.token[:known]
    with pytest.raises(OSError, match="other memory"):
        shared_memory.read(*place, writer.places)
    with pytest.raises(OSError, match="other memory"):
        shared_memory.attach(*place)
    with pytest.raises(OSError, match="other memory"):
        shared_memory.write(*place, writer.places[1], bytes(10))
