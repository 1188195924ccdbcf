"""A rank that also knows synthetic transformers; otherwise `gpu_node.node`."""

from __future__ import annotations

import logging
import os

import torch

from bench import flux_shaped, synthetic
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
    dtype = torch_dtype(config.dtype)

    def load(info: ModelInfo) -> torch.nn.Module:
        made = synthetic.make(info.name, dtype)
        if made is None and info.name.startswith(flux_shaped.PREFIX):
            cls = runtime.transformer_class(info.family)
            made = flux_shaped.random_transformer(cls, info.config, device, dtype)
            if os.environ.get(flux_shaped.COMPILE_VARIABLE):
                flux_shaped.compile_blocks(made)
        return load_transformer(info, device=device, dtype=dtype) if made is None else made

    def make_engine() -> tuple[Engine, torch.device]:
        cache = ModelCache(config.models, load, max_loaded=_MAX_LOADED)
        return GroupEngine(cache, device, config.interface), device

    return serve(config.executor, make_engine)
