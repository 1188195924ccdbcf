"""What an asyncio call is told by a server that ends it early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import pytest

from ditmesh.aio_status import CallStatus
from ditmesh.errors import DitmeshError, InternalError, InvalidTensor
from ditmesh.rpc_status import abort_sync, from_rpc_error

METHOD = "/test/Upload"
REFUSAL = InvalidTensor("the third piece is wrong", field="tensors[2]")
_MIB = 1 << 20


class Server(grpc.GenericRpcHandler):
    """Reads three pieces, then refuses the rest with `error`, or as a crash does."""

    def __init__(self, error: DitmeshError | None) -> None:
        self._error = error

    def service(self, handler_call_details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._upload)

    def _upload(self, pieces: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in range(3):
            next(pieces)
        if self._error is None:
            context.abort(grpc.StatusCode.INTERNAL, "out of order")
        abort_sync(context, self._error)
        yield b""


@pytest.mark.parametrize("error", [REFUSAL, None])
def test_a_refusal_in_the_middle_of_an_upload_is_told_as_the_server_says_it(
    error: DitmeshError | None,
) -> None:
    """Not as the failed write that grpc.aio reports most of the time; twenty attempts."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((Server(error),))
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        told = asyncio.run(_refusals(address, 20))
        server.stop(None).wait()
    if error is not None:
        assert [(type(e), str(e), e.field) for e in told] == [
            (InvalidTensor, str(REFUSAL), REFUSAL.field)
        ] * 20
    else:
        assert [type(e) for e in told] == [InternalError] * 20
        assert all("out of order" in str(e) for e in told)


async def _refusals(address: str, count: int) -> list[DitmeshError]:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield bytes(_MIB)

    told = []
    for _ in range(count):
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.stream_stream(METHOD)(pieces())
            status = CallStatus(call)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                async for _ in call:
                    pass
            told.append(from_rpc_error(await status.of(failed.value)))
    return told
