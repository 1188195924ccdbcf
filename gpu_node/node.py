"""One rank's process: its engine behind the executor's server."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from ditmesh.errors import InvalidRequest
from ditmesh.executor.device import torch_dtype
from ditmesh.executor.engine import Engine
from ditmesh.executor.models import ModelCache
from ditmesh.executor.server import ExecutorConfig, serve
from ditmesh.models.info import ModelInfo
from ditmesh.security import UnsafeListener
from ditmesh.supervisor import MISCONFIGURED
from gpu_node.engine import GroupEngine
from gpu_node.execution import Execution
from gpu_node.parallel import runtime
from gpu_node.parallel.model import load_transformer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeConfig:
    """What one rank is told."""

    models: Path
    device: str
    """"cpu" or "cuda:0"."""
    execution: Execution
    interface: str
    max_loaded: int
    executor: ExecutorConfig
    log_level: str = "INFO"


def run(config: NodeConfig) -> int:
    """Serve until told to stop; returns the exit code, MISCONFIGURED when it cannot run so."""
    logging.basicConfig(
        level=config.log_level, format=f"%(asctime)s node {config.executor.listen} %(message)s"
    )
    try:
        return _serve(config)
    except (InvalidRequest, UnsafeListener) as error:
        log.critical("%s", error)
        return MISCONFIGURED


def _serve(config: NodeConfig) -> int:
    """Raises InvalidRequest and UnsafeListener for what its configuration asks in vain."""
    device = torch.device(config.device)
    dtype = torch_dtype(config.execution.dtype)
    runtime.prepare(device.type)
    runtime.check(config.execution, device, dtype)

    def load(info: ModelInfo) -> torch.nn.Module:
        return load_transformer(info, device=device, dtype=dtype, execution=config.execution)

    def make_engine() -> tuple[Engine, torch.device]:
        cache = ModelCache(config.models, load, max_loaded=config.max_loaded)
        return GroupEngine(cache, device, config.interface), device

    return serve(config.executor, make_engine)
