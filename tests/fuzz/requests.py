"""Malformed requests, drawn from a seeded generator."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from ditmesh.shared_memory import Memory, host_id
from ditmesh.tensors import WireTensor
from ditmesh.v1 import cluster_pb2, job_pb2, pipeline_pb2, sampler_pb2, tensor_pb2

SAMPLE = "/ditmesh.v1.SamplerService/Sample"
PREDICT = "/ditmesh.v1.SamplerService/Predict"
DECODE = "/ditmesh.v1.PipelineService/DecodeLatent"
ENCODE = "/ditmesh.v1.PipelineService/EncodePrompt"
CLUSTER = "/ditmesh.v1.ClusterService/GetCluster"

NUMBERS = (0, 1, 2, 3, 7, 8, 255, 256, 2**16, 2**31 - 1, 2**32 - 1)
SIGNED = (*NUMBERS, -1, -(2**31), 2**62, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"))
WORDS = ("", "euler", "simple", "tiny-flux", "../../etc/passwd", "a" * 5000, "\x00", "🙂", "../")


@dataclass(frozen=True)
class Request:
    """A stream of raw messages to one method.

    Then `silent` sends nothing more and stays open, `endless` is sent again and again.
    """

    method: str
    messages: tuple[bytes, ...]
    silent: bool = False
    endless: bytes | None = None


def requests(seed: int) -> Iterator[Request]:
    """Malformed requests without end."""
    rng = random.Random(seed)
    kinds: tuple[Callable[[random.Random], Request], ...] = (
        _mutated,
        _mutated,
        _hostile_job,
        _hostile_job,
        _wrong_chunks,
        _garbage,
        _hostile_call,
        _hostile_memory,
        _hostile_pipeline,
        _silent,
        _endless,
    )
    while True:
        yield rng.choice(kinds)(rng)


def sound_job(rng: random.Random) -> job_pb2.JobSpec:
    """A job that a server with the tiny model would run, in two steps."""
    return job_pb2.JobSpec(
        job_id=f"fuzz-{rng.getrandbits(64):x}",
        model="tiny-flux",
        sampler="euler",
        schedule=job_pb2.Schedule(named=job_pb2.NamedSchedule(scheduler="simple", steps=2)),
        positive=job_pb2.Conditioning(text=0),
        empty_latent=job_pb2.EmptyLatent(batch=1, height=4, width=4),
        tensors=[tensor_pb2.TensorSpec(data_type=tensor_pb2.DATA_TYPE_F32, shape=[1, 1, 64])],
    )


def _sample(rng: random.Random, *messages: sampler_pb2.SampleRequest) -> Request:
    return Request(SAMPLE, tuple(m.SerializeToString() for m in messages))


def _chunk(rng: random.Random, size: int, *, tensor: int = 0, offset: int = 0) -> bytes:
    chunk = tensor_pb2.TensorChunk(tensor=tensor, offset=offset, data=rng.randbytes(size))
    return sampler_pb2.SampleRequest(chunk=chunk).SerializeToString()


def _mutated(rng: random.Random) -> Request:
    """A sound request with bytes flipped, cut out, doubled or put in."""
    job = sampler_pb2.SampleRequest(job=sound_job(rng)).SerializeToString()
    messages = [_mutate(rng, job), _mutate(rng, _chunk(rng, 256))]
    return Request(SAMPLE, tuple(messages[: rng.randint(1, 2)]))


def _mutate(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(4):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at : at + rng.randint(1, 8)]
            case 2:
                out[at:at] = out[at : at + rng.randint(1, 8)]
            case _:
                out[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(out)


def _garbage(rng: random.Random) -> Request:
    """Bytes that were never a message."""
    method = rng.choice((SAMPLE, PREDICT, DECODE, ENCODE, CLUSTER))
    size = rng.choice((0, 1, 2, 100, 10_000))
    return Request(method, (rng.randbytes(size),))


def _hostile_job(rng: random.Random) -> Request:
    """A job with a few fields set to what nobody should send."""
    job = sound_job(rng)
    for _ in range(rng.randint(1, 4)):
        _spoil(rng, job)
    return Request(
        SAMPLE, (sampler_pb2.SampleRequest(job=job).SerializeToString(), _chunk(rng, 256))
    )


def _spoil(rng: random.Random, job: job_pb2.JobSpec) -> None:
    number, real, word = rng.choice(NUMBERS), rng.choice(FLOATS), rng.choice(WORDS)
    named = job.schedule.named
    match rng.randrange(17):
        case 0:
            job.job_id = word
        case 1:
            job.model = word
        case 2:
            job.sampler = word
        case 3:
            named.scheduler = word
        case 4:
            named.steps = min(number, 2**32 - 1)
        case 5:
            named.denoise = real
        case 6:
            named.start_step, named.end_step = number, rng.choice(NUMBERS)
        case 7:
            job.cfg = real
        case 8:
            job.empty_latent.batch, job.empty_latent.height = number, rng.choice(NUMBERS)
        case 9:
            job.latent_tensor = number
        case 10:
            job.positive.text = number
        case 11:
            job.noise.tensor = number
        case 12:
            job.noise_mask = number
        case 13:
            job.shift = real
        case 14:
            job.schedule.explicit.sigmas.extend(rng.choice(FLOATS) for _ in range(4))
        case 15:
            job.state.CopyFrom(job_pb2.JobState(step=number, latent=number, noise_draws=2**63))
        case _:
            spec = tensor_pb2.TensorSpec(
                data_type=rng.choice(range(7)),  # type: ignore[arg-type] # also unknown ones
                shape=[rng.choice(SIGNED) for _ in range(rng.randint(0, 12))],
                sha256=rng.randbytes(rng.choice((0, 1, 32))),
            )
            job.tensors.append(spec)


def _wrong_chunks(rng: random.Random) -> Request:
    """A sound job with chunks that are too many, too large, out of order or not asked for."""
    job = sampler_pb2.SampleRequest(job=sound_job(rng)).SerializeToString()
    chunks = [
        _chunk(
            rng,
            rng.choice((0, 1, 255, 256, 257, 4096)),
            tensor=rng.choice((0, 1, 2**32 - 1)),
            offset=rng.choice((0, 1, 2**63)),
        )
        for _ in range(rng.randint(1, 5))
    ]
    return Request(SAMPLE, (job, *chunks))


@cache
def _memory(sealed: bool) -> Memory:
    memory = Memory()
    memory.add(WireTensor.from_numpy(np.full((1, 1, 1 << 19), np.nan, np.float32)))
    if sealed:
        memory.seal()
    return memory


def _hostile_memory(rng: random.Random) -> Request:
    """Memory on the server's machine that is not there, not theirs to read, or full of NaN."""
    memory = _memory(rng.random() < 0.5)
    shared = tensor_pb2.SharedTensors(
        pid=rng.choice((os.getpid(), os.getpid(), os.getpid(), 0, 1, 2**32 - 1)),
        fd=rng.choice((memory.fd, memory.fd, memory.fd, 0, 1, 2, 2**32 - 1)),
        token=rng.choice((memory.token, memory.token, rng.randbytes(16), b"")),
        tensors=[
            tensor_pb2.SharedTensor(
                tensor=rng.choice((0, 0, 1, 2**32 - 1)),
                offset=rng.choice((0, 1, 4096, 1 << 21, 2**63, 2**64 - 1)),
            )
            for _ in range(rng.randint(0, 3))
        ],
    )
    room = tensor_pb2.CallMemory(tensors=shared, output=rng.choice((0, 1, 4096, 2**64 - 1)))
    if rng.random() < 0.5:
        job = sound_job(rng)
        job.tensors[0].shape[2] = rng.choice((64, 1 << 19))
        first = sampler_pb2.SampleRequest(job=job, host=host_id(), offered=shared)
        rest = [
            sampler_pb2.SampleRequest(shared=shared),
            sampler_pb2.SampleRequest(memory=room),
        ]
        rng.shuffle(rest)
        return _sample(rng, first, *rest[: rng.randint(0, 2)])
    opened = sampler_pb2.PredictOpen(model="tiny-flux", host=host_id())
    shapes = ([1, 16, 4, 4], [1, 1, 64])
    call = sampler_pb2.PredictCall(
        tensors=[
            tensor_pb2.TensorSpec(data_type=tensor_pb2.DATA_TYPE_F32, shape=shape)
            for shape in shapes
        ],
        timestep=[0.5],
        conditioning=job_pb2.Conditioning(text=1),
    )
    messages = (
        sampler_pb2.PredictRequest(open=opened),
        sampler_pb2.PredictRequest(call=call, memory=room),
    )
    return Request(PREDICT, tuple(m.SerializeToString() for m in messages))


def _hostile_call(rng: random.Random) -> Request:
    """Single transformer calls with wrong shapes, indices and numbers."""
    opened = sampler_pb2.PredictOpen(model=rng.choice(("tiny-flux", *WORDS)))
    call = sampler_pb2.PredictCall(
        call_id=rng.getrandbits(64),
        tensors=[
            tensor_pb2.TensorSpec(
                data_type=tensor_pb2.DATA_TYPE_F32,
                shape=[rng.choice(SIGNED) for _ in range(rng.randint(0, 6))],
            )
            for _ in range(rng.randint(0, 3))
        ],
        x=rng.choice(NUMBERS),
        timestep=[rng.choice(FLOATS) for _ in range(rng.randint(0, 3))],
        conditioning=job_pb2.Conditioning(text=rng.choice(NUMBERS)),
    )
    messages = [
        sampler_pb2.PredictRequest(open=opened).SerializeToString(),
        sampler_pb2.PredictRequest(call=call).SerializeToString(),
    ]
    rng.shuffle(messages)
    return Request(PREDICT, tuple(messages))


def _hostile_pipeline(rng: random.Random) -> Request:
    """Latents to decode that are none, for models that are none."""
    if rng.random() < 0.3:
        prompt = pipeline_pb2.EncodePromptRequest(model=rng.choice(WORDS), prompt="x" * 200_000)
        return Request(ENCODE, (prompt.SerializeToString(),))
    if rng.random() < 0.1:
        return Request(CLUSTER, (cluster_pb2.GetClusterRequest().SerializeToString(),))
    latent = pipeline_pb2.LatentToDecode(
        model=rng.choice(("tiny-flux", *WORDS)),
        latent=tensor_pb2.TensorSpec(
            data_type=tensor_pb2.DATA_TYPE_F32, shape=[rng.choice(SIGNED) for _ in range(4)]
        ),
    )
    return Request(DECODE, (pipeline_pb2.DecodeLatentRequest(latent=latent).SerializeToString(),))


def _silent(rng: random.Random) -> Request:
    """A stream that begins and then says nothing."""
    job = sampler_pb2.SampleRequest(job=sound_job(rng)).SerializeToString()
    return Request(SAMPLE, (job,) if rng.random() < 0.7 else (), silent=True)


def _endless(rng: random.Random) -> Request:
    """A stream that never stops: pieces, calls, jobs or cancels, as fast as they are taken."""
    job = sound_job(rng)
    cancel = sampler_pb2.SampleRequest(cancel=sampler_pb2.CancelJob()).SerializeToString()
    again = sampler_pb2.SampleRequest(job=job).SerializeToString()
    match rng.randrange(5):
        case 0:
            return Request(SAMPLE, (again,), endless=_chunk(rng, 256))
        case 1:
            return Request(SAMPLE, (again,), endless=rng.choice((again, cancel)))
        case 2:
            # Byte by byte, each at its place.
            job.tensors[0].shape[1] = 8192
            first = sampler_pb2.SampleRequest(job=job).SerializeToString()
            drops = tuple(_chunk(rng, 1, offset=i) for i in range(500))
            return Request(SAMPLE, (first, *drops), endless=_chunk(rng, 1))
        case 3:
            calls = _hostile_call(rng).messages
            return Request(PREDICT, calls, endless=calls[-1])
        case _:
            return Request(DECODE, _hostile_pipeline(rng).messages, endless=rng.randbytes(50))
