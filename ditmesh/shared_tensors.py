"""Tensors in shared memory: where this process has put them, and taking those of another."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from ditmesh import shared_memory
from ditmesh.exchange import Receiver
from ditmesh.shared_memory import SealedMemory
from ditmesh.tensors import Place, SharedFile, WireTensor
from ditmesh.v1 import tensor_pb2

log = logging.getLogger(__name__)

_LOOKING = ThreadPoolExecutor(1, "look")


def places(memory: SharedFile, offsets: Mapping[int, int]) -> tensor_pb2.SharedTensors:
    """`offsets`: by index, where in the memory each tensor begins."""
    return tensor_pb2.SharedTensors(
        pid=os.getpid(),
        fd=memory.fd,
        token=memory.token,
        tensors=[
            tensor_pb2.SharedTensor(tensor=index, offset=offset)
            for index, offset in offsets.items()
        ],
    )


def places_of(tensors: Mapping[int, WireTensor]) -> tensor_pb2.SharedTensors | None:
    """Where tensors lie already; None: not all in one memory."""
    offsets: dict[int, int] = {}
    memories: set[SharedFile | None] = set()
    for index, tensor in tensors.items():
        if tensor.place is None:
            return None
        offsets[index] = tensor.place.offset
        memories.add(tensor.place.memory())
    memory = memories.pop() if len(memories) == 1 else None
    return None if memory is None else places(memory, offsets)


def take(receiver: Receiver, shared: tensor_pb2.SharedTensors) -> None:
    """Have `receiver` take what can be read; what cannot stays missing."""
    missing = set(receiver.missing)
    wanted = [place for place in shared.tensors if place.tensor in missing]
    if not wanted:
        return
    at = [(place.offset, receiver.specs[place.tensor].nbytes) for place in wanted]
    try:
        found = shared_memory.read(shared.pid, shared.fd, shared.token, at)
    except OSError as error:
        _cannot_be_read(shared, error)
        return
    receiver.place({place.tensor: data for place, data in zip(wanted, found, strict=True)})


def take_sealed(receiver: Receiver, shared: tensor_pb2.SharedTensors) -> None:
    """As `take`, from a process that is not trusted: it must have sealed its memory.

    Others can then be told that the tensors are there. Whether all values are finite is known
    afterwards. Raises InvalidTensor for bytes that do not have the declared hash.
    """
    missing = set(receiver.missing)
    offsets = {at.tensor: at.offset for at in shared.tensors if at.tensor in missing}
    specs = {index: receiver.specs[index] for index in offsets}
    try:
        memory = SealedMemory(shared.pid, shared.fd, shared.token)
        data = memory.read([(offset, specs[i].nbytes) for i, offset in offsets.items()])
    except OSError as error:
        _cannot_be_read(shared, error)
        return
    tensors = {
        index: WireTensor(specs[index], found, Place(_holding(memory, found), offset))
        for (index, offset), found in zip(offsets.items(), data, strict=True)
    }
    # Beside the hashes, which let go of the interpreter as well.
    looking = _LOOKING.submit(lambda: all(t.all_finite() for t in tensors.values()))
    receiver.adopt(tensors)
    looking.result()


def _holding(memory: SealedMemory, data: bytes | memoryview) -> Callable[[], SharedFile | None]:
    """What was mapped keeps all of the memory anyway; what was copied must not."""
    return (lambda: memory) if isinstance(data, memoryview) else weakref.ref(memory)


def _cannot_be_read(shared: tensor_pb2.SharedTensors, error: OSError) -> None:
    log.warning("shared memory of process %d cannot be read: %s", shared.pid, error)
