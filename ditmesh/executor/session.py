"""One job's stream on an executor: inputs in, states and result out."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

import grpc
import torch

from ditmesh import telemetry
from ditmesh.content import ContentStore
from ditmesh.errors import (
    DitmeshError,
    ExecutorFailed,
    ProtocolError,
)
from ditmesh.executor.control import GO_ON, StopFlag
from ditmesh.executor.engine import Engine, all_or_none
from ditmesh.executor.inputs import LateModel, build_task
from ditmesh.executor.keeper import StateKeeper
from ditmesh.executor.loop import Outcome, SpanMaker, StepDone, Task, no_span, run
from ditmesh.executor.passing import PassedOn
from ditmesh.executor.receiving import asking, receive
from ditmesh.executor.reporting import Outbox, StepReports, result_messages
from ditmesh.executor.torch_thread import TorchThread
from ditmesh.executor.weight_patches import patch_set
from ditmesh.jobs import Job
from ditmesh.memory_pool import MemoryPool
from ditmesh.v1 import node_pb2, tensor_pb2

log = logging.getLogger(__name__)

# A job that begins is in its model by then: for messages to be sent beside its beginning, such as
# the result of the one before, made the transformer rest a millisecond longer
# (`python -m bench busy`).
_BEGIN_S = 0.003


class RunSession:
    """Drives `NodeService.Run`. The handler's thread serialises; the torch thread computes."""

    def __init__(
        self,
        engine: Engine,
        torch_thread: TorchThread,
        store: ContentStore,
        keeper: StateKeeper,
        pool: MemoryPool,
        *,
        device: torch.device,
        max_bytes: int,
        state_every_s: float,
        step_every_s: float,
    ) -> None:
        """`max_bytes`: of one request's tensors. The last two: see `ServicerLimits`."""
        self._engine = engine
        self._device = device
        self._torch_thread = torch_thread
        self._store = store
        self._keeper = keeper
        self._pool = pool
        self._max_bytes = max_bytes
        self._state_every_s = state_every_s
        self._step_every_s = step_every_s

    def serve(
        self,
        first: node_pb2.RunRequest | None,
        requests: Iterator[node_pb2.RunRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[node_pb2.RunResponse]:
        """Answer one stream, `first` and then `requests`. Raises the errors of `ditmesh.errors`."""
        if first is None or first.WhichOneof("message") != "job":
            raise ProtocolError("the first message of Run must be the job", field="job")
        order = first.job
        self._engine.require(order.epoch, order.mesh)
        with telemetry.server_span(
            "ditmesh.v1.NodeService/Run",
            _trace_of(order, context),
            job_id=order.job.job_id,
            epoch=order.epoch,
            model=order.job.model,
            sampler=order.job.sampler,
        ):
            with telemetry.span("receive"):
                offered = first.offered if first.HasField("offered") else None
                job, sent = yield from self._receive(order, offered, requests)
            deadline = order.deadline_seconds if order.HasField("deadline_seconds") else None
            flag = StopFlag(deadline)
            with PassedOn(self._pool) as passed_on:
                if first.pass_on and sent:
                    yield node_pb2.RunResponse(passed=passed_on.place(job.tensors, sent))
                with _told_as_failure("a job cannot be prepared"):
                    task, take_model = self._prepare(job, order.mesh)
                if not first.at_once:
                    yield _ready(begun=False)
                    with telemetry.span("wait"):
                        started = _wait_for_start(requests, flag)
                    if not started:
                        return
            if not context.add_callback(lambda: flag.set(node_pb2.STOP_REASON_PREEMPTED)):
                # It ended meanwhile: nobody waits for this run.
                return
            try:
                yield from self._run(task, take_model, first, flag, requests)
            finally:
                # Whatever ends this stream ends the run, which must not go on unseen.
                flag.set(node_pb2.STOP_REASON_PREEMPTED)

    def _receive(
        self,
        order: node_pb2.RunJob,
        offered: tensor_pb2.SharedTensors | None,
        requests: Iterator[node_pb2.RunRequest],
    ) -> Generator[node_pb2.RunResponse, None, tuple[Job, Sequence[int]]]:
        """The job, and which of its tensors had to be asked for to the last."""
        asked: list[int] = []

        def ask(needed: tensor_pb2.TensorsNeeded) -> node_pb2.RunResponse:
            asked[:] = needed.tensors
            return node_pb2.RunResponse(needed=needed)

        receiving = receive(
            order.job.tensors,
            requests,
            field="job.tensors",
            store=self._store,
            max_bytes=self._max_bytes,
            offered=offered,
        )
        tensors = yield from asking(receiving, ask)
        return Job(order.job, tensors), asked

    def _prepare(self, job: Job, mesh: int) -> tuple[Task, Callable[[], None]]:
        """The job's inputs on the device, its model in memory; and what gives it the model later.

        All of it beside a job that runs. Only a model that is not there yet, or not so patched,
        waits for the torch thread: until then the weights are the other job's.
        """
        name = job.spec.model
        patches = patch_set(job.spec.weight_patches, job.tensors)
        late = LateModel(self._engine.cache.catalogue.get(name), self._device)
        with telemetry.span("inputs"):
            task = build_task(job.spec, job.tensors, late)
        if not self._engine.cache.holds(name, patches):
            with telemetry.span("load"):
                self._torch_thread.submit(self._engine.model, name, mesh, patches).result()
        span = self._span_maker(mesh)
        return task, lambda: late.bind(self._engine.model(name, mesh, patches), span)

    def _span_maker(self, mesh: int) -> SpanMaker:
        """The leader alone tells of each step: the others do the same at the same time."""
        tells = self._engine.leads(mesh) and telemetry.recording()
        return telemetry.span if tells else no_span

    def _run(
        self,
        task: Task,
        take_model: Callable[[], None],
        first: node_pb2.RunRequest,
        flag: StopFlag,
        requests: Iterator[node_pb2.RunRequest],
    ) -> Iterator[node_pb2.RunResponse]:
        order = first.job
        leads = self._engine.leads(order.mesh)
        reports = StepReports(order.job, task, self._state_every_s)
        every_s = self._step_every_s if leads else None
        outbox = Outbox(every_s, reports.has_preview, reports.is_last_but_one)

        def publish(done: StepDone) -> None:
            self._keeper.keep(order.job.job_id, done)
            if leads:
                outbox.put(done)

        started = time.monotonic()
        span = telemetry.current_span()
        # The torch thread's spans belong to this one's.
        here = contextvars.copy_context()
        future = self._torch_thread.submit(
            here.run, self._work, task, take_model, order, flag, publish
        )
        future.add_done_callback(outbox.end)
        # What follows waits, because the torch thread waits for nothing else.
        time.sleep(_BEGIN_S)
        if first.at_once:
            yield _ready(begun=True)
        threading.Thread(target=_listen, args=(requests, flag, span), daemon=True).start()
        while isinstance(item := outbox.get(), StepDone):
            span.event("step", step=item.state.step, sigma=item.sigma, seconds=item.seconds)
            yield from reports.messages(item)
        if self._torch_thread.busy:
            # The job that lined up begins now, in the same interpreter: that comes first.
            time.sleep(_BEGIN_S)
        outcome = item.result()

        def ended() -> node_pb2.RunDone:
            seconds = time.monotonic() - started
            return node_pb2.RunDone(stopped=outcome.stopped, seconds=seconds)

        if leads and outcome.stopped == GO_ON:
            with telemetry.span("send"):
                yield from result_messages(outcome, first, ended)
            return
        if leads:
            yield from reports.rest()
        yield node_pb2.RunResponse(done=ended())

    def _work(
        self,
        task: Task,
        take_model: Callable[[], None],
        order: node_pb2.RunJob,
        flag: StopFlag,
        publish: Callable[[StepDone], None],
    ) -> Outcome:
        """The job on the torch thread, perhaps after another that it waited for there."""
        with _told_as_failure("the run failed"):
            # The group may have gone since the job came.
            self._engine.require(order.epoch, order.mesh)
            with all_or_none(self._engine):
                take_model()
                control = self._engine.control(order.mesh, flag, order.job.job_id)
                return run(task, control, publish, self._span_maker(order.mesh))


def _trace_of(order: node_pb2.RunJob, context: grpc.ServicerContext) -> telemetry.Metadata:
    """A coordinator that opens no stream ahead says it in the stream's own headers."""
    if order.traceparent:
        return (("traceparent", order.traceparent),)
    return tuple(context.invocation_metadata())


@contextmanager
def _told_as_failure(what: str) -> Iterator[None]:
    """What the model, a collective or the memory raises, as a failure of this executor."""
    try:
        yield
    except DitmeshError:
        raise
    except Exception as error:
        log.exception(what)
        raise ExecutorFailed(f"{type(error).__name__}: {error}") from error


def _ready(*, begun: bool) -> node_pb2.RunResponse:
    return node_pb2.RunResponse(ready=node_pb2.RunReady(begun=begun))


def _wait_for_start(requests: Iterator[node_pb2.RunRequest], flag: StopFlag) -> bool:
    try:
        request = next(requests, None)
    except grpc.RpcError as broken:
        # Given up. gRPC keeps the error, and its frames would keep the job's inputs.
        broken.__traceback__ = None
        return False
    kind = request.WhichOneof("message") if request is not None else None
    if request is not None and kind == "stop":
        flag.set(request.stop.reason)
    elif kind not in ("start", None):
        raise ProtocolError(f"expected start or stop, got {kind}")
    return kind == "start"


def _listen(requests: Iterator[node_pb2.RunRequest], flag: StopFlag, span: telemetry.Span) -> None:
    """Pass on a stop that comes while the job runs."""
    try:
        for request in requests:
            if request.WhichOneof("message") == "stop":
                flag.set(request.stop.reason)
                span.event("stop", reason=node_pb2.StopReason.Name(request.stop.reason))
    except grpc.RpcError:
        # The stream broke; the context's callback has set the flag.
        log.debug("run stream closed by the coordinator")
