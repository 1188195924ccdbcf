"""Chunks by hand are protobuf's chunks: the same bytes, the same meaning, whatever comes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from ditmesh import chunk_messages as cm
from ditmesh.exchange import CHUNK_BYTES
from ditmesh.tensors import DataType, TensorSpec, WireTensor
from ditmesh.v1 import node_pb2, node_pb2_grpc, pipeline_pb2, sampler_pb2, tensor_pb2
from tests.chunks import chunks

KINDS: list[Any] = [
    message
    for file in (node_pb2, pipeline_pb2, sampler_pb2)
    for name, message in vars(file).items()
    if hasattr(message, "DESCRIPTOR")
    and "chunk" in getattr(message.DESCRIPTOR, "fields_by_name", {})
]


def number(kind: Any) -> int:
    return int(kind.DESCRIPTOR.fields_by_name["chunk"].number)


def test_every_stream_of_tensors_is_covered() -> None:
    """Twelve kinds of message carry chunks, and their tags are of one byte."""
    assert len(KINDS) == 12
    assert all(number(kind) < 16 for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(
    tensor=st.integers(0, 2**32 - 1), offset=st.integers(0, 2**64 - 1), data=st.binary(max_size=300)
)
def test_bytes_are_protobufs(kind: Any, tensor: int, offset: int, data: bytes) -> None:
    """Written by either, read by either. An empty chunk, which nobody sends, is protobuf's."""
    theirs = kind(chunk=tensor_pb2.TensorChunk(tensor=tensor, offset=offset, data=data))
    wire = theirs.SerializeToString()
    ours = cm.ChunkMessage(number(kind), cm.Chunk(tensor, offset, memoryview(data)))
    if data:
        assert ours.SerializeToString() == wire
    assert kind.FromString(ours.SerializeToString()) == theirs or not data
    parsed = cm.parse(number(kind), wire)
    if data:
        assert parsed is not None
        assert (parsed.chunk.tensor, parsed.chunk.offset) == (tensor, offset)
        assert bytes(parsed.chunk.data) == data
        assert parsed.WhichOneof("message") == theirs.WhichOneof("message")
        assert parsed.HasField("chunk")
        assert not parsed.HasField("result")


@given(data=st.binary(max_size=40), prefix=st.booleans())
def test_whatever_comes_means_what_it_means_to_protobuf(data: bytes, prefix: bool) -> None:
    """Read here only if protobuf reads the same; all else is left to protobuf."""
    wire = b"\x12" + bytes([len(data)]) + data if prefix else data
    parsed = cm.parse(2, wire)
    if parsed is None:
        return
    try:
        theirs = node_pb2.RunRequest.FromString(wire)
    except DecodeError:
        pytest.fail("protobuf does not read it")
    chunk = theirs.chunk
    assert (chunk.tensor, chunk.offset, chunk.data) == (
        parsed.chunk.tensor,
        parsed.chunk.offset,
        bytes(parsed.chunk.data),
    )


def test_tensors_come_in_the_same_pieces() -> None:
    """As `exchange.chunks` cuts them."""
    data = bytes(range(256)) * (CHUNK_BYTES // 256 * 2 + 1)
    tensor = WireTensor(TensorSpec(DataType.U8, (len(data),)), data)
    ours = [m.SerializeToString() for m in cm.chunk_messages(node_pb2.RunRequest, [tensor], [0])]
    theirs = [
        node_pb2.RunRequest(chunk=chunk).SerializeToString() for chunk in chunks([tensor], [0])
    ]
    assert ours == theirs
    assert len(ours) == 3


class Echo(node_pb2_grpc.NodeServiceServicer):
    """Answers a chunk with the same chunk, as it is told to write it, and else says ready."""

    def __init__(self, by_hand: bool) -> None:
        self.by_hand = by_hand
        self.kinds: list[type] = []

    def Run(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        """One answer a request."""
        for request in requests:
            self.kinds.append(type(request))
            if not request.HasField("chunk"):
                yield node_pb2.RunResponse(ready=node_pb2.RunReady())
            elif self.by_hand:
                chunk = cm.Chunk(request.chunk.tensor, request.chunk.offset, request.chunk.data)
                yield cm.ChunkMessage(number(node_pb2.RunResponse), chunk)
            else:
                yield node_pb2.RunResponse(chunk=request.chunk)


@pytest.mark.parametrize("client_by_hand", [True, False])
@pytest.mark.parametrize("server_by_hand", [True, False])
def test_streams_work_whoever_knows_of_it(client_by_hand: bool, server_by_hand: bool) -> None:
    """Old and new ends of a stream understand one another."""
    echo = Echo(server_by_hand)
    made = grpc.server(ThreadPoolExecutor(2))
    target = cm.server(made) if server_by_hand else made
    node_pb2_grpc.add_NodeServiceServicer_to_server(echo, target)
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    plain: Any = node_pb2.RunRequest(chunk=tensor_pb2.TensorChunk(tensor=3, offset=5, data=b"data"))
    ours: Any = cm.ChunkMessage(number(node_pb2.RunRequest), cm.Chunk(3, 5, b"data"))
    start = node_pb2.RunRequest(start=node_pb2.StartRun())
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            make = node_pb2_grpc.NodeServiceStub
            stub = make(cm.channel(channel) if client_by_hand else channel)
            first, second = stub.Run(iter([ours if client_by_hand else plain, start]))
    finally:
        made.stop(None).wait()
    assert (first.chunk.tensor, first.chunk.offset) == (3, 5)
    assert bytes(first.chunk.data) == b"data"
    assert isinstance(first, cm.ChunkMessage if client_by_hand else node_pb2.RunResponse)
    assert second.HasField("ready")
    chunk_kind = cm.ChunkMessage if server_by_hand else node_pb2.RunRequest
    assert echo.kinds == [chunk_kind, node_pb2.RunRequest]
