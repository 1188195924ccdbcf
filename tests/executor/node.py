"""One executor in this process: `NodeServicer` on a free port with the tiny golden Flux."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
import torch
from torch import nn

from ditmesh import chunk_messages
from ditmesh.errors import DitmeshError
from ditmesh.exchange import Receiver, read_specs
from ditmesh.executor.engine import LocalEngine
from ditmesh.executor.models import ModelCache
from ditmesh.executor.servicer import NodeServicer, ServicerLimits
from ditmesh.jobs import Job, Snapshot
from ditmesh.models.info import ModelInfo
from ditmesh.models.loading import load
from ditmesh.rpc_status import from_rpc_error
from ditmesh.tensors import WireTensor, as_wire
from ditmesh.torch_tensors import to_torch
from ditmesh.v1 import job_pb2, node_pb2_grpc, sampler_pb2
from ditmesh.v1 import node_pb2 as pb
from tests.chunks import chunks
from tests.sampling.golden_cases import CHECKPOINT, golden_tensors, load_golden

CASE = "flux_euler_simple_n8_cfg1_d1_b1_16x16"


def golden_job(name: str = CASE, job_id: str = "job", **changes: Any) -> Job:
    """A golden case as the coordinator would send it, its sigmas explicit."""
    case = load_golden(name)
    branches = [case.positive] + ([case.negative] if case.cfg != 1 else [])
    tensors = [as_wire(t) for b in branches for t in (b.text, b.pooled)]
    tensors = [t.hashed() for t in tensors]
    shape = case.latent_image.shape
    spec = job_pb2.JobSpec(
        job_id=job_id,
        model="tiny",
        sampler=case.sampler,
        seed=case.seed,
        cfg=case.cfg,
        schedule=job_pb2.Schedule(
            explicit=job_pb2.ExplicitSigmas(sigmas=golden_tensors(name)["sigmas"].tolist())
        ),
        positive=job_pb2.Conditioning(text=0, pooled=1, guidance=[case.positive.guidance]),
        empty_latent=job_pb2.EmptyLatent(batch=shape[0], height=shape[2], width=shape[3]),
        tensors=[t.spec.to_proto() for t in tensors],
    )
    if len(branches) > 1:
        spec.negative.CopyFrom(
            job_pb2.Conditioning(text=2, pooled=3, guidance=[case.negative.guidance])
        )
    spec.MergeFrom(job_pb2.JobSpec(**changes))
    return Job(spec, tuple(tensors))


@dataclass
class Ran:
    """What one run answered."""

    asked: list[int] = field(default_factory=list)
    """Tensors that were asked for."""
    states: list[Snapshot] = field(default_factory=list)
    previews: dict[int, Any] = field(default_factory=dict)
    result: sampler_pb2.SampleResult | None = None
    tensors: tuple[WireTensor, ...] = ()
    done: pb.RunDone | None = None

    @property
    def latent(self) -> torch.Tensor:
        """The result's latent."""
        assert self.result is not None
        return to_torch(self.tensors[self.result.latent])


class Stream:
    """One Run stream, driven by a test."""

    def __init__(self, stub: Any) -> None:
        self._queue: SimpleQueue[pb.RunRequest | None] = SimpleQueue()
        self.call = stub.Run(iter(self._queue.get, None))
        self.ran = Ran()

    def send(self, **message: Any) -> None:
        """One request."""
        self._queue.put(pb.RunRequest(**message))

    def end(self) -> None:
        """Close this side."""
        self._queue.put(None)

    def prepare(self, job: Job, deadline_s: float | None = None, *, at_once: bool = False) -> None:
        """Send a job and all that is asked for, until it is ready."""
        order = pb.RunJob(job=job.spec)
        if deadline_s is not None:
            order.deadline_seconds = deadline_s
        self.send(job=order, at_once=at_once)
        self.ran.asked = list(next(self.call).needed.tensors)
        for chunk in chunks(job.tensors, self.ran.asked):
            self.send(chunk=chunk)
        answer = next(self.call)
        assert answer.HasField("ready")
        assert answer.ready.begun == at_once

    def follow(self, on_state: Callable[[int], None] = lambda step: None) -> Ran:
        """Read to the end of the run."""
        for message in self.call:
            if message.HasField("state"):
                parts = self._tensors(message.state.tensors)
                self.ran.states.append(Snapshot(message.state.state, parts))
                if message.state.HasField("preview"):
                    self.ran.previews[message.state.state.step] = message.state.preview
                on_state(message.state.state.step)
            elif message.HasField("result"):
                self.ran.result = message.result
                self.ran.tensors = self._tensors(message.result.tensors)
            else:
                self.ran.done = message.done
        return self.ran

    def _tensors(self, specs: Sequence[Any]) -> tuple[WireTensor, ...]:
        receiver = Receiver(read_specs(specs, field="t", max_bytes=1 << 30), field="t")
        while not receiver.complete:
            receiver.feed(next(self.call).chunk)
        return receiver.tensors()


@dataclass
class Node:
    """A running executor."""

    address: str
    stub: Any
    servicer: NodeServicer
    transformer: nn.Module
    before: list[Callable[[], None]]
    """Called before each forward pass of the transformer."""

    def run(self, job: Job, **options: Any) -> Ran:
        """A whole run."""
        stream = Stream(self.stub)
        stream.prepare(job, **options)
        stream.send(start=pb.StartRun())
        try:
            return stream.follow()
        finally:
            stream.end()


@contextmanager
def serving(folder: Path, limits: ServicerLimits | None = None) -> Iterator[Node]:
    """A node with the tiny model in fp32, loaded once."""
    models = folder / "models"
    models.mkdir(exist_ok=True)
    shutil.copy(CHECKPOINT, models / "tiny.safetensors")
    before: list[Callable[[], None]] = []
    loaded: list[nn.Module] = []

    def act(module: nn.Module, args: tuple[Any, ...]) -> None:
        for action in list(before):
            action()

    def loader(info: ModelInfo) -> nn.Module:
        module = load(info, device="cpu", dtype=torch.float32)
        module.register_forward_pre_hook(act)
        loaded.append(module)
        return module

    cache = ModelCache(models, loader)
    gave_up: list[str] = []
    servicer = NodeServicer(
        LocalEngine(cache),
        device=torch.device("cpu"),
        limits=limits or ServicerLimits(state_every_s=0.0, step_every_s=0.0),
        give_up=gave_up.append,
    )
    servicer._torch_thread.submit(torch.set_num_threads, 1).result()
    cache.get("tiny")
    server = grpc.server(ThreadPoolExecutor(16))
    node_pb2_grpc.add_NodeServiceServicer_to_server(servicer, chunk_messages.server(server))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        address = f"127.0.0.1:{port}"
        with grpc.insecure_channel(address) as channel:
            stub = node_pb2_grpc.NodeServiceStub(channel)
            yield Node(address, stub, servicer, loaded[0], before)
    finally:
        server.stop(None).wait()
        servicer.close()
        assert not gave_up


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def failure(act: Callable[[], Any]) -> DitmeshError:
    """The error that a call ended with."""
    with pytest.raises(grpc.RpcError) as caught:
        act()
    return from_rpc_error(caught.value)
