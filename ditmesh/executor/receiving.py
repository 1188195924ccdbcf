"""How an executor gets a request's tensors: out of shared memory where it can, else in pieces."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from ditmesh.content import ContentStore
from ditmesh.errors import ProtocolError
from ditmesh.exchange import Receiver, read_specs
from ditmesh.shared_tensors import take
from ditmesh.tensors import WireTensor
from ditmesh.v1 import tensor_pb2


class _Request(Protocol):
    """What the requests of `Run` and `PredictStep` have in common."""

    chunk: tensor_pb2.TensorChunk
    shared: tensor_pb2.SharedTensors

    def WhichOneof(self, oneof: str) -> str | None:
        """The kind of message."""
        ...


R = TypeVar("R", bound=_Request)
A = TypeVar("A")


def receive(
    declared: Sequence[tensor_pb2.TensorSpec],
    requests: Iterator[R],
    *,
    field: str,
    store: ContentStore,
    max_bytes: int,
    unasked: int = 0,
    mapped: Mapping[int, memoryview] | None = None,
    offered: tensor_pb2.SharedTensors | None = None,
) -> Generator[tensor_pb2.TensorsNeeded, None, tuple[WireTensor, ...]]:
    """Yields what to ask for, once or, when shared memory cannot be read, again; returns all.

    The first `unasked` tensors come by themselves, those that are `mapped` are here, and those
    `offered` are in shared memory: with any of these, nothing is asked for unless something else
    lacks. Raises InvalidRequest, InvalidTensor, LimitExceeded or ProtocolError.
    """
    specs = read_specs(declared, field=field, max_bytes=max_bytes)
    receiver = Receiver(specs, field=field, store=store, unasked=unasked)
    if mapped is not None:
        # Never one that has a hash: it would be kept, and the memory is not its own.
        own = [i for i in receiver.missing if i in mapped and not specs[i].sha256]
        receiver.place({i: mapped[i][: specs[i].nbytes] for i in own})
    if offered is not None:
        take(receiver, offered)
    asked = receiver.missing[unasked:]
    if asked or not (unasked or mapped is not None or offered is not None):
        yield tensor_pb2.TensorsNeeded(tensors=asked)
    while not receiver.complete:
        request = next(requests, None)
        if request is None:
            break
        kind = request.WhichOneof("message")
        if kind == "chunk":
            receiver.feed(request.chunk)
        elif kind == "shared":
            take(receiver, request.shared)
            if not receiver.complete:
                yield tensor_pb2.TensorsNeeded(tensors=receiver.missing)
        else:
            raise ProtocolError(f"expected a chunk of {field}, got {kind}")
    return receiver.tensors()


def asking(
    receiving: Generator[tensor_pb2.TensorsNeeded, None, tuple[WireTensor, ...]],
    message: Callable[[tensor_pb2.TensorsNeeded], A],
) -> Generator[A, None, tuple[WireTensor, ...]]:
    """`receive`, what it asks for put into a stream's own message."""
    while True:
        try:
            needed = next(receiving)
        except StopIteration as received:
            tensors: tuple[WireTensor, ...] = received.value
            return tensors
        yield message(needed)
