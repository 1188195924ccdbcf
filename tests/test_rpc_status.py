"""Errors over the wire and back: as bytes, and through real servers and channels."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from ditmesh import errors, rpc_status
from ditmesh.errors import DitmeshError

CLASSES = sorted(errors.by_reason().values(), key=lambda cls: cls.reason)
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
METHOD = "/test.Service/Fail"


def same(error: DitmeshError, other: DitmeshError) -> bool:
    return (
        type(error) is type(other)
        and error.message == other.message == str(other)
        and error.field == other.field
        and error.retry_after_s == other.retry_after_s
    )


def by_google(error: DitmeshError) -> bytes:
    """The status of `error` as googleapis-common-protos writes it."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain="ditmesh", metadata={"retry": error.retry.value}
        )
    ]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail, deterministic=True)
        status.details.append(packed)
    return status.SerializeToString(deterministic=True)


@contextmanager
def threaded_server(error: DitmeshError) -> Iterator[str]:
    """A server whose only method fails with `error`; gives its address."""

    def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
        rpc_status.abort_sync(context, error)

    server = grpc.server(futures.ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(fail)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", {"Fail": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


async def with_asyncio_server(
    error: DitmeshError, call: Callable[[grpc.aio.Channel], Awaitable[object]]
) -> None:
    """Runs `call` against an asyncio server whose only method, a stream, fails with `error`."""

    async def fail(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        yield b"first"
        await rpc_status.abort(context, error)

    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(fail)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", {"Fail": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await call(channel)
    await server.stop(None)


@every_class
def test_every_class_survives_the_wire(cls: type[DitmeshError]) -> None:
    """Class, message, field and delay come back from a threaded server as they were raised."""
    error = cls("größer als 1 ≠ 2", field="job.cfg", retry_after_s=2.5)
    with threaded_server(error) as address, grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(METHOD)(b"")
        failed: Any = caught.value
        assert failed.code() is cls.code
        assert failed.details() == error.message
        assert same(rpc_status.from_rpc_error(failed), error)


def test_every_class_survives_an_asyncio_stream() -> None:
    """The same holds for streams of asyncio servers, read with an asyncio channel."""

    async def check(error: DitmeshError) -> None:
        async def call(channel: grpc.aio.Channel) -> None:
            stream = channel.unary_stream(METHOD)(b"")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                assert [message async for message in stream] == [b"first"]
            assert caught.value.code() is error.code
            assert same(rpc_status.from_rpc_error(caught.value), error)

        await with_asyncio_server(error, call)

    async def check_all() -> None:
        for cls in CLASSES:
            await check(cls("words", field="job.cfg", retry_after_s=0.25))

    asyncio.run(check_all())


@every_class
@pytest.mark.parametrize("field", ["", "job.schedule.named.steps"])
@pytest.mark.parametrize("retry_after_s", [None, 0.0, 1.5])
def test_bytes_are_those_of_googleapis(
    cls: type[DitmeshError], field: str, retry_after_s: float | None
) -> None:
    """The bytes equal what googleapis-common-protos makes of the same values."""
    error = cls("What is wrong.", field=field, retry_after_s=retry_after_s)
    data = rpc_status.to_status_bytes(error)
    assert data == by_google(error)
    assert same(rpc_status.from_status_bytes(data), error)


def test_every_reason_is_its_own() -> None:
    """Two classes of one reason could not be told apart on the wire."""

    def tree(cls: type[DitmeshError]) -> Iterator[type[DitmeshError]]:
        yield cls
        for child in cls.__subclasses__():
            yield from tree(child)

    assert len(CLASSES) == len(list(tree(DitmeshError))) > 20


@given(
    cls=st.sampled_from(CLASSES),
    message=st.text(max_size=3000),
    field=st.text(max_size=600),
    delay=st.none() | st.floats(allow_nan=True, allow_infinity=True),
)
def test_any_error_fits_in_the_trailing_metadata(
    cls: type[DitmeshError], message: str, field: str, delay: float | None
) -> None:
    """Whatever the words are, the status is valid, short enough, and keeps their beginning."""
    error = cls(message, field=field, retry_after_s=delay)
    data = rpc_status.to_status_bytes(error)
    back = rpc_status.from_status_bytes(data)

    percent_encoded = 3 * len(back.message.encode())
    assert percent_encoded + len(data) * 4 / 3 < 7500
    assert type(back) is cls
    assert back.message == message or message.startswith(back.message[:-1])
    assert back.field == field or field.startswith(back.field[:-1])


@given(st.binary(max_size=200))
def test_damaged_status_is_an_error_like_any(data: bytes) -> None:
    """Bytes that are no status never raise: there is always an error to show."""
    assert isinstance(rpc_status.from_status_bytes(data), DitmeshError)


def test_lone_surrogates_travel_as_question_marks() -> None:
    """A message that is no valid UTF-8, such as a broken file name, does not break the answer."""
    data = rpc_status.to_status_bytes(errors.DamagedModel("no file \udcff.safetensors"))
    assert str(rpc_status.from_status_bytes(data)) == "no file ?.safetensors"


@pytest.mark.parametrize(
    ("code", "retry", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "never", errors.InvalidRequest),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "later", errors.Overloaded),
        (grpc.StatusCode.UNAVAILABLE, "later", errors.Unavailable),
        (grpc.StatusCode.INTERNAL, "elsewhere", errors.ExecutorFailed),
        (grpc.StatusCode.INTERNAL, "never", errors.InternalError),
        (grpc.StatusCode.DATA_LOSS, "never", errors.InternalError),
    ],
)
def test_reason_of_a_newer_version_is_read_by_its_code(
    code: grpc.StatusCode, retry: str, expected: type[DitmeshError]
) -> None:
    """An unknown reason becomes the class whose code and retry advice are the same."""
    info = error_details_pb2.ErrorInfo(
        reason="FROM_THE_FUTURE", domain="ditmesh", metadata={"retry": retry}
    )
    status = status_pb2.Status(code=code.value[0], message="words")
    status.details.add().Pack(info)
    error = rpc_status.from_status_bytes(status.SerializeToString())
    assert type(error) is expected
    assert str(error) == "words"


def test_reason_of_another_domain_is_not_ours() -> None:
    """A proxy's reason that happens to be spelled like one of ours is not taken for it."""
    info = error_details_pb2.ErrorInfo(reason="BAD_RESULT", domain="example.com")
    status = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0])
    status.details.add().Pack(info)
    error = rpc_status.from_status_bytes(status.SerializeToString())
    assert type(error) is errors.Unavailable


def test_unreachable_server_says_what_to_do() -> None:
    """A refused connection names whom was called and what to check, and may be retried."""
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHOD)(b"", timeout=20)
    error = rpc_status.from_rpc_error(caught.value, peer="the coordinator at 127.0.0.1:1")
    assert type(error) is errors.Unavailable
    assert error.retry is errors.Retry.LATER
    assert "Cannot reach the coordinator at 127.0.0.1:1. Check that it is running" in str(error)


def test_statuses_of_grpc_itself_are_told_apart() -> None:
    """Unknown method, deadline and oversized message each become the error that fits."""
    with threaded_server(errors.BadResult("x" * 900)) as address:
        with grpc.insecure_channel(address) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/test.Service/Other")(b"")
            assert type(rpc_status.from_rpc_error(caught.value)) is errors.InternalError
            assert "another version" in str(rpc_status.from_rpc_error(caught.value))
        options = [("grpc.max_send_message_length", 10)]
        with grpc.insecure_channel(address, options) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(METHOD)(b"x" * 100)
            assert type(rpc_status.from_rpc_error(caught.value)) is errors.LimitExceeded


def test_silent_server_is_a_deadline_exceeded() -> None:
    """A server that accepts the connection and says nothing uses up the caller's time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(METHOD)(b"", timeout=0.2)
    error = rpc_status.from_rpc_error(caught.value)
    assert type(error) is errors.DeadlineExceeded
    assert str(error).startswith("The coordinator did not answer in the time given")


def test_cancelled_call_is_a_cancelled_job() -> None:
    """A call that its caller cancelled is no failure of the server."""

    async def cancel(channel: grpc.aio.Channel) -> None:
        stream = channel.unary_stream(METHOD)(b"")
        stream.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await stream.read()
        assert type(rpc_status.as_ditmesh_error(caught.value)) is errors.JobCancelled
        assert await stream.code() is grpc.StatusCode.CANCELLED

    asyncio.run(with_asyncio_server(errors.BadResult("never"), cancel))


def test_bare_rpc_error_without_a_status() -> None:
    """Even an RpcError that answers no question becomes an error."""
    assert type(rpc_status.from_rpc_error(grpc.RpcError())) is errors.InternalError


def test_unknown_exception_reveals_nothing() -> None:
    """The words of an unexpected exception may hold secrets: callers get only its type."""
    error = rpc_status.as_ditmesh_error(RuntimeError("password=hunter2 in /etc/secret"))
    assert type(error) is errors.InternalError
    assert "RuntimeError" in str(error)
    assert "hunter2" not in str(error)


def test_known_errors_stay_themselves() -> None:
    """Errors of the tree are passed on as the same objects."""
    error = errors.GroupLost("rank 3 died")
    assert rpc_status.as_ditmesh_error(error) is error


def test_needs_no_googleapis() -> None:
    """The module works where googleapis-common-protos, torch and OpenTelemetry are missing."""
    program = (
        "import sys\n"
        "for name in ('google.rpc', 'torch', 'opentelemetry'): sys.modules[name] = None\n"
        "from ditmesh import errors, rpc_status\n"
        "data = rpc_status.to_status_bytes(errors.Draining('bye', retry_after_s=3))\n"
        "error = rpc_status.from_status_bytes(data)\n"
        "print(type(error).__name__, error, error.retry_after_s)\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert (done.stdout, done.stderr) == ("Draining bye 3.0\n", "")
