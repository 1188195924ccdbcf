"""The asyncio client."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from ditmesh import chunk_messages, telemetry
from ditmesh.aio_status import CallStatus
from ditmesh.client import pipeline
from ditmesh.client.aio.handle import AsyncJobHandle
from ditmesh.client.aio.outbox import Outbox
from ditmesh.client.aio.predict import AsyncPredictStream
from ditmesh.client.cluster import ClusterSnapshot, read_cluster
from ditmesh.client.conditioning import TensorLike
from ditmesh.client.connection import DEFAULT_ADDRESS, TLS, Connection, translated
from ditmesh.client.conversation import SampleConversation
from ditmesh.client.events import Event, Progress, SampleResult
from ditmesh.client.job import Fallback, JobOptions, build_job
from ditmesh.client.prediction import PredictTarget
from ditmesh.client.retry import Attempts, RetryPolicy
from ditmesh.client.sharing import Sharing
from ditmesh.client.weights import WeightPatch
from ditmesh.tensors import WireTensor
from ditmesh.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    sampler_pb2_grpc,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


class AsyncClient:
    """A connection to a coordinator, made on the event loop that it lives on.

    The methods are those of `ditmesh.client.Client`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        tls: TLS | None = None,
        token: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 0,
        connect_s: float = 10.0,
        reattach_s: float = 30.0,
    ) -> None:
        """For the arguments see `Connection` and `RetryPolicy`."""
        retry = RetryPolicy(retries, connect_s, reattach_s)
        self._connection = Connection(address, tls, token, timeout_s, retry)
        options = self._connection.channel_options
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options)
        else:
            self._channel = grpc.aio.secure_channel(address, tls.credentials(), options)
        calls = chunk_messages.channel(self._channel)
        self._sampler = sampler_pb2_grpc.SamplerServiceStub(calls)
        self._pipeline = pipeline_pb2_grpc.PipelineServiceStub(calls)
        self._cluster = cluster_pb2_grpc.ClusterServiceStub(self._channel)
        self._sharing = Sharing()
        self._handles: weakref.WeakSet[AsyncJobHandle] = weakref.WeakSet()

    async def sample(
        self,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
        deadline_s: float | None = None,
        **options: Unpack[JobOptions],
    ) -> SampleResult:
        """Sample and wait for the result. `options` are those of `JobOptions`.

        `on_event` is called with every event, `on_progress` with every step.
        An exception that comes meanwhile, such as the cancellation of the calling task, cancels
        the job before it is raised. The job fails when `deadline_s` seconds are over.
        """
        async with self.start(deadline_s=deadline_s, **options) as job:
            async for event in job:
                if on_event is not None:
                    on_event(event)
                if on_progress is not None and isinstance(event, Progress):
                    on_progress(event)
            return await job.result()

    def start(
        self, *, deadline_s: float | None = None, **options: Unpack[JobOptions]
    ) -> AsyncJobHandle:
        """Start a job and go on; what becomes of it, its handle tells."""
        ahead = self._sharing.write_ahead(options.get("positive"), options.get("negative"))
        conversation = SampleConversation(
            build_job(options),
            latent_format=options.get("latent_format"),
            deadline_s=deadline_s,
            retry=self._connection.retry,
            sharing=self._sharing,
            ahead=ahead,
        )
        handle = AsyncJobHandle(self._sampler.Sample, self._connection, conversation)
        self._handles.add(handle)
        return handle

    def predict_stream(
        self,
        model: str,
        *,
        fallback: Fallback = "allow",
        weight_patches: Sequence[WeightPatch] = (),
    ) -> AsyncPredictStream:
        """Single transformer calls, for callers that keep their own sampling loop."""
        target = PredictTarget(model, fallback, weight_patches)
        return AsyncPredictStream(self._sampler.Predict, self._connection, target)

    async def cluster(self) -> ClusterSnapshot:
        """Nodes, group, queue and models at this moment."""
        with translated():
            answer = await _aio(self._cluster.GetCluster)(
                cluster_pb2.GetClusterRequest(),
                timeout=self._connection.timeout_s,
                metadata=self._connection.metadata(begins_trace=False),
            )
        return read_cluster(answer)

    async def encode_prompt(
        self, model: str, prompt: str, *, hashes_only: bool = False
    ) -> pipeline.EncodedPrompt:
        """A prompt's conditioning, for models that bring their text encoders.

        With `hashes_only` it stays with the server, for jobs that are sent soon.
        """

        async def encode() -> pipeline.EncodedPrompt:
            exchange = pipeline.EncodeExchange(model, prompt, hashes_only=hashes_only)
            async for response in _aio(self._pipeline.EncodePrompt)(
                exchange.request,
                timeout=self._connection.timeout_s,
                metadata=self._connection.metadata(),
            ):
                exchange.receive(response)
            return exchange.finish()

        with telemetry.client_span(pipeline.ENCODE, model=model):
            return await self._patiently(encode)

    async def decode(self, model: str, latent: TensorLike) -> npt.NDArray[np.float32]:
        """Pictures [B, H, W, 3] from 0 to 1 of a model-space latent [B, C, H, W]."""
        return pipeline.float_images(
            await self._decode(model, latent, pipeline_pb2.IMAGE_FORMAT_F32)
        )

    async def decode_png(self, model: str, latent: TensorLike) -> list[bytes]:
        """A PNG file for each picture of a model-space latent [B, C, H, W]."""
        return pipeline.png_files(await self._decode(model, latent, pipeline_pb2.IMAGE_FORMAT_PNG))

    async def close(self) -> None:
        """Disconnect. Jobs that still run are left: the server ends them after a while."""
        for handle in list(self._handles):
            await handle.close()
        self._sharing.close()
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _decode(
        self, model: str, latent: TensorLike, image_format: pipeline_pb2.ImageFormat
    ) -> tuple[WireTensor, ...]:
        async def decode() -> tuple[WireTensor, ...]:
            exchange = pipeline.DecodeExchange(model, latent, image_format)
            outbox = Outbox(exchange.opening())
            call = _aio(self._pipeline.DecodeLatent)(
                aiter(outbox),
                timeout=self._connection.timeout_s,
                metadata=self._connection.metadata(),
            )
            status = CallStatus(call)
            try:
                async for response in call:
                    outbox.send(exchange.receive(response))
            except grpc.RpcError as failure:
                raise await status.of(failure) from failure
            finally:
                outbox.close()
            return exchange.finish()

        with telemetry.client_span(pipeline.DECODE, model=model):
            return await self._patiently(decode)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call gives, tried again as the policy says."""
        attempts = Attempts(self._connection.retry)
        while True:
            try:
                return await call()
            except grpc.RpcError as failure:
                await asyncio.sleep(attempts.pause_after(failure))


def _aio(method: object) -> Any:
    """A stub's method as it is on an asyncio channel: the stubs' types know only one of both."""
    return cast(Any, method)
