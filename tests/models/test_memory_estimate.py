"""The memory estimate: what it is made of, and that it holds against what torch allocates."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ditmesh.models.family import Conditioning
from ditmesh.models.flux import Flux
from ditmesh.models.flux_transformer import FluxTransformer
from ditmesh.models.info import inspect
from ditmesh.models.memory import activations_bytes, memory_bytes, weights_bytes
from tests.models.tiny_flux import SINGLE_FILE


def test_weights_are_counted_in_the_dtype_of_use() -> None:
    """Stored bf16 weights take twice their file's bytes when they run in fp32."""
    info = inspect(SINGLE_FILE)
    assert weights_bytes(info, "bfloat16") == info.weight_bytes
    assert weights_bytes(info, "float32") == 2 * info.weight_bytes
    assert memory_bytes(info, "float32") > weights_bytes(info, "float32")


def test_ranks_share_activations_but_not_weights() -> None:
    """Ulysses over eight ranks needs an eighth; ring also holds the ring's keys and values."""
    info = inspect(SINGLE_FILE)

    def activations(ulysses: int, ring: int) -> int:
        return activations_bytes(
            info,
            "bfloat16",
            batch=1,
            height=64,
            width=64,
            text_tokens=512,
            ulysses=ulysses,
            ring=ring,
        )

    assert activations(8, 1) * 8 == activations(1, 1)
    assert activations(1, 8) > activations(8, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_estimate_covers_what_torch_allocates(dtype: torch.dtype) -> None:
    """The peak of a real forward pass is below the estimate, and above half of it."""
    module = FluxTransformer(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        axes_dims_rope=(8, 28, 28),
    )
    module = module.eval() if dtype == torch.float32 else module.eval().bfloat16()
    cond = Conditioning(torch.randn(1, 128, 64), torch.randn(1, 32))
    flux = Flux()
    layout = flux.layout((1, 16, 48, 48))
    with torch.profiler.profile(profile_memory=True) as profiler:
        inputs = flux.inputs(module, layout, cond)
        arranged = layout.arrange(torch.randn(layout.shape, dtype=dtype))
        flux.forward(module, arranged, torch.tensor([0.5]), inputs)
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    info = dataclasses.replace(inspect(SINGLE_FILE), num_heads=4, head_dim=64)
    estimate = activations_bytes(
        info,
        str(dtype).removeprefix("torch."),
        batch=1,
        height=48,
        width=48,
        text_tokens=128,
    )
    assert estimate / 2 < peak < estimate
