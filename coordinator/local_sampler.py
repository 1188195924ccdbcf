"""The coordinator's own sampler: a process of its own, so that a forward pass stalls no stream."""

from __future__ import annotations

import logging
import resource
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import torch

from coordinator.services.pipeline_worker import PipelineWorker
from ditmesh import chunk_messages
from ditmesh.executor.device import torch_dtype
from ditmesh.executor.engine import Engine, LocalEngine
from ditmesh.executor.models import ModelCache
from ditmesh.executor.server import ExecutorConfig, serve
from ditmesh.models.info import ModelInfo
from ditmesh.models.loading import load
from ditmesh.v1 import pipeline_pb2_grpc

# Of a process with a limit, where what is kept counts.
_KEPT_BYTES = 4 << 20


@dataclass(frozen=True)
class LocalSamplerConfig:
    """What the local sampler is told."""

    models: Path
    device: str
    dtype: str
    max_loaded: int
    executor: ExecutorConfig
    log_level: str = "INFO"
    preload: str | None = None
    """Model to load at once; None: each when it is first needed."""
    memory_bytes: int | None = None
    """Most memory that the process may have: all that it can write to (RLIMIT_DATA), which includes
    tensors that it reads from shared memory and the little that it keeps when it is freed. None:
    no limit.
    """


def run(config: LocalSamplerConfig) -> int:
    """Serve until told to stop; returns the exit code."""
    logging.basicConfig(
        level=config.log_level, format="%(asctime)s local sampler %(levelname)s %(message)s"
    )
    device = torch.device(config.device)
    executor = config.executor
    if config.memory_bytes is not None:
        # What is beyond fails in the job that asks for it, and the machine does not swap.
        resource.setrlimit(resource.RLIMIT_DATA, (config.memory_bytes, config.memory_bytes))
        executor = replace(executor, kept_bytes=_KEPT_BYTES)

    def load_transformer(info: ModelInfo) -> torch.nn.Module:
        return load(info, device=device, dtype=torch_dtype(config.dtype))

    def make_engine() -> tuple[Engine, torch.device]:
        cache = ModelCache(config.models, load_transformer, max_loaded=config.max_loaded)
        return LocalEngine(cache), device

    def add_pipelines(server: grpc.Server, engine: Engine) -> None:
        worker = PipelineWorker(
            engine.cache.catalogue,
            device,
            torch_dtype(config.dtype),
            executor.limits.max_request_bytes,
        )
        pipeline_pb2_grpc.add_PipelineServiceServicer_to_server(
            worker, chunk_messages.server(server)
        )

    return serve(executor, make_engine, more=add_pipelines, preload=config.preload)
