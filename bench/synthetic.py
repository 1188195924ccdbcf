"""A transformer of a given time: it sleeps, and otherwise handles tensors as Flux does.

It shares the image's tokens with the ranks of xfuser's sequence group and gathers the result, so
that ranks keep step. Both a ditmesh node and a bare script on xfuser can run it.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

CALLS_VARIABLE = "DITMESH_BENCH_CALLS"
"""File that rank 0 appends the start and end of each forward pass to, in ns of the monotonic clock;
all processes of a machine share that clock."""

TEXT_TOKENS, TEXT_WIDTH, POOLED_WIDTH = 512, 4096, 768
LATENT = (1, 16, 128, 128)
"""Of a picture of 1024x1024."""

_CALL = struct.Struct("<qq")
_NAME = "synthetic-"
_TOKEN_WIDTH = 64
_CONFIG = {
    "in_channels": _TOKEN_WIDTH,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 8,
    "joint_attention_dim": TEXT_WIDTH,
    "pooled_projection_dim": POOLED_WIDTH,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}


class SyntheticTransformer(nn.Module):
    """Takes what Flux's transformer takes; each forward pass sleeps for `step_s` seconds."""

    def __init__(self, step_s: float) -> None:
        super().__init__()
        self.step_s = step_s
        # What Flux's adapter looks at.
        self.x_embedder = nn.Linear(_TOKEN_WIDTH, 8)
        linear = SimpleNamespace(in_features=POOLED_WIDTH)
        self.time_text_embed = SimpleNamespace(
            text_embedder=SimpleNamespace(linear_1=linear), guidance_embedder=None
        )
        self._calls = -1

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor]:
        """Velocity [B,N,64]: a tenth of the input, shifted a little by the conditioning."""
        from xfuser.core.distributed.parallel_state import get_sp_group

        started = time.monotonic_ns()
        sequence = get_sp_group()
        share = hidden_states.chunk(sequence.world_size, dim=1)[sequence.rank_in_group]
        shift = 1e-3 * (encoder_hidden_states[:, :1].mean() + pooled_projections.mean())
        if self.step_s:
            # Sleeping for no time takes some all the same.
            time.sleep(self.step_s)
        output = (0.1 * share + shift).contiguous()
        if sequence.world_size > 1:
            output = sequence.all_gather(output, dim=1)
        if sequence.rank_in_group == 0 and CALLS_VARIABLE in os.environ:
            self._note(started)
        return (output,)

    def _note(self, started: int) -> None:
        if self._calls < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._calls = os.open(os.environ[CALLS_VARIABLE], flags, 0o600)
        os.write(self._calls, _CALL.pack(started, time.monotonic_ns()))


def read_calls(path: Path) -> list[tuple[int, int]]:
    """Start and end of every forward pass of rank 0 so far."""
    data = path.read_bytes() if path.exists() else b""
    return list(_CALL.iter_unpack(data[: len(data) // _CALL.size * _CALL.size]))


def model_name(step_ms: int) -> str:
    """The model whose forward pass takes so long."""
    return f"{_NAME}{step_ms}"


def make(name: str, dtype: torch.dtype) -> nn.Module | None:
    """The transformer that `model_name` names; None for any other model."""
    if not name.startswith(_NAME):
        return None
    module = SyntheticTransformer(int(name.removeprefix(_NAME)) / 1e3)
    return module.to(dtype).eval().requires_grad_(False)


def write_models(folder: Path, step_ms: Sequence[int]) -> None:
    """Fill a models folder: one small file of weights, that nobody reads, under every name."""
    from diffusers import FluxTransformer2DModel

    weights = folder / ".weights"
    FluxTransformer2DModel(**_CONFIG).to(torch.bfloat16).save_pretrained(weights)
    for ms in step_ms:
        (folder / model_name(ms)).symlink_to(weights, target_is_directory=True)
