"""Carries `ditmesh.errors` over gRPC and back.

An error travels as the standard `google.rpc.Status` in the trailing metadata
`grpc-status-details-bin` (https://google.aip.dev/193), with these details:

    ErrorInfo    reason names the class, domain is "ditmesh", metadata["retry"] is the retry advice
    BadRequest   one violation, when the error names a field
    RetryInfo    the delay, when the error has one

A client in any language reads them with the library it has for google.rpc. This module brings
definitions of its own for those messages, so that `pip install ditmesh` needs no further package.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from google.protobuf.message import DecodeError

from ditmesh import errors
from ditmesh.errors import DitmeshError

STATUS_KEY: Final = "grpc-status-details-bin"
"""The metadata key under which gRPC libraries look for a `google.rpc.Status`."""
DOMAIN: Final = "ditmesh"
"""The domain in every `ErrorInfo` of this project."""

# gRPC refuses trailing metadata above 8 KiB. The message stands in it three times, in base64 or
# percent-encoded, so this leaves room in any script.
_MESSAGE_BYTES: Final = 1024
_FIELD_BYTES: Final = 256
_LONGEST_DELAY_S: Final = 315_576_000_000.0  # what google.protobuf.Duration may hold

_Field = descriptor_pb2.FieldDescriptorProto


def _field(number: int, name: str, kind: str, *, repeated: bool = False) -> _Field:
    """A field of type int32, string, or of the message named in full."""
    scalars = {"int32": _Field.TYPE_INT32, "string": _Field.TYPE_STRING}
    return _Field(
        name=name,
        number=number,
        label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL,
        type=scalars.get(kind, _Field.TYPE_MESSAGE),
        type_name=None if kind in scalars else f".{kind}",
    )


def _google_rpc() -> dict[str, type[Any]]:
    """The classes of google/rpc/status.proto and error_details.proto that are used here, by name.

    They live in a pool of their own: in the default one they would collide with
    googleapis-common-protos, where that is installed.
    """
    entry = descriptor_pb2.DescriptorProto(
        name="MetadataEntry",
        field=[_field(1, "key", "string"), _field(2, "value", "string")],
        options=descriptor_pb2.MessageOptions(map_entry=True),
    )
    violation = descriptor_pb2.DescriptorProto(
        name="FieldViolation",
        field=[_field(1, "field", "string"), _field(2, "description", "string")],
    )
    status = descriptor_pb2.DescriptorProto(
        name="Status",
        field=[
            _field(1, "code", "int32"),
            _field(2, "message", "string"),
            _field(3, "details", "google.protobuf.Any", repeated=True),
        ],
    )
    error_info = descriptor_pb2.DescriptorProto(
        name="ErrorInfo",
        field=[
            _field(1, "reason", "string"),
            _field(2, "domain", "string"),
            _field(3, "metadata", "google.rpc.ErrorInfo.MetadataEntry", repeated=True),
        ],
        nested_type=[entry],
    )
    bad_request = descriptor_pb2.DescriptorProto(
        name="BadRequest",
        field=[
            _field(1, "field_violations", "google.rpc.BadRequest.FieldViolation", repeated=True)
        ],
        nested_type=[violation],
    )
    retry_info = descriptor_pb2.DescriptorProto(
        name="RetryInfo", field=[_field(1, "retry_delay", "google.protobuf.Duration")]
    )
    messages = [status, error_info, bad_request, retry_info]
    file = descriptor_pb2.FileDescriptorProto(
        name="ditmesh/google_rpc.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=[any_pb2.DESCRIPTOR.name, duration_pb2.DESCRIPTOR.name],
        message_type=messages,
    )
    pool: Any = descriptor_pool.DescriptorPool()  # its stubs are untyped
    for known in (any_pb2.DESCRIPTOR, duration_pb2.DESCRIPTOR):
        pool.AddSerializedFile(known.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {
        m.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"google.rpc.{m.name}"))
        for m in messages
    }


_RPC: Final = _google_rpc()
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
# What a status stands for when it names no class of the tree: written by gRPC itself, by a proxy,
# or by a newer ditmesh.
_BY_CODE: Final[dict[grpc.StatusCode, type[DitmeshError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequest,
    grpc.StatusCode.ALREADY_EXISTS: errors.JobExists,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.CANCELLED: errors.JobCancelled,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.Unauthenticated,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.ABORTED: errors.StaleEpoch,
}


def to_status_bytes(error: DitmeshError) -> bytes:
    """A serialised `google.rpc.Status` that says all that `error` says.

    A message above 1024 bytes is cut, and a field path above 256, so that it always fits in the
    trailing metadata of a call.
    """
    text = _clip(error.message, _MESSAGE_BYTES)
    info = _RPC["ErrorInfo"](
        reason=error.reason, domain=DOMAIN, metadata={"retry": error.retry.value}
    )
    details = [info]
    if error.field:
        violation = {"field": _clip(error.field, _FIELD_BYTES), "description": text}
        details.append(_RPC["BadRequest"](field_violations=[violation]))
    if error.retry_after_s is not None and math.isfinite(error.retry_after_s):
        nanos = round(min(max(error.retry_after_s, 0.0), _LONGEST_DELAY_S) * 1e9)
        delay = {"seconds": nanos // 10**9, "nanos": nanos % 10**9}
        details.append(_RPC["RetryInfo"](retry_delay=delay))
    status = _RPC["Status"](code=error.code.value[0], message=text)
    for detail in details:
        status.details.add(
            type_url=f"type.googleapis.com/{detail.DESCRIPTOR.full_name}",
            value=detail.SerializeToString(deterministic=True),
        )
    return bytes(status.SerializeToString(deterministic=True))


def from_status_bytes(data: bytes) -> DitmeshError:
    """The error that a serialised `google.rpc.Status` carries.

    A reason that this version does not know becomes the class that fits the status code best.
    Bytes that are no status become an `InternalError`.
    """
    try:
        return _read(data)
    except DecodeError:
        return errors.InternalError("The peer sent an error that is not a google.rpc.Status.")


def trailing_metadata(error: DitmeshError) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata with which a call fails."""
    return ((STATUS_KEY, to_status_bytes(error)),)


def from_rpc_error(error: grpc.RpcError, *, peer: str = "the coordinator") -> DitmeshError:
    """The error for which a call failed, on sync and asyncio channels alike.

    `peer` names whom was called, for the words of errors that come from gRPC itself.
    """
    for key, value in _metadata_of(error):
        if key == STATUS_KEY and isinstance(value, bytes):
            try:
                return _read(value)
            except DecodeError:
                break
    code, details = _answer(error, "code"), _answer(error, "details") or ""
    if not isinstance(code, grpc.StatusCode):
        return errors.InternalError(f"The call to {peer} failed without a status.")
    return _from_plain(code, str(details), peer)


def as_ditmesh_error(error: BaseException) -> DitmeshError:
    """What to tell the caller about any exception.

    An exception of unknown kind becomes an `InternalError` that reveals none of its words: the
    caller of this function logs its traceback.
    """
    if isinstance(error, DitmeshError):
        return error
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error, peer="a node")
    if isinstance(error, asyncio.CancelledError):
        return errors.JobCancelled("The call was cancelled.")
    return errors.InternalError(
        f"An unexpected {type(error).__name__} happened on the server; its log tells more."
    )


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: DitmeshError) -> NoReturn:
    """Ends a call of an asyncio server with `error`; never returns."""
    text = _clip(error.message, _MESSAGE_BYTES)
    try:
        await context.abort(error.code, text, trailing_metadata(error))
    except Exception as aborted:
        raise aborted from error


def abort_sync(context: grpc.ServicerContext, error: DitmeshError) -> NoReturn:
    """Ends a call of a threaded server with `error`; never returns."""
    context.set_trailing_metadata(trailing_metadata(error))
    try:
        context.abort(error.code, _clip(error.message, _MESSAGE_BYTES))
    except Exception as aborted:
        raise aborted from error


def _read(data: bytes) -> DitmeshError:
    """Parses a status. Raises DecodeError."""
    status = _RPC["Status"].FromString(data)
    reason, retry, field, retry_after_s = "", "", "", None
    for detail in status.details:
        name = detail.type_url.rpartition("/")[2]
        if name == "google.rpc.ErrorInfo":
            info = _RPC["ErrorInfo"].FromString(detail.value)
            if info.domain == DOMAIN:
                reason, retry = info.reason, info.metadata.get("retry", "")
        elif name == "google.rpc.BadRequest":
            violations = _RPC["BadRequest"].FromString(detail.value).field_violations
            field = violations[0].field if violations else ""
        elif name == "google.rpc.RetryInfo":
            delay = _RPC["RetryInfo"].FromString(detail.value).retry_delay
            retry_after_s = delay.seconds + delay.nanos / 1e9
    kind = errors.by_reason().get(reason) or _class_of(_CODES.get(status.code), retry)
    return kind(status.message, field=field, retry_after_s=retry_after_s)


def _class_of(code: grpc.StatusCode | None, retry: str = "") -> type[DitmeshError]:
    if code is grpc.StatusCode.INTERNAL and retry == errors.Retry.ELSEWHERE.value:
        return errors.ExecutorFailed
    return _BY_CODE.get(code, errors.InternalError) if code else errors.InternalError


def _from_plain(code: grpc.StatusCode, details: str, peer: str) -> DitmeshError:
    """An error from a status without details, in words that say what to do."""
    said = f" (gRPC says: {details})" if details else ""
    if code is grpc.StatusCode.UNAVAILABLE:
        return errors.Unavailable(
            f"Cannot reach {peer}. Check that it is running, that address and port are right, "
            f"and that TLS is on at both ends or at neither, then try again{said}."
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(f"{_upper(peer)} did not answer in the time given{said}.")
    if code is grpc.StatusCode.CANCELLED:
        return errors.JobCancelled(f"The call to {peer} was cancelled{said}.")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return errors.LimitExceeded(f"A message is too large for {peer} or from it{said}.")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.Overloaded(f"{_upper(peer)} is overloaded; try again later{said}.")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.InternalError(
            f"{_upper(peer)} does not know this call: it is another version, or another "
            f"program answers at its address{said}."
        )
    return _class_of(code)(f"The call to {peer} failed with {code.name}{said}.")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _answer(error: grpc.RpcError, method: str) -> Any:
    """What a method of an RpcError gives; None where it has none, as on a bare RpcError."""
    function = getattr(error, method, None)
    return function() if callable(function) else None


def _metadata_of(error: grpc.RpcError) -> Iterable[tuple[str, str | bytes]]:
    return tuple(_answer(error, "trailing_metadata") or ())


def _clip(text: str, limit: int) -> str:
    """`text` in at most `limit` bytes of UTF-8, valid whatever it held."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    return data[: limit - 3].decode("utf-8", "ignore") + "…"
