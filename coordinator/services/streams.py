"""What every servicer needs: reading from slow clients, and errors told the one right way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import DecodeError

from ditmesh import rpc_status, telemetry
from ditmesh.errors import DeadlineExceeded, DitmeshError, ProtocolError

log = logging.getLogger(__name__)

T = TypeVar("T")


async def read(requests: AsyncIterator[T], timeout_s: float) -> T | None:
    """The next message, or None at the end of the stream.

    Raises DeadlineExceeded when the client stays silent for `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(requests)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        raise DeadlineExceeded(
            f"nothing came for {timeout_s:g} s although tensors were still owed"
        ) from None


async def read_until(over: asyncio.Event, requests: AsyncIterator[T], timeout_s: float) -> T | None:
    """As `read`; also None when `over` is set, which the caller has to look at first."""
    reading = asyncio.create_task(read(requests, timeout_s))
    ending = asyncio.create_task(over.wait())
    try:
        await asyncio.wait((reading, ending), return_when=asyncio.FIRST_COMPLETED)
        return reading.result() if reading.done() else None
    finally:
        reading.cancel()
        ending.cancel()


async def sending(responses: AsyncIterator[T], timeout_s: float) -> AsyncIterator[T]:
    """The same messages; the request is cancelled when one cannot be sent for `timeout_s`.

    A client that has stopped to read would otherwise hold what it was to be told for good.
    """
    request = asyncio.current_task()
    loop = asyncio.get_running_loop()
    async for response in responses:
        # What waits between a yield and its return is gRPC's flow control.
        giving_up = loop.call_later(timeout_s, request.cancel) if request is not None else None
        try:
            yield response
        finally:
            if giving_up is not None:
                giving_up.cancel()


@asynccontextmanager
async def answering(
    context: grpc.aio.ServicerContext[Any, Any], method: str
) -> AsyncIterator[telemetry.Span]:
    """A span around a request; an exception that leaves the block ends it with its status."""
    try:
        with telemetry.server_span(method, context.invocation_metadata()) as span:
            yield span
    except DitmeshError as error:
        await rpc_status.abort(context, error)
    except DecodeError:
        unreadable = ProtocolError("a message of the stream is not what the contract says")
        await rpc_status.abort(context, unreadable)
    except grpc.aio.AioRpcError as error:
        await rpc_status.abort(context, rpc_status.from_rpc_error(error, peer="the local sampler"))
    except grpc.aio.BaseError:
        # The stream itself is gone: there is nobody to tell.
        raise
    except Exception as error:
        log.exception("%s failed", method)
        await rpc_status.abort(context, rpc_status.as_ditmesh_error(error))
