"""Chunks as any user of the contract makes them: protobuf's own messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ditmesh.exchange import CHUNK_BYTES
from ditmesh.tensors import WireTensor
from ditmesh.v1 import tensor_pb2 as pb


def chunks(tensors: Sequence[WireTensor], needed: Iterable[int]) -> Iterator[pb.TensorChunk]:
    """The chunks of the tensors asked for, in the order asked for."""
    for index in needed:
        view = memoryview(tensors[index].data)
        for offset in range(0, len(view), CHUNK_BYTES):
            piece = bytes(view[offset : offset + CHUNK_BYTES])
            yield pb.TensorChunk(tensor=index, offset=offset, data=piece)
