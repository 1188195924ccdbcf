"""How a job's result gets to a client: in pieces, or where they share memory, there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from coordinator.executors.member import RunEnd
from coordinator.jobs.record import JobRecord
from ditmesh.chunk_messages import chunk_messages
from ditmesh.content import ContentStore
from ditmesh.errors import InternalError
from ditmesh.output_rooms import write_output
from ditmesh.tensors import WireTensor
from ditmesh.v1 import sampler_pb2 as pb
from ditmesh.v1 import tensor_pb2

# Not the loop's own threads: what clients send is looked through there, and an executor waits here.
_HASHING = ThreadPoolExecutor(1, "hash")
# The client reads its result meanwhile, on what may be the only other core.
_READ_S = 0.005


class Results:
    """Results on their way. Each latent gets its hash and is kept: decoding it needs no upload."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store
        self._later: set[asyncio.Task[None]] = set()

    async def messages(
        self, record: JobRecord, memory: tensor_pb2.CallMemory | None
    ) -> AsyncIterator[pb.SampleResponse]:
        """All that the client of a job that has ended is sent.

        `memory`: where it has room for the latent. There the latent comes without its hash, for
        which nobody has to wait then.
        """
        result, tensors = _of(record.end)
        written = memory is not None and write_output(memory, tensors[result.latent].data)
        if written:
            self._hash_later(record)
        else:
            tensors = await self._hashed(record)
        message = pb.SampleResponse(result=result, written=written)
        for spec, tensor in zip(message.result.tensors, tensors, strict=True):
            spec.sha256 = b"" if written else tensor.spec.sha256
        rest = [i for i in range(len(tensors)) if not (written and i == result.latent)]
        if not rest:
            message.ended.CopyFrom(record.summary())
            yield message
            return
        yield message
        for piece in chunk_messages(pb.SampleResponse, tensors, rest):
            yield piece
        yield pb.SampleResponse(summary=record.summary())

    def _hash_later(self, record: JobRecord) -> None:
        async def hash_it() -> None:
            await asyncio.sleep(_READ_S)
            await self._hashed(record)

        task = asyncio.create_task(hash_it())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _hashed(self, record: JobRecord) -> tuple[WireTensor, ...]:
        """The result's tensors, the latent with its hash and in the store."""
        result, tensors = _of(record.end)
        latent = tensors[result.latent]
        if not latent.spec.sha256:
            loop = asyncio.get_running_loop()
            # On a thread: the event loop has other jobs to serve meanwhile.
            latent = await loop.run_in_executor(_HASHING, latent.hashed)
            tensors = (*tensors[: result.latent], latent, *tensors[result.latent + 1 :])
            if record.end is not None:
                record.end = replace(record.end, tensors=tensors)
        self._store.put(record.scope, latent)
        return tensors


def _of(end: RunEnd | None) -> tuple[pb.SampleResult, tuple[WireTensor, ...]]:
    if end is None or end.result is None:
        raise InternalError("the job ended without a result")
    return end.result, end.tensors
