"""Compiling a transformer's blocks, once and for every picture size.

Blocks repeat, so one compilation of a kind serves all of its kind, in later loads too. Sizes are
symbols in what is compiled. torch specialises on a size of one, so a single picture and a batch
are compiled apart; both are when the model is loaded, for in a job every other rank would wait,
and the group's timeout would run. Import after `xfuser_setup.prepare`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from ditmesh.errors import ExecutorFailed
from gpu_node.parallel import xfuser_state
from gpu_node.parallel.transformer import ExactFlux

log = logging.getLogger(__name__)

IMAGE_TOKENS = 4096
TEXT_TOKENS = 512
"""A picture of 1024x1024 on one rank: the size for which kernels are laid out, not a limit."""
_BATCHES = (1, 2)
_WORKERS = 4


def compile_blocks(
    transformer: ExactFlux, *, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile all that a job can need of `transformer`, and let no job compile any more.

    Args:
        transformer: with its weights, on the device that it will run on.
        backend: torch.compile's.

    Raises:
        ExecutorFailed: there is no working compiler, or the blocks are not one graph each.
    """
    started = time.monotonic()
    if backend == "inductor":
        _limit_workers()
    transformer.compile_repeated_blocks(fullgraph=True, dynamic=True, backend=backend)
    transformer.compiled = False
    try:
        for batch in _BATCHES:
            _run_once(transformer, batch)
    except TorchDynamoException as error:
        # Its first paragraph; advice on debugging torch follows.
        why = " ".join(str(error).strip().split("\n\n")[0].split())
        raise ExecutorFailed(
            f"--compile: compiling failed: {why}; start the node without it"
        ) from error
    transformer.compiled = True
    log.info("compiled in %.1f s", time.monotonic() - started)


@torch.no_grad()
def _run_once(transformer: ExactFlux, batch: int) -> None:
    """A forward pass by itself, whatever group this process is in."""
    config: Any = transformer.config
    device, dtype = transformer.device, transformer.dtype

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    with xfuser_state.installed(xfuser_state.alone(0, device)):
        transformer(
            hidden_states=zeros(batch, IMAGE_TOKENS, config.in_channels),
            encoder_hidden_states=zeros(batch, TEXT_TOKENS, config.joint_attention_dim),
            pooled_projections=zeros(batch, config.pooled_projection_dim),
            timestep=torch.ones(batch, device=device),
            img_ids=torch.zeros(IMAGE_TOKENS, 3, device=device),
            txt_ids=torch.zeros(TEXT_TOKENS, 3, device=device),
            guidance=torch.ones(batch, device=device) if config.guidance_embeds else None,
        )


def _limit_workers() -> None:
    """By default a process takes as many as there are cores, and every rank would."""
    from torch._inductor import config

    config.compile_threads = min(config.compile_threads or _WORKERS, _WORKERS)
