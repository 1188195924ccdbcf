"""Memory of single calls, of who makes them and of who answers them."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from ditmesh.attached_memory import AttachedMemory
from ditmesh.call_memory import CallMemory
from ditmesh.shared_memory import Memory
from ditmesh.tensors import WireTensor
from ditmesh.v1 import tensor_pb2

MIB = 1 << 20


def tensor(nbytes: int, value: int = 1) -> WireTensor:
    return WireTensor.from_numpy(np.full(nbytes, value, np.uint8))


def filled(memory: CallMemory, *tensors: WireTensor, x: int = 0) -> tensor_pb2.CallMemory:
    """A whole call's message."""
    for _ in memory.fill(tensors, x):
        pass
    assert memory.message is not None
    return memory.message


def test_both_sides_see_the_same() -> None:
    """Each tensor without a hash, and room for an output as large as x, none over another."""
    memory, attached = CallMemory(), AttachedMemory()
    tensors = (tensor(10, 1), tensor(3 * MIB, 2).hashed(), tensor(MIB + 1, 3))
    views = attached.of(filled(memory, *tensors, x=2))
    assert views is not None
    assert sorted(views.tensors) == [0, 2]
    for index, view in views.tensors.items():
        data = tensors[index].data
        assert view[: len(data)] == data
    views.output[: MIB + 1] = tensor(MIB + 1, 4).data
    assert memory.output == tensor(MIB + 1, 4).data
    assert views.tensors[2][: MIB + 1] == tensors[2].data
    memory.close()


def test_the_next_call_has_the_same_memory() -> None:
    """On both sides, as long as calls have the same sizes."""
    memory, attached = CallMemory(), AttachedMemory()
    first = filled(memory, tensor(10, 1))
    mapped = attached.of(first)
    memory.rest()
    second = filled(memory, tensor(10, 2))
    again = attached.of(second)
    assert second == first
    assert mapped is not None
    assert again is not None
    assert again.output.obj is mapped.output.obj
    assert bytes(again.tensors[0][:10]) == b"\2" * 10
    third = filled(memory, tensor(20, 3))
    other = attached.of(third)
    assert third.tensors.token != first.tensors.token
    assert other is not None
    assert bytes(other.tensors[0][:20]) == b"\3" * 20
    memory.close()
    assert attached.of(third) is not None, "what is mapped stays so"
    assert attached.of(first) is None


@pytest.mark.parametrize(("nbytes", "kept"), [(3 * MIB, True), (5 * MIB, False)])
def test_large_memory_is_given_up_after_its_call(nbytes: int, kept: bool) -> None:
    """And a picture of a usual size is not large."""
    memory = CallMemory()
    message = filled(memory, tensor(nbytes))
    assert memory.is_large is not kept
    memory.rest()
    assert (AttachedMemory().of(message) is not None) == kept
    memory.close()


def test_a_call_that_is_given_up_while_it_is_written_has_no_memory() -> None:
    """Such as by another task, in one of its turns."""
    memory = CallMemory()
    for _ in range(2):
        steps = memory.fill((tensor(3 * MIB),), 0)
        next(steps)
        memory.close()
        for _ in steps:
            pass
        assert memory.message is None


def test_memory_that_cannot_be_had_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The call is sent then."""

    def full(*args: object) -> int:
        raise OSError("no room")

    monkeypatch.setattr(Memory, "leave_room", full)
    memory = CallMemory()
    with caplog.at_level(logging.WARNING):
        assert not list(memory.fill((tensor(10),), 0))
    assert memory.message is None
    assert "no room" in caplog.text
