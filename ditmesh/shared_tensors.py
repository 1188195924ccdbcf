"""Where tensors lie in this process's shared memory, as a message for those who read them there."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ditmesh.shared_memory import Memory
from ditmesh.v1 import tensor_pb2


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
