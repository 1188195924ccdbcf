"""Messages that carry a piece of a tensor, written and read without protobuf's copies.

Protobuf copies a bytes field when a message is built, put into another, serialised, parsed, and
each time it is read. What goes over the wire here is the same, byte for byte; but it is joined once
when it is sent, and looked at in place when it came. Every other message is protobuf's own.

`channel` and `server` have these messages serialised so; who receives one finds it to answer as its
protobuf message would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import grpc

from ditmesh.exchange import CHUNK_BYTES
from ditmesh.tensors import WireTensor
from ditmesh.v1 import tensor_pb2

M = TypeVar("M")
R = TypeVar("R")

_FIELD = "chunk"
_VARINT, _LENGTH = 0, 2
_CHUNK_FIELDS = tensor_pb2.TensorChunk.DESCRIPTOR.fields_by_name
_TENSOR = _CHUNK_FIELDS["tensor"].number << 3 | _VARINT
_OFFSET = _CHUNK_FIELDS["offset"].number << 3 | _VARINT
_DATA = _CHUNK_FIELDS["data"].number << 3 | _LENGTH


class Chunk:
    """A `TensorChunk` whose data may be a part of other memory."""

    __slots__ = ("data", "offset", "tensor")

    def __init__(self, tensor: int, offset: int, data: bytes | memoryview) -> None:
        self.tensor = tensor
        self.offset = offset
        self.data = data


class ChunkMessage:
    """A message of any stream whose `chunk` is set."""

    __slots__ = ("_number", "chunk")

    def __init__(self, number: int, chunk: Chunk) -> None:
        """`number`: of the field `chunk` in that stream's messages."""
        self._number = number
        self.chunk = chunk

    def WhichOneof(self, oneof: str) -> str:
        """As protobuf's."""
        return _FIELD

    def HasField(self, name: str) -> bool:
        """As protobuf's."""
        return name == _FIELD

    def SerializeToString(self) -> bytes:
        """The same bytes that protobuf makes, with a single copy of the data."""
        chunk = self.chunk
        inner = bytearray()
        if chunk.tensor:
            inner.append(_TENSOR)
            _put_varint(inner, chunk.tensor)
        if chunk.offset:
            inner.append(_OFFSET)
            _put_varint(inner, chunk.offset)
        inner.append(_DATA)
        _put_varint(inner, len(chunk.data))
        head = bytearray([self._number << 3 | _LENGTH])
        _put_varint(head, len(inner) + len(chunk.data))
        return b"".join((head, inner, chunk.data))


def chunk_messages(
    kind: type[M], tensors: Sequence[WireTensor], needed: Iterable[int]
) -> Iterator[M]:
    """The chunks of the tensors asked for, in the order asked for, as messages of a stream."""
    number = kind.DESCRIPTOR.fields_by_name[_FIELD].number  # type: ignore[attr-defined]
    for index in needed:
        view = memoryview(tensors[index].data)
        for offset in range(0, len(view), CHUNK_BYTES):
            chunk = Chunk(index, offset, view[offset : offset + CHUNK_BYTES])
            yield cast(M, ChunkMessage(number, chunk))


def parse(number: int, data: bytes) -> ChunkMessage | None:
    """The message, if it is a chunk as everybody writes it; None: it is for protobuf to parse."""
    if len(data) < 2 or data[0] != number << 3 | _LENGTH:
        return None
    length, at = _varint(data, 1)
    if at + length != len(data):
        return None
    tensor = offset = 0
    if at < len(data) and data[at] == _TENSOR:
        tensor, at = _varint(data, at + 1)
    if at < len(data) and data[at] == _OFFSET:
        offset, at = _varint(data, at + 1)
    if at >= len(data) or data[at] != _DATA:
        return None
    length, at = _varint(data, at + 1)
    if at + length != len(data) or tensor >= 1 << 32 or offset >= 1 << 64:
        return None
    return ChunkMessage(number, Chunk(tensor, offset, memoryview(data)[at:]))


def channel(real: R) -> R:
    """What to make a stub with, so that on `real`, a channel, it handles chunks as above."""
    return cast(R, _Channel(real))


def server(real: R) -> R:
    """What to add a servicer to, so that `real`, a server, handles chunks as above."""
    return cast(R, _Server(real))


def _serializer(original: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def serialize(message: Any) -> bytes:
        if type(message) is ChunkMessage:
            return message.SerializeToString()
        return original(message)

    return serialize


def _deserializer(original: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    field = original.__self__.DESCRIPTOR.fields_by_name.get(_FIELD)  # type: ignore[attr-defined]
    if field is None:
        return original
    number = field.number

    def deserialize(data: bytes) -> Any:
        return parse(number, data) or original(data)

    return deserialize


class _Channel:
    """A channel of which a generated stub makes its calls."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def __getattr__(self, arity: str) -> Callable[..., Any]:
        make = getattr(self._channel, arity)

        def call(
            path: str,
            request_serializer: Callable[[Any], bytes],
            response_deserializer: Callable[[bytes], Any],
            **options: Any,
        ) -> Any:
            return make(
                path,
                request_serializer=_serializer(request_serializer),
                response_deserializer=_deserializer(response_deserializer),
                **options,
            )

        return call


class _Server:
    """A server to which generated code adds a servicer's handlers."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """The same handlers come again, as registered ones."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add them with other serializers."""
        ours = {name: _handler(handler) for name, handler in handlers.items()}
        generic = grpc.method_handlers_generic_handler(service, ours)
        self._real.add_generic_rpc_handlers((generic,))
        self._real.add_registered_method_handlers(service, ours)


def _handler(handler: Any) -> Any:
    arity = (
        f"{'stream' if handler.request_streaming else 'unary'}_"
        f"{'stream' if handler.response_streaming else 'unary'}"
    )
    make = getattr(grpc, f"{arity}_rpc_method_handler")
    return make(
        getattr(handler, arity),
        request_deserializer=_deserializer(handler.request_deserializer),
        response_serializer=_serializer(handler.response_serializer),
    )


def _put_varint(into: bytearray, value: int) -> None:
    while value > 0x7F:
        into.append(value & 0x7F | 0x80)
        value >>= 7
    into.append(value)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends; what is no number ends beyond the data."""
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    return 0, len(data) + 1
