"""The alternative: a script under torchrun that samples with xfuser, and no service around it.

    torchrun --standalone --nproc-per-node 8 bench/bare.py CONTROL MODELS

Model, conditioning and groups are made once, as such scripts do. Rank 0 then takes jobs, one JSON
line each, from the Unix socket CONTROL, and answers with the seconds from the first step's start to
the latent. What a service adds is what ditmesh takes longer.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


def main(control: str, models: str) -> None:
    """Serve jobs until the socket closes."""
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    start_xfuser(rank, world_size)
    lines = _connect(control) if rank == 0 else None
    loaded: dict[str, Script] = {}
    while True:
        job = [json.loads(lines.readline() or "null")] if lines is not None else [None]
        dist.broadcast_object_list(job)
        if job[0] is None:
            return
        script = loaded.get(job[0]["case"])
        if script is None:
            script = loaded[job[0]["case"]] = Script(Path(models), job[0])
        dist.barrier()
        started = time.perf_counter()
        latent = script.sample(job[0]["seed"])
        seconds = time.perf_counter() - started
        if lines is not None:
            if job[0].get("save"):
                np.save(job[0]["save"], latent.numpy())
            lines.write(json.dumps({"seconds": seconds}) + "\n")
            lines.flush()


class Script:
    """What a user of xfuser writes: a transformer, a conditioning, and Euler's method."""

    @torch.no_grad()
    def __init__(self, models: Path, job: dict[str, Any]) -> None:
        self.dtype = getattr(torch, job["dtype"])
        self.transformer = _transformer(models, job["model"], self.dtype)
        self.sigmas = torch.tensor(job["sigmas"], dtype=torch.float32)
        self.shape = tuple(job["shape"])
        stored = np.load(job["conditioning"])
        text = torch.from_numpy(stored["text"]).to(self.dtype)
        rows, columns = self.shape[2] // 2, self.shape[3] // 2
        image_ids = torch.zeros(rows, columns, 3)
        image_ids[..., 1] = torch.arange(rows)[:, None]
        image_ids[..., 2] = torch.arange(columns)
        self.fixed = {
            "encoder_hidden_states": text,
            "pooled_projections": torch.from_numpy(stored["pooled"]).to(self.dtype),
            "guidance": torch.full((self.shape[0],), 3.5) if job["guidance"] else None,
            "txt_ids": torch.zeros(text.shape[1], 3),
            "img_ids": image_ids.reshape(-1, 3),
        }

    @torch.no_grad()
    def sample(self, seed: int) -> Tensor:
        """The latent [B,C,H,W] for a seed, by Euler's method on dx/dsigma = velocity."""
        batch, channels, height, width = self.shape
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.shape, generator=generator)
        tokens = noise.reshape(batch, channels, height // 2, 2, width // 2, 2)
        x = tokens.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)
        for sigma, sigma_next in zip(self.sigmas[:-1], self.sigmas[1:], strict=True):
            timestep = sigma.expand(batch).to(self.dtype)
            (velocity,) = self.transformer(
                hidden_states=x.to(self.dtype), timestep=timestep, return_dict=False, **self.fixed
            )
            x = x + (sigma_next - sigma) * velocity.float()
        tokens = x.reshape(batch, height // 2, width // 2, channels, 2, 2)
        return tokens.permute(0, 3, 1, 4, 2, 5).reshape(self.shape)


def start_xfuser(rank: int, world_size: int) -> None:
    """Start as xfuser itself does, Ulysses over all ranks; on a CPU it needs some help."""
    from gpu_node.parallel.xfuser_setup import prepare

    cuda = torch.cuda.is_available()
    prepare("cuda" if cuda else "cpu")
    from xfuser.core.distributed import (
        group_coordinator,
        init_distributed_environment,
        initialize_model_parallel,
        parallel_state,
        runtime_state,
    )

    backend = "nccl" if cuda else "gloo"
    # Without CUDA it finds no long-context attention, and then makes no sequence groups.
    parallel_state.HAS_LONG_CTX_ATTN = group_coordinator.HAS_LONG_CTX_ATTN = True
    init_distributed_environment(rank=rank, world_size=world_size, backend=backend)
    initialize_model_parallel(
        sequence_parallel_degree=world_size, ulysses_degree=world_size, backend=backend
    )
    # What its attention reads of the state that a pipeline would have made.
    runtime_state._RUNTIME = SimpleNamespace(
        fp8_comms=None,
        attention_backend="plain",
        split_text_embed_in_sp=True,
        num_pipeline_patch=1,
        max_condition_sequence_length=0,
        runtime_config=SimpleNamespace(use_spargeattn_head_balance=False),
    )
    from xfuser.core.distributed.attention_backend import ATTENTION_FUNCTION_REGISTRY

    ATTENTION_FUNCTION_REGISTRY["plain"] = _attention


def _attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """With the log-sum-exp, which xfuser's ring asks for even where it has a single rank."""
    aten = torch.ops.aten
    if query.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    else:
        out, lse, *_ = aten._scaled_dot_product_flash_attention(query, key, value)
    return out, lse


class _Sleeper(nn.Module):
    """`bench.synthetic` behind the arguments of diffusers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, return_dict: bool = False, **inputs: Tensor) -> tuple[Tensor]:
        output: tuple[Tensor] = self.module(**inputs)
        return output


def _transformer(models: Path, name: str, dtype: torch.dtype) -> nn.Module:
    from xfuser.model_executor.models.transformers.transformer_flux import (
        xFuserFlux1Transformer2DWrapper,
    )

    from bench import synthetic

    made = synthetic.make(name, dtype)
    if made is not None:
        return _Sleeper(made)
    folder = models / name / "transformer"
    module: nn.Module = xFuserFlux1Transformer2DWrapper.from_pretrained(folder, torch_dtype=dtype)
    return module.eval()


def _connect(control: str) -> Any:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(control)
    return connection.makefile("rw")


if __name__ == "__main__":
    main(*sys.argv[1:3])
