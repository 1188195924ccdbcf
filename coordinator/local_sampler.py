"""The coordinator's own sampler: a process of its own, so that a forward pass stalls no stream."""

from __future__ import annotations

import logging
import resource
from dataclasses import dataclass
from pathlib import Path

import grpc
import torch

from coordinator.pipeline_worker import PipelineWorker
from ditmesh import chunk_messages
from ditmesh.executor.device import torch_dtype
from ditmesh.executor.engine import Engine, LocalEngine
from ditmesh.executor.models import ModelCache
from ditmesh.executor.server import ExecutorConfig, serve
from ditmesh.models.info import ModelInfo
from ditmesh.models.loading import load
from ditmesh.v1 import pipeline_pb2_grpc


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
    """Most memory of its own that the process may have; None: no limit."""


def run(config: LocalSamplerConfig) -> int:
    """Serve until told to stop; returns the exit code."""
    logging.basicConfig(
        level=config.log_level, format="%(asctime)s local sampler %(levelname)s %(message)s"
    )
    device = torch.device(config.device)
    if config.memory_bytes is not None:
        # What is beyond fails in the job that asks for it, and the machine does not swap.
        resource.setrlimit(resource.RLIMIT_DATA, (config.memory_bytes, config.memory_bytes))

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
            config.executor.limits.max_request_bytes,
        )
        pipeline_pb2_grpc.add_PipelineServiceServicer_to_server(
            worker, chunk_messages.server(server)
        )

    return serve(config.executor, make_engine, more=add_pipelines, preload=config.preload)
