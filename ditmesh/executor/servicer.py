"""`NodeService` on any executor: a thin shell around engine, sessions and one torch thread."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import torch

from ditmesh import rpc_status
from ditmesh.content import ContentStore
from ditmesh.errors import DitmeshError, Draining, Unauthenticated
from ditmesh.executor.device import memory_bytes
from ditmesh.executor.engine import Engine
from ditmesh.executor.keeper import StateKeeper, state_messages
from ditmesh.executor.membership import Membership
from ditmesh.executor.predict import PredictSession
from ditmesh.executor.session import RunSession
from ditmesh.executor.torch_thread import TorchThread
from ditmesh.memory_pool import MemoryPool
from ditmesh.models.describe import describe
from ditmesh.shared_memory import host_id
from ditmesh.v1 import node_pb2 as pb
from ditmesh.v1 import node_pb2_grpc

log = logging.getLogger(__name__)

# The coordinator counts a node that is silent for seconds as lost.
_HEARTBEAT_S = 1.0


@dataclass(frozen=True)
class ServicerLimits:
    """What one request may take, what is kept, and how often states are sent."""

    max_request_bytes: int = 1 << 30
    """Tensors that one request may declare."""
    content_bytes: int = 256 << 20
    """Tensors that repeat, kept for later requests."""
    state_every_s: float = 0.1
    """A job's state goes to the coordinator at most this often: if all ranks are lost at once, so
    much work has to be done again, and what is sent meanwhile is not worth its bytes. That of the
    last step does not go: the result comes right after it."""
    step_every_s: float = 0.01
    """Of steps that come faster, the newest is told of: nobody can follow more."""


class NodeServicer(node_pb2_grpc.NodeServiceServicer):
    """Serves one engine. Handlers wait; the torch thread works."""

    def __init__(
        self,
        engine: Engine,
        *,
        device: torch.device,
        limits: ServicerLimits,
        caller: str = "",
        on_change: Callable[[bool, bool], None] = lambda grouped, draining: None,
        give_up: Callable[[str], None],
    ) -> None:
        """`caller`: name that a caller's certificate must have, empty for any. `on_change` hears
        whether this process is in a group and whether it drains. `give_up` ends the process when
        the torch thread cannot be freed.
        """
        self._caller = caller
        self._on_change = on_change
        self._engine = engine
        self._device = device
        self._limits = limits
        self._store = ContentStore(limits.content_bytes)
        self._keeper = StateKeeper()
        self._pool = MemoryPool()
        self._torch_thread = TorchThread()
        self._membership = Membership(engine, self._torch_thread, give_up, self._notify)
        self._models = [describe(info) for info in engine.cache.catalogue.models.values()]
        self._incarnation = uuid.uuid4().hex
        self._changed = threading.Condition()
        self._telling = threading.Lock()
        self._version = 0
        self._draining = False
        self._jobs = 0

    def Watch(
        self, request: pb.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchResponse]:
        """The state now, at every change, and every second as a sign of life."""
        with self._answering(context):
            context.add_callback(self._notify)
            while context.is_active():
                with self._changed:
                    seen = self._version
                yield self._status()
                with self._changed:
                    self._changed.wait_for(lambda seen=seen: self._version != seen, _HEARTBEAT_S)  # type: ignore[misc]

    def JoinGroup(
        self, request: pb.JoinGroupRequest, context: grpc.ServicerContext
    ) -> pb.JoinGroupResponse:
        """Leave the old group and join the new one."""
        with self._answering(context):
            if self._draining:
                raise Draining("this node is shutting down", retry_after_s=5.0)
            self._membership.join(request)
        self._notify()
        return pb.JoinGroupResponse()

    def LeaveGroup(
        self, request: pb.LeaveGroupRequest, context: grpc.ServicerContext
    ) -> pb.LeaveGroupResponse:
        """Abort and leave, if the node is still in that group."""
        with self._answering(context):
            self._membership.leave(request.epoch)
        self._notify()
        return pb.LeaveGroupResponse()

    def LoadModel(
        self, request: pb.LoadModelRequest, context: grpc.ServicerContext
    ) -> pb.LoadModelResponse:
        """Load weights on the torch thread."""
        seconds = 0.0
        with self._answering(context):
            seconds = self._torch_thread.submit(self._engine.cache.load, request.model).result()
        self._notify()
        return pb.LoadModelResponse(seconds=seconds)

    def Run(
        self, request_iterator: Iterator[pb.RunRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.RunResponse]:
        """One job."""
        with self._answering(context):
            # Streams are opened ahead: there is a job once something comes.
            first = next(request_iterator, None)
            session = RunSession(
                self._engine,
                self._torch_thread,
                self._store,
                self._keeper,
                self._pool,
                device=self._device,
                max_bytes=self._limits.max_request_bytes,
                state_every_s=self._limits.state_every_s,
                step_every_s=self._limits.step_every_s,
            )
            with self._at_work():
                yield from session.serve(first, request_iterator, context)
            self._pool.trim()
        self._notify()

    def FetchState(
        self, request: pb.FetchStateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.FetchStateResponse]:
        """The newest state of a job that is or was run here."""
        with self._answering(context):
            done = self._keeper.newest(request.job_id)
            update, pieces = state_messages(done, pb.FetchStateResponse)
            yield pb.FetchStateResponse(state=update)
            yield from pieces

    def PredictStep(
        self,
        request_iterator: Iterator[pb.PredictStepRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.PredictStepResponse]:
        """A stream of single calls."""
        with self._answering(context):
            session = PredictSession(
                self._engine,
                self._torch_thread,
                self._store,
                max_bytes=self._limits.max_request_bytes,
            )
            yield from session.serve(request_iterator)

    def begin_loading(self, model: str) -> None:
        """Load a model before anybody asks for it."""
        future = self._torch_thread.submit(self._engine.cache.load, model)
        future.add_done_callback(lambda loading: self._loaded(model, loading))

    def _loaded(self, model: str, loading: Future[float]) -> None:
        error = loading.exception() if not loading.cancelled() else None
        if error is None:
            self._notify()
        else:
            # A job that wants it will be told; others can be served.
            log.error("cannot load %s at the start: %s", model, error)

    def drain(self, grace_s: float) -> None:
        """Tell the coordinator that this process is going, and let the job in hand end."""
        self._draining = True
        self._notify()
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs, grace_s)

    def close(self) -> None:
        """Leave the group and stop the torch thread."""
        self._membership.close()
        self._torch_thread.shutdown(wait=False, cancel_futures=True)

    def _status(self) -> pb.WatchResponse:
        total, used = memory_bytes(self._device)
        cache = self._engine.cache
        return pb.WatchResponse(
            incarnation=self._incarnation,
            pid=os.getpid(),
            device=_device_name(self._device),
            memory_total_bytes=total,
            memory_used_bytes=used,
            models=[
                pb.NodeModel(model=model, loaded=model.name in cache.loaded)
                for model in self._models
            ],
            epoch=self._engine.epoch,
            newest_epoch=self._membership.newest_epoch,
            draining=self._draining,
            host=host_id(),
            loading=cache.loading,
        )

    def _notify(self) -> None:
        with self._telling:
            # Whoever was held up tells what is, not what was.
            self._on_change(bool(self._engine.epoch), self._draining)
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._changed:
            self._jobs += 1
        try:
            yield
        finally:
            with self._changed:
                self._jobs -= 1
                self._changed.notify_all()

    @contextmanager
    def _answering(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Refuse a stranger; end the request with the status of what the block raises."""
        try:
            self._authorize(context)
            yield
        except Exception as error:
            if not isinstance(error, DitmeshError) and context.is_active():
                log.exception("request failed")
            rpc_status.abort_sync(context, rpc_status.as_ditmesh_error(error))

    def _authorize(self, context: grpc.ServicerContext) -> None:
        if not self._caller:
            return
        names = context.auth_context()
        known = [
            *names.get("x509_common_name", ()),
            *names.get("x509_subject_alternative_name", ()),
        ]
        if self._caller.encode() not in known:
            raise Unauthenticated(f"this node obeys {self._caller!r} alone")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
