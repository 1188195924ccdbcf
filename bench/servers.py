"""Small servers to compare with, each a process of its own: `python -m bench.servers KIND ...`.

    sink           raw TCP: takes messages, answers each with one byte, or with the message itself
    relay ADDR...  raw TCP: passes each message on to all addresses; the first's answer goes back
    grpc-sink      gRPC: `Push` takes a stream of chunks, `Echo` answers with the message
    grpc-relay ADDR...       the same `Echo` passed on to all addresses, threads
    grpc-aio-relay ADDR...   the same on an event loop, as ditmesh's coordinator is

A server prints its address once it listens. Nothing but the bytes is handled: no checks, no hash.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from bench.parent import end_with_parent
from ditmesh.v1 import tensor_pb2

PUSH = "/bench.Bench/Push"
ECHO = "/bench.Bench/Echo"
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)
_HEADER_BYTES = 9


class Servers:
    """Server processes of one kind; their addresses are known when the block is entered."""

    def __init__(self, kind: str, count: int = 1, targets: Sequence[str] = ()) -> None:
        self._command = [sys.executable, "-m", "bench.servers", kind, *targets]
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        self.addresses: list[str] = []

    def __enter__(self) -> Servers:
        for _ in range(self._count):
            process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
            self._processes.append(process)
        for process in self._processes:
            assert process.stdout is not None
            address = process.stdout.readline().decode().strip()
            if not address:
                raise RuntimeError(f"{self._command} does not start")
            self.addresses.append(address)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


class RawConnection:
    """A client of the raw servers. A message is its length, whether to echo it, and its bytes."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes | bytearray | memoryview, *, echo: bool = False) -> None:
        """Send a message."""
        self._socket.sendall(_header(len(data), echo))
        self._socket.sendall(data)

    def answer(self, nbytes: int = 1) -> bytearray:
        """Wait for the answer."""
        return _receive(self._socket, nbytes)

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def push_chunks(data: bytes, chunk_bytes: int) -> Iterator[tensor_pb2.TensorChunk]:
    """The messages of `Push`."""
    view = memoryview(data)
    for offset in range(0, len(view), chunk_bytes):
        piece = bytes(view[offset : offset + chunk_bytes])
        yield tensor_pb2.TensorChunk(offset=offset, data=piece)


def _header(nbytes: int, echo: bool) -> bytes:
    return nbytes.to_bytes(_HEADER_BYTES - 1, "little") + bytes([echo])


def _receive(connection: socket.socket, nbytes: int) -> bytearray:
    data = bytearray(nbytes)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return data


def _serve_raw(targets: Sequence[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _announce(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_talk, args=(connection, targets), daemon=True).start()


def _talk(connection: socket.socket, targets: Sequence[str]) -> None:
    onward = [RawConnection(target) for target in targets]
    pool = ThreadPoolExecutor(max(len(onward), 1))
    while True:
        try:
            header = _receive(connection, _HEADER_BYTES)
        except EOFError:
            return
        nbytes, echo = int.from_bytes(header[:-1], "little"), bool(header[-1])
        data = _receive(connection, nbytes)
        if onward:
            sends = [pool.submit(target.send, data, echo=echo) for target in onward]
            for sent in sends:
                sent.result()
            answers = [target.answer(nbytes if echo else 1) for target in onward]
            data = answers[0]
        connection.sendall(data if echo else b"\1")


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, targets: Sequence[str]) -> None:
        self._echoes: list[Any] = [
            grpc.insecure_channel(target, OPTIONS).unary_unary(ECHO) for target in targets
        ]

    def service(self, details: Any) -> Any:
        if details.method == PUSH:
            return grpc.stream_unary_rpc_method_handler(
                _take, request_deserializer=tensor_pb2.TensorChunk.FromString
            )
        return grpc.unary_unary_rpc_method_handler(self._echo)

    def _echo(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        calls = [echo.future(data) for echo in self._echoes]
        answers = [call.result() for call in calls]
        return answers[0] if answers else data


def _take(chunks: Iterator[tensor_pb2.TensorChunk], context: grpc.ServicerContext) -> bytes:
    data = bytearray()
    for chunk in chunks:
        data += chunk.data
    return b"\1"


def _serve_grpc(targets: Sequence[str]) -> None:
    server = grpc.server(ThreadPoolExecutor(8), options=OPTIONS)
    server.add_generic_rpc_handlers((_Handler(targets),))
    _announce(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


async def _serve_aio(targets: Sequence[str]) -> None:
    channels = [grpc.aio.insecure_channel(target, OPTIONS) for target in targets]
    echoes: list[Any] = [channel.unary_unary(ECHO) for channel in channels]

    async def echo(data: bytes, context: Any) -> Any:
        answers = await asyncio.gather(*(call(data) for call in echoes))
        return answers[0]

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(echo)

    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((Handler(),))
    _announce(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()


def _announce(port: int) -> None:
    print(f"127.0.0.1:{port}", flush=True)


if __name__ == "__main__":
    end_with_parent()
    kind, *addresses = sys.argv[1:]
    if kind in ("sink", "relay"):
        _serve_raw(addresses)
    elif kind == "grpc-aio-relay":
        asyncio.run(_serve_aio(addresses))
    else:
        _serve_grpc(addresses)
