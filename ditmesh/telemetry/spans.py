"""Spans: what a process did, when, for which trace.

Every function here works in three surroundings and callers need not know which it is: after
`setup` spans are recorded; in an application that has set up OpenTelemetry itself they join its
traces; with neither, contexts pass through and nothing is recorded.

A keyword `steps=20` becomes the attribute `ditmesh.steps`; None is left out. gRPC spans carry the
stable attributes of https://opentelemetry.io/docs/specs/semconv/rpc/grpc/.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import grpc

from ditmesh import errors
from ditmesh.rpc_status import as_ditmesh_error
from ditmesh.telemetry.propagation import Metadata, TraceContext, extract, inject

try:
    from opentelemetry import trace
except ImportError:  # the bare client has none
    trace = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

Attribute = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float] | None

# A server span is an error only if the server is to blame; a client span unless all is well.
_SERVER_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
# Not OpenTelemetry's own variable: its reset logs an error when an async generator is closed in
# another task than it was opened in, as happens to streams that are dropped.
_current: ContextVar[Span | None] = ContextVar("ditmesh_span", default=None)
_tracer: Tracer | None = None


class Span:
    """A span that was started. Every method may be called from any thread, also after its end."""

    def __init__(self, context: TraceContext | None, recorded: Any = None) -> None:
        self.context = context
        """What a child on another thread or in another process needs; None outside any trace."""
        self._recorded = recorded  # OpenTelemetry's span, if there is one

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty outside any trace."""
        return f"{self.context.trace_id:032x}" if self.context else ""

    def set(self, **attributes: Attribute) -> None:
        """Adds attributes, or replaces them."""
        if self._recorded is not None:
            self._recorded.set_attributes(_named(attributes))

    def event(self, name: str, /, **attributes: Attribute) -> None:
        """Adds an event that happens now."""
        if self._recorded is not None:
            self._recorded.add_event(name, _named(attributes))

    def fail(self, error: BaseException) -> None:
        """Records an error that this span ended with or overcame, and gives it error status."""
        if self._recorded is None:
            return
        _record(self._recorded, error)
        self._recorded.set_status(trace.StatusCode.ERROR, str(error))

    def end(self) -> None:
        """Ends it; further calls do nothing."""
        if self._recorded is not None and self._recorded.is_recording():
            self._recorded.end()


def use_tracer(tracer: Tracer | None) -> None:
    """Has all further spans of this process made by `tracer`."""
    global _tracer
    _tracer = tracer


def start_span(
    name: str, /, *, parent: Span | TraceContext | None = None, **attributes: Attribute
) -> Span:
    """Starts a span that `end` must end: for what outlives any one function, such as a job.

    `parent` defaults to the current span; without any, a new trace begins.
    """
    return _start(name, parent, _named(attributes))


def span(
    name: str, /, *, parent: Span | TraceContext | None = None, **attributes: Attribute
) -> AbstractContextManager[Span]:
    """A span around a block, current within it. An exception is recorded and passes on.

    A cancellation is an event and no error.
    """
    if recording():
        return _recorded_span(name, parent, attributes)
    current = _current.get()
    if parent is None and current is not None and current._recorded is None:
        return nullcontext(current)
    return _current_during(_start(name, parent, {}))


@contextmanager
def _recorded_span(
    name: str, parent: Span | TraceContext | None, attributes: Mapping[str, Attribute]
) -> Iterator[Span]:
    started = _start(name, parent, _named(attributes))
    with _current_during(started):
        try:
            yield started
        except (asyncio.CancelledError, errors.JobCancelled):
            started.event("cancelled")
            raise
        except GeneratorExit:
            raise
        except BaseException as error:
            started.fail(error)
            raise
        finally:
            started.end()


@contextmanager
def server_span(
    method: str,
    invocation_metadata: Iterable[tuple[str, str | bytes]] | None,
    /,
    **attributes: Attribute,
) -> Iterator[Span]:
    """A span around the handling of a call, a child of the caller's span.

    `method` is the full name, such as "ditmesh.v1.SamplerService/Sample". The status code is that
    of the error that leaves the block, so `abort` belongs outside it or may stand inside.
    """
    with _rpc_span("SERVER", method, extract(invocation_metadata), attributes) as started:
        yield started


@contextmanager
def client_span(
    method: str, /, *, parent: Span | TraceContext | None = None, **attributes: Attribute
) -> Iterator[Span]:
    """A span around a call to `method`; within it, `current_metadata` is what to send along."""
    with _rpc_span("CLIENT", method, parent, attributes) as started:
        yield started


def current_span() -> Span:
    """The span of the innermost block around the caller; one that does nothing outside any."""
    return _current.get() or Span(None)


def add_event(name: str, /, **attributes: Attribute) -> None:
    """Adds an event to the current span."""
    current_span().event(name, **attributes)


def current_metadata() -> Metadata:
    """The current trace context as gRPC metadata; empty outside any trace."""
    return inject((), current_span().context)


@contextmanager
def _rpc_span(
    kind: str,
    method: str,
    parent: Span | TraceContext | None,
    attributes: Mapping[str, Attribute],
) -> Iterator[Span]:
    method = method.lstrip("/")
    rpc = {"rpc.system.name": "grpc", "rpc.method": method}
    started = _start(method, parent, {**rpc, **_named(attributes)}, kind)
    code = grpc.StatusCode.OK
    with _current_during(started):
        try:
            yield started
        except GeneratorExit:
            code = grpc.StatusCode.CANCELLED  # the stream was dropped
            raise
        except BaseException as error:
            cause = error.__cause__ if isinstance(error.__cause__, errors.DitmeshError) else error
            code = as_ditmesh_error(cause).code
            if code in _SERVER_FAULTS or (
                kind == "CLIENT" and code is not grpc.StatusCode.CANCELLED
            ):
                started.fail(cause)
            elif code is not grpc.StatusCode.CANCELLED:
                _record(started._recorded, cause)
            raise
        finally:
            if started._recorded is not None:
                started._recorded.set_attribute("rpc.response.status_code", code.name)
            started.end()


@contextmanager
def _current_during(started: Span) -> Iterator[Span]:
    token = _current.set(started)
    try:
        yield started
    finally:
        with suppress(ValueError):  # closed in another task: that one's variable was never set
            _current.reset(token)


def _start(
    name: str,
    parent: Span | TraceContext | None,
    attributes: Mapping[str, Any],
    kind: str = "INTERNAL",
) -> Span:
    parent = parent or (None if kind == "SERVER" else _current.get())
    context = parent.context if isinstance(parent, Span) else parent
    tracer = _in_use()
    if tracer is not None:
        recorded = tracer.start_span(
            name,
            context=_otel_context(context),
            kind=trace.SpanKind[kind],
            attributes=attributes,
        )
        made = recorded.get_span_context()
        if made.is_valid:
            state = made.trace_state.to_header()
            sampled = made.trace_flags.sampled
            return Span(TraceContext(made.trace_id, made.span_id, sampled, state), recorded)
    # Nothing is recorded here. A server passes on what it got; whoever begins, begins a trace.
    return Span(context if context or kind == "SERVER" else TraceContext.new_root())


def recording() -> bool:
    """Whether spans that begin here are recorded: in a loop, even those that are not take time."""
    return _in_use() is not None


def _in_use() -> Tracer | None:
    """Who makes spans; None where nobody records any: making them costs a step's time even so."""
    if _tracer is not None or trace is None:
        return _tracer
    provider = trace.get_tracer_provider()
    unset = isinstance(provider, trace.ProxyTracerProvider)
    return None if unset else provider.get_tracer("ditmesh")


def _otel_context(context: TraceContext | None) -> Any:
    """`context` as OpenTelemetry's; None stands for the application's current one."""
    if context is None:
        return None
    parent = trace.SpanContext(
        context.trace_id,
        context.span_id,
        is_remote=context.remote,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED if context.sampled else 0),
        trace_state=trace.TraceState.from_header([context.tracestate]),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(parent))


def _record(recorded: Any, error: BaseException) -> None:
    if recorded is None:
        return
    kind = error.reason if isinstance(error, errors.DitmeshError) else type(error).__name__
    recorded.set_attribute("error.type", kind)
    recorded.record_exception(error)


def _named(attributes: Mapping[str, Attribute]) -> dict[str, Any]:
    return {f"ditmesh.{key}": value for key, value in attributes.items() if value is not None}
