"""The memory of a client on this machine, which is not trusted: it may say anything of where things
lie, and write there at any time.
"""

from __future__ import annotations

import asyncio

import numpy as np

from ditmesh.attached_memory import AttachedMemory, CallViews
from ditmesh.call_memory import copy_in_pieces
from ditmesh.errors import InvalidTensor
from ditmesh.exchange import Receiver
from ditmesh.shared_memory import host_id
from ditmesh.tensors import WireTensor
from ditmesh.v1 import sampler_pb2 as pb


class ClientMemory:
    """Of one `Predict` stream."""

    def __init__(self, host: str) -> None:
        """`host`: where the client says that it is."""
        self.is_shared = bool(host) and host == host_id()
        """Whether calls may bring memory along."""
        self._attached = AttachedMemory()

    def of(self, request: pb.PredictRequest) -> CallViews | None:
        """What a call has brought along; None: nothing, or nothing that can be seen from here."""
        if not self.is_shared or not request.HasField("memory"):
            return None
        return self._attached.of(request.memory)

    def close(self) -> None:
        """Let go of it."""
        self._attached.close()


async def take(views: CallViews, receiver: Receiver, *, unasked: int, field: str) -> None:
    """Have `receiver` take copies of those tensors that lie in memory, but for the first `unasked`.

    Never one that has a hash, which would be kept. Raises InvalidTensor for one that is not wholly
    in the memory.
    """
    found: dict[int, bytes | memoryview] = {}
    for index in receiver.missing[unasked:]:
        spec, view = receiver.specs[index], views.tensors.get(index)
        if view is None or spec.sha256:
            continue
        if len(view) < spec.nbytes:
            raise InvalidTensor(
                f"{field}[{index}] has {spec.nbytes} bytes, but the memory ends {len(view)} bytes "
                "after its offset",
                field=f"{field}[{index}]",
            )
        # What is checked must be what is used.
        copy = np.empty(spec.nbytes, np.uint8).data
        for _ in copy_in_pieces(view[: spec.nbytes], copy):
            await asyncio.sleep(0)
        found[index] = copy.toreadonly()
    receiver.place(found)


async def give(views: CallViews, output: WireTensor) -> bool:
    """Write the output to memory; False: there is not as much room as it needs."""
    if output.spec.nbytes > len(views.output):
        return False
    for _ in copy_in_pieces(output.data, views.output):
        await asyncio.sleep(0)
    return True
