"""The newest states of the jobs in hand, on every rank, and how they are sent."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import TypeVar

from ditmesh.chunk_messages import chunk_messages
from ditmesh.errors import UnknownJob
from ditmesh.executor.loop import StepDone
from ditmesh.models.family import LatentLayout
from ditmesh.sampling import State
from ditmesh.tensors import WireTensor
from ditmesh.torch_tensors import from_torch
from ditmesh.v1 import job_pb2, node_pb2

M = TypeVar("M")

# One may have its result on the way while the next does its steps.
_JOBS = 2


class StateKeeper:
    """The newest state of each of the last two jobs. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: OrderedDict[str, StepDone] = OrderedDict()

    def keep(self, job_id: str, done: StepDone) -> None:
        """A step of the job is done here."""
        with self._lock:
            self._newest[job_id] = done
            self._newest.move_to_end(job_id)
            if len(self._newest) > _JOBS:
                self._newest.popitem(last=False)

    def newest(self, job_id: str) -> StepDone:
        """The newest state. Raises UnknownJob."""
        with self._lock:
            if job_id not in self._newest:
                raise UnknownJob(f"no state of job {job_id!r} is held here")
            return self._newest[job_id]


def encode_state(
    state: State, layout: LatentLayout
) -> tuple[job_pb2.JobState, tuple[WireTensor, ...]]:
    """A state so arranged as a message and its tensors: the latent, then the history by name."""
    names = sorted(state.history)
    message = job_pb2.JobState(
        step=state.step,
        noise_draws=state.noise_draws,
        sampler_revision=state.revision,
        latent=0,
        history={name: i + 1 for i, name in enumerate(names)},
    )
    tensors = (state.latent, *(state.history[name] for name in names))
    return message, tuple(from_torch(layout.restore(t)) for t in tensors)


def progress_message(done: StepDone) -> node_pb2.StateUpdate:
    """The announcement of a step whose state does not come."""
    return node_pb2.StateUpdate(state=job_pb2.JobState(step=done.state.step), sigma=done.sigma)


def state_messages(done: StepDone, kind: type[M]) -> tuple[node_pb2.StateUpdate, Iterator[M]]:
    """The announcement of a state, and the chunks that follow it as messages of a stream."""
    message, tensors = encode_state(done.state, done.layout)
    update = node_pb2.StateUpdate(
        tensors=[t.spec.to_proto() for t in tensors], state=message, sigma=done.sigma
    )
    return update, chunk_messages(kind, tensors, range(len(tensors)))
