"""Memory that goes round: used again when nobody reads it, and never more of it than is allowed."""

from __future__ import annotations

import os

import numpy as np

from ditmesh import shared_memory
from ditmesh.given import Given
from ditmesh.memory_pool import MemoryPool
from ditmesh.shared_memory import Memory
from ditmesh.tensors import WireTensor

MIB = 1 << 20


def written(pool: MemoryPool, nbytes: int) -> tuple[Memory, memoryview]:
    """Memory with a tensor in it, and a reader's view of that."""
    memory = pool.take(nbytes)
    place = memory.add(WireTensor.from_numpy(np.zeros(nbytes, np.uint8))), nbytes
    memory.publish()
    (view,) = shared_memory.read(os.getpid(), memory.fd, memory.token, [place])
    assert isinstance(view, memoryview)
    return memory, view


def test_what_is_read_is_not_used_again() -> None:
    """Only once its last reader is gone; and then for about as much, not for a little."""
    pool = MemoryPool()
    first, view = written(pool, 4 * MIB)
    pool.give_back(first)
    second, other = written(pool, 4 * MIB)
    assert second is not first
    pool.give_back(second)
    del view, other
    assert pool.take(MIB) not in (first, second)
    assert pool.take(4 * MIB) is first
    assert pool.take(4 * MIB) is second


def test_only_so_much_is_kept_that_nobody_reads() -> None:
    """The oldest goes first; what is read is not counted, because it is there anyway."""
    pool = MemoryPool(most_idle_bytes=5 * MIB)
    read, view = written(pool, 2 * MIB)
    idle = [written(pool, 2 * MIB)[0] for _ in range(3)]
    for memory in (read, *idle):
        pool.give_back(memory)
    assert [memory.fd < 0 for memory in (read, *idle)] == [False, True, False, False]
    assert len(view) == 2 * MIB


def test_what_readers_let_go_of_later_is_not_kept_either() -> None:
    """One that could never be kept goes at once, others when somebody looks."""
    pool = MemoryPool(most_idle_bytes=3 * MIB)
    large, large_view = written(pool, 4 * MIB)
    pool.give_back(large)
    assert large.fd < 0
    assert large_view[0] == 0
    made = [written(pool, 2 * MIB) for _ in range(2)]
    memories = [memory for memory, _ in made]
    for memory in memories:
        pool.give_back(memory)
    assert all(memory.fd >= 0 for memory in memories)
    made.clear()
    pool.trim()
    assert [memory.fd < 0 for memory in memories] == [True, False]


def test_only_so_many_files_are_kept_open() -> None:
    """Readers keep what they have."""
    pool = MemoryPool(most=2)
    made = [written(pool, MIB) for _ in range(3)]
    for memory, _ in made:
        pool.give_back(memory)
    assert [memory.fd < 0 for memory, _ in made] == [True, False, False]
    assert made[0][1][0] == 0


def test_what_a_process_was_given_is_forgotten_from_the_oldest_on() -> None:
    """A hash that comes again is new."""
    given = Given()
    names = [number.to_bytes(32, "big") for number in range(1025)]
    given.add(names[:1024])
    given.add(names[:1])
    given.add(names[1024:])
    assert names[0] in given
    assert names[1] not in given
    assert names[1024] in given
    given.clear()
    assert names[0] not in given
