"""Tensors in shared memory: where this process has put them, and taking those of another."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from ditmesh import shared_memory
from ditmesh.exchange import Receiver
from ditmesh.shared_memory import Memory
from ditmesh.v1 import tensor_pb2

log = logging.getLogger(__name__)


def places(memory: Memory, offsets: Mapping[int, int]) -> tensor_pb2.SharedTensors:
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


def take(receiver: Receiver, shared: tensor_pb2.SharedTensors, *, trusted: bool = True) -> None:
    """Have `receiver` take what can be read; what cannot stays missing.

    A process that is not `trusted` must have sealed its memory, and is not believed the hashes.
    Raises InvalidTensor.
    """
    missing = set(receiver.missing)
    wanted = [place for place in shared.tensors if place.tensor in missing]
    if not wanted:
        return
    places = [(place.offset, receiver.specs[place.tensor].nbytes) for place in wanted]
    try:
        found = shared_memory.read(shared.pid, shared.fd, shared.token, places, sealed=not trusted)
    except OSError as error:
        log.warning("shared memory of process %d cannot be read: %s", shared.pid, error)
        return
    by_index = {place.tensor: data for place, data in zip(wanted, found, strict=True)}
    receiver.place(by_index, trusted=trusted)
