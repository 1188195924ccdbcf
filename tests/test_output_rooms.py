"""Room for one tensor that another process writes: used again, bounded, nobody's once closed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from ditmesh import output_rooms, shared_memory
from ditmesh.output_rooms import LARGEST_BYTES, OutputRooms, write_output
from ditmesh.shared_memory import Memory, host_id
from ditmesh.v1 import tensor_pb2

NBYTES = 1 << 16
DATA = np.random.default_rng(0).integers(0, 256, NBYTES, np.uint8).tobytes()
OTHER = DATA[::-1]


def test_what_is_written_is_read_as_the_readers_own() -> None:
    """A copy that can be written to: neither the next result nor a late one changes it."""
    rooms = OutputRooms()
    room = rooms.take(NBYTES)
    assert room is not None
    room.expect()
    assert write_output(room.message, DATA)
    first = room.read()
    assert write_output(room.message, memoryview(OTHER))
    second = room.read()
    assert bytes(first) == DATA
    assert bytes(second) == OTHER
    assert not first.readonly
    first[:4] = bytes(4)
    assert bytes(second) == OTHER


def test_only_a_room_that_was_given_back_is_used_again() -> None:
    """One that is still somebody's is not; neither is one of another size."""
    rooms = OutputRooms()
    first, second = rooms.take(NBYTES), rooms.take(NBYTES)
    assert first is not None
    assert second is not None
    assert first is not second
    rooms.give_back(first)
    assert rooms.take(2 * NBYTES) not in (first, second, None)
    assert rooms.take(NBYTES) is first
    assert rooms.take(NBYTES) not in (first, second, None)


def test_few_rooms_are_kept() -> None:
    """The oldest of those that nobody uses goes, its memory too."""
    rooms = OutputRooms()
    taken = [room for room in (rooms.take(NBYTES) for _ in range(7)) if room is not None]
    messages = [room.message for room in taken]
    for room in taken:
        rooms.give_back(room)
    assert [write_output(message, DATA) for message in messages] == [False] * 3 + [True] * 4
    assert [rooms.take(NBYTES) for _ in range(4)] == taken[3:]


def test_who_writes_late_writes_to_nobody() -> None:
    """To a closed room nothing is written, not even where its number is another room's by now."""
    rooms = OutputRooms()
    room = rooms.take(NBYTES)
    assert room is not None
    late = room.message
    with shared_memory._opened(
        late.tensors.pid, late.tensors.fd, late.tensors.token, os.O_RDWR
    ) as begun:
        room.close()
        new = rooms.take(NBYTES)
        assert new is not None
        assert new.message.tensors.fd == late.tensors.fd
        assert not write_output(late, DATA)
        os.pwrite(begun, DATA, late.output)
    assert bytes(new.read()) == bytes(NBYTES)


@pytest.mark.parametrize("nbytes", [0, 100, (16 << 10) - 1, LARGEST_BYTES + 1, 1 << 40])
def test_what_is_tiny_or_huge_has_no_room(nbytes: int) -> None:
    """It is sent."""
    assert OutputRooms().take(nbytes) is None


@pytest.mark.parametrize("nbytes", [16 << 10, (16 << 10) + 1, LARGEST_BYTES])
def test_what_is_written_fills_its_room(nbytes: int) -> None:
    """To the last byte, of any size that has one."""
    room = OutputRooms().take(nbytes)
    assert room is not None
    data = bytes([7]) * nbytes
    assert write_output(room.message, data)
    assert room.read() == data
    room.close()


def test_more_than_a_room_may_have_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names memory for it: writing it would hold up an event loop."""
    monkeypatch.setattr(output_rooms, "LARGEST_BYTES", NBYTES - 1)
    with Memory() as memory:
        offset = memory.leave_room(NBYTES)
        place = tensor_pb2.SharedTensors(pid=os.getpid(), fd=memory.fd, token=memory.token)
        assert not write_output(tensor_pb2.CallMemory(tensors=place, output=offset), DATA)
        assert write_output(tensor_pb2.CallMemory(tensors=place, output=offset), DATA[1:])


def test_where_there_is_no_such_memory_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on a system without memory files."""
    monkeypatch.delattr(os, "memfd_create")
    host_id.cache_clear()
    try:
        assert OutputRooms().take(NBYTES) is None
    finally:
        host_id.cache_clear()


def test_memory_that_is_not_to_be_had_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is sent then, and no file stays open."""

    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    rooms = OutputRooms()
    monkeypatch.setattr(os, "posix_fallocate", full)
    before = os.listdir("/proc/self/fd")
    assert rooms.take(NBYTES) is None
    assert os.listdir("/proc/self/fd") == before


def no_file(memory: tensor_pb2.CallMemory) -> None:
    memory.tensors.fd = 1 << 20


def no_process(memory: tensor_pb2.CallMemory) -> None:
    memory.tensors.pid = 0


def another(memory: tensor_pb2.CallMemory) -> None:
    memory.tensors.token = bytes(16)


def part_of_the_token(memory: tensor_pb2.CallMemory) -> None:
    memory.tensors.token = memory.tensors.token[:1]


def nothing(memory: tensor_pb2.CallMemory) -> None:
    memory.Clear()


def over_the_token(memory: tensor_pb2.CallMemory) -> None:
    memory.output = 8


def beyond_the_end(memory: tensor_pb2.CallMemory) -> None:
    memory.output += 1


def far_beyond_the_end(memory: tensor_pb2.CallMemory) -> None:
    memory.output = (1 << 64) - 1


LIES = [
    no_file,
    no_process,
    another,
    part_of_the_token,
    nothing,
    over_the_token,
    beyond_the_end,
    far_beyond_the_end,
]


@pytest.mark.parametrize("lie", LIES)
def test_what_is_no_room_is_not_written_to(lie: object) -> None:
    """It cannot be done, says the writer, and nothing has changed."""
    room = OutputRooms().take(NBYTES)
    assert room is not None
    wrong = room.message
    lie(wrong)  # type: ignore[operator]
    assert not write_output(wrong, DATA)
    assert bytes(room.read()) == bytes(NBYTES)
    assert write_output(room.message, DATA)


def test_a_file_that_is_no_memory_is_not_written_to(tmp_path: Path) -> None:
    """Whatever number a client names."""
    path = tmp_path / "file"
    path.write_bytes(bytes(16) + bytes(NBYTES))
    with path.open("r+b") as file:
        place = tensor_pb2.SharedTensors(pid=os.getpid(), fd=file.fileno(), token=bytes(16))
        assert not write_output(tensor_pb2.CallMemory(tensors=place, output=16), DATA)
    assert path.read_bytes() == bytes(16 + NBYTES)


def test_sealed_memory_is_not_written_to() -> None:
    """What its owner promised to leave as it is stays so."""
    with Memory() as memory:
        offset = memory.leave_room(NBYTES)
        place = tensor_pb2.SharedTensors(pid=os.getpid(), fd=memory.fd, token=memory.token)
        memory.seal()
        assert not write_output(tensor_pb2.CallMemory(tensors=place, output=offset), DATA)
