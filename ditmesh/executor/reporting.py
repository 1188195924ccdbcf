"""What an executor tells of a run: steps as they are done, now and then a state, the result."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np
from torch import Tensor

from ditmesh.chunk_messages import chunk_messages
from ditmesh.executor.keeper import encode_state, progress_message, state_messages
from ditmesh.executor.loop import Outcome, StepDone, Task
from ditmesh.jobs import PREVIEW_BYTES
from ditmesh.models.latents import LatentFormat
from ditmesh.output_rooms import write_output
from ditmesh.tensors import WireTensor
from ditmesh.torch_tensors import from_torch
from ditmesh.v1 import job_pb2, node_pb2, sampler_pb2, tensor_pb2

# Steps that wait for a slow coordinator; it needs the newest only.
_MOST_UNSENT = 8
# Where all steps are told of.
_LOOK_S = 1e-3


class Outbox:
    """From the torch thread to the stream's: the newest states in order, then the outcome.

    The stream's thread looks for steps from time to time and is not woken: the two threads share
    an interpreter, and right after a step every moment counts. Steps that come too fast for
    anybody to follow are not all told of.
    """

    def __init__(
        self,
        every_s: float | None = 0.0,
        must_tell: Callable[[StepDone], bool] = lambda done: False,
        is_urgent: Callable[[StepDone], bool] = lambda done: False,
    ) -> None:
        """`every_s`: of steps that come faster, the newest is told of; and all that `must_tell`.
        None: there are none to tell of. What `is_urgent` is told at once.

        `get` is for the stream's thread, the others for the torch thread.
        """
        self._every_s = every_s
        self._must_tell = must_tell
        self._is_urgent = is_urgent
        self._states: deque[StepDone] = deque(maxlen=_MOST_UNSENT)
        self._outcome: Future[Outcome] | None = None
        self._lock = threading.Lock()
        self._woken = threading.Event()

    def put(self, done: StepDone) -> None:
        """A step is done."""
        with self._lock:
            if self._states and self._every_s and not self._must_tell(self._states[-1]):
                self._states.pop()
            self._states.append(done)
        if self._is_urgent(done):
            self._woken.set()

    def end(self, outcome: Future[Outcome]) -> None:
        """The run has ended."""
        self._outcome = outcome
        self._woken.set()

    def get(self) -> StepDone | Future[Outcome]:
        """The next state, or once none is left and the run has ended, its outcome."""
        while True:
            self._woken.clear()
            outcome = self._outcome
            with self._lock:
                if self._states:
                    return self._states.popleft()
            if outcome is not None:
                return outcome
            self._woken.wait(_LOOK_S if self._every_s == 0.0 else self._every_s)


class StepReports:
    """Turns finished steps into messages; a state goes along at most every `state_every_s`."""

    def __init__(self, spec: job_pb2.JobSpec, task: Task, state_every_s: float) -> None:
        self._spec = spec
        self._latent_format = task.latent_format
        self._end_step = task.end_step
        self._every_s = state_every_s
        self._sent_at = time.monotonic()
        self._unsent: StepDone | None = None

    def messages(self, done: StepDone) -> Iterator[node_pb2.RunResponse]:
        """A step's announcement, and the chunks of its state if they are due.

        Not of the last one: the result comes right after it.
        """
        now = time.monotonic()
        if now - self._sent_at >= self._every_s and done.state.step < self._end_step:
            self._sent_at = now
            yield from self._state(done)
            return
        self._unsent = done
        update = progress_message(done)
        self._add_preview(update, done)
        yield node_pb2.RunResponse(state=update)

    def rest(self) -> Iterator[node_pb2.RunResponse]:
        """The newest state, unless it was sent: for whoever goes on from it."""
        if self._unsent is not None:
            yield from self._state(self._unsent)

    def _state(self, done: StepDone) -> Iterator[node_pb2.RunResponse]:
        self._unsent = None
        update, pieces = state_messages(done, node_pb2.RunResponse)
        self._add_preview(update, done)
        yield node_pb2.RunResponse(state=update)
        yield from pieces

    def is_last_but_one(self, done: StepDone) -> bool:
        """Whether one more step is to come: the coordinator lines the next job up behind it."""
        return done.state.step == self._end_step - 1

    def has_preview(self, done: StepDone) -> bool:
        """Whether a preview goes along with a step."""
        every = self._spec.preview.every_steps if self._spec.HasField("preview") else 0
        return bool(every) and done.state.step % every == 0 and done.denoised is not None

    def _add_preview(self, update: node_pb2.StateUpdate, done: StepDone) -> None:
        if self.has_preview(done) and done.denoised is not None:
            update.preview.CopyFrom(
                preview(done.layout.restore(done.denoised), self._latent_format)
            )


def preview(denoised: Tensor, latent_format: LatentFormat) -> tensor_pb2.InlineTensor:
    """A picture of a latent [B,C,H,W] as U8 [B,h,w,3]."""
    # Thinned out, so that a picture of any size fits in a message.
    nbytes = 3 * denoised.numel() // denoised.shape[1]
    stride = math.ceil(math.sqrt(nbytes / PREVIEW_BYTES))
    latents = denoised[..., ::stride, ::stride].float().cpu().numpy()
    pictures = np.stack([latent_format.preview_rgb(latent) for latent in latents])
    tensor = WireTensor.from_numpy(pictures)
    return tensor_pb2.InlineTensor(spec=tensor.spec.to_proto(), data=bytes(tensor.data))


def result_messages(
    outcome: Outcome, order: node_pb2.RunRequest, ended: Callable[[], node_pb2.RunDone]
) -> Iterator[node_pb2.RunResponse]:
    """The result's announcement, its chunks, and the end of the run.

    The latent is written to the memory that came with the order, if any did and can be reached.
    """
    spec = order.job.job
    latent = outcome.layout.restore(outcome.latent)
    tensors: tuple[WireTensor, ...] = (from_torch(latent, copy=False),)
    result = sampler_pb2.SampleResult(latent=0)
    if spec.return_state:
        state, extra = encode_state(outcome.state, outcome.layout)
        state.latent += 1
        # A copy: a protobuf map must not be written to while it is walked.
        for name in list(state.history):
            state.history[name] += 1
        tensors += extra
        result.state.CopyFrom(state)
    result.tensors.extend(t.spec.to_proto() for t in tensors)
    message = node_pb2.RunResponse(result=result)
    message.written = order.HasField("memory") and write_output(order.memory, tensors[0].data)
    rest = range(int(message.written), len(tensors))
    if not rest:
        message.ended.CopyFrom(ended())
        yield message
        return
    yield message
    yield from chunk_messages(node_pb2.RunResponse, tensors, rest)
    yield node_pb2.RunResponse(done=ended())
