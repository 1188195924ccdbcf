"""A rank that also knows synthetic transformers; otherwise `gpu_node.node`."""

from __future__ import annotations

import logging

import torch

from bench import synthetic
from ditmesh.executor.device import torch_dtype
from ditmesh.executor.engine import Engine
from ditmesh.executor.models import ModelCache
from ditmesh.executor.server import serve
from ditmesh.models.info import ModelInfo
from gpu_node.engine import GroupEngine
from gpu_node.node import NodeConfig
from gpu_node.parallel import runtime
from gpu_node.parallel.model import load_transformer

_MAX_LOADED = 16


def run(config: NodeConfig) -> int:
    """Serve until told to stop; returns the exit code."""
    logging.basicConfig(
        level=config.log_level, format=f"%(asctime)s node {config.executor.listen} %(message)s"
    )
    device = torch.device(config.device)
    runtime.prepare(device.type)
    dtype = torch_dtype(config.execution.dtype)

    def load(info: ModelInfo) -> torch.nn.Module:
        made = synthetic.make(info.name, dtype)
        if made is not None:
            return made
        return load_transformer(info, device=device, dtype=dtype, execution=config.execution)

    def make_engine() -> tuple[Engine, torch.device]:
        cache = ModelCache(config.models, load, max_loaded=_MAX_LOADED)
        return GroupEngine(cache, device, config.interface), device

    return serve(config.executor, make_engine)
