"""What a client is told about a job: events while it runs, and the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ditmesh.jobs import Snapshot
from ditmesh.tensors import TensorSpec, WireTensor
from ditmesh.v1 import sampler_pb2 as pb
from ditmesh.v1 import tensor_pb2

_MAX_PREVIEW_BYTES = 1 << 28


@dataclass(frozen=True)
class Accepted:
    """The job has its place. Comes again when a broken stream was taken up again."""

    job_id: str
    steps: int
    """Steps that it will take."""
    position: int
    """Jobs before this one."""
    resumed: bool
    """Whether the server knew the job already."""


@dataclass(frozen=True)
class Queued:
    """The place of the waiting job changed."""

    position: int
    """Jobs before this one; 0: it starts now."""


@dataclass(frozen=True)
class Progress:
    """A step is done."""

    step: int
    """Steps finished, of `steps`."""
    steps: int
    sigma: float
    """Noise level reached."""
    executor: str
    """"group" or "local"."""
    preview: npt.NDArray[np.uint8] | None = field(default=None, repr=False)
    """Pictures of the latent, uint8 [B, H, W, 3], if one was due."""


@dataclass(frozen=True)
class Retrying:
    """The server cannot be reached, goes or is starting, or is full: the client tries again."""

    problem: str
    """What was the matter, in words."""
    attempt: int
    """Number of the attempt that comes next; 2 after the first failure in a row."""
    pause_s: float
    """Seconds until then."""


@dataclass(frozen=True)
class Segment:
    """Consecutive steps on one executor: `first_step` to before `end_step`."""

    executor: str
    epoch: int
    ranks: int
    mesh: str
    first_step: int
    end_step: int
    seconds: float


@dataclass(frozen=True)
class FallbackNote:
    """The job moved from one executor to another: a code, the reason in words, and when."""

    source: str
    target: str
    reason: str
    message: str
    at_step: int
    repeated_steps: int


@dataclass(frozen=True)
class Summary:
    """Who did what."""

    job_id: str
    trace_id: str
    """32 hexadecimal digits; empty when nobody traces."""
    segments: tuple[Segment, ...]
    """In the order in which they ran."""
    fallbacks: tuple[FallbackNote, ...]
    queue_seconds: float
    run_seconds: float


@dataclass(frozen=True)
class SampleResult:
    """What a job gave."""

    latent: npt.NDArray[np.float32] = field(repr=False)
    """[B, C, H, W], in the space that the job's `latent_format` says."""
    state: Snapshot | None
    """To continue the job from, if `return_state` asked for it."""
    summary: Summary


@dataclass(frozen=True)
class Done:
    """The job succeeded; always the last event."""

    result: SampleResult


Event: TypeAlias = Accepted | Queued | Progress | Retrying | Done


def read_progress(message: pb.Progress) -> Progress:
    """From its message. Raises InvalidTensor for a preview that is not what it claims."""
    preview = read_inline(message.preview) if message.HasField("preview") else None
    return Progress(message.step, message.steps, message.sigma, message.executor, preview)


def read_inline(message: tensor_pb2.InlineTensor) -> npt.NDArray[Any]:
    """A tensor sent inside its message. Raises InvalidTensor."""
    spec = TensorSpec.from_proto(message.spec, field="preview", max_bytes=_MAX_PREVIEW_BYTES)
    return WireTensor(spec, message.data).numpy().copy()


def read_summary(message: pb.JobSummary) -> Summary:
    """From its message."""
    return Summary(
        job_id=message.job_id,
        trace_id=message.trace_id,
        segments=tuple(
            Segment(s.executor, s.epoch, s.ranks, s.mesh, s.first_step, s.end_step, s.seconds)
            for s in message.segments
        ),
        fallbacks=tuple(
            FallbackNote(
                source=f.source,
                target=f.target,
                reason=f.reason,
                message=f.message,
                at_step=f.at_step,
                repeated_steps=f.repeated_steps,
            )
            for f in message.fallbacks
        ),
        queue_seconds=message.queue_seconds,
        run_seconds=message.run_seconds,
    )
