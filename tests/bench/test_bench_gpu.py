"""The GPU suite without a GPU: it says what it needs, and its parts run on small models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import flux_shaped
from bench.measure import Options, Skipped
from bench.suites import gpu

SMALL = replace(
    flux_shaped.FLUX_DEV,
    num_layers=1,
    num_single_layers=1,
    num_heads=2,
    head_dim=16,
    text_dim=32,
    pooled_dim=8,
    axes_dims=(4, 6, 6),
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_skipped_with_a_reason(tmp_path: Path) -> None:
    """Nothing is started, nothing is written."""
    with pytest.raises(Skipped, match="CUDA"):
        gpu.run(Options(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_diffusers_own_pipeline_samples_without_encoders() -> None:
    """From a conditioning to a latent, in any size."""
    pipeline = gpu.Pipeline(SMALL, torch.device("cpu"), text_tokens=4, steps=2)
    assert pipeline.step_ms(64, 96) > 0
    assert gpu.first_and_later(lambda: pipeline.step_ms(32, 32))[1] > 0
