"""The GPU suite without a GPU: it says what it needs, and its parts run on small models."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from bench import flux_shaped
from bench.measure import Options, Skipped
from bench.results import Comparison
from bench.suites import gpu
from ditmesh.cli.processes import LocalCluster
from ditmesh.models.info import inspect
from ditmesh.options import ATTENTION

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


def test_variants_are_options_of_the_product() -> None:
    """Each is a set of a local cluster's fields; both sizes are measured eager and compiled."""
    known = {field.name for field in fields(LocalCluster)}
    for variant in gpu.VARIANTS:
        assert variant.options.keys() <= known
        assert variant.options.get("attention", "auto") in ATTENTION
    sizes = {variant.name: variant.sizes for variant in gpu.VARIANTS}
    assert sizes["eager"] == sizes["compiled"] == (1024, 2048)


def test_goals_are_read_from_the_rounds() -> None:
    """Never slower than diffusers, 1.4 times as fast when compiled, no wait at a new size."""
    eager = Comparison("", "ms a step", {"ditmesh": [99.0], gpu._OWN: [100.0]}, baseline=gpu._OWN)
    times = {"ditmesh": [60.0], gpu._OWN: [100.0], gpu._OWN_COMPILED: [50.0]}
    compiled = Comparison("", "ms a step", times, baseline=gpu._OWN)
    rows = [("eager", 1.0, 1.0, 9.0, 1.0), ("compiled", 1.0, 1.0, 105.0, 100.0)]
    found = gpu.goals({("eager", 1024): eager, ("compiled", 1024): compiled}, rows)
    assert [round(goal.measured, 2) for goal in found] == [0.99, 1.2, 1.67, 1.05]
    assert [goal.met for goal in found] == [True, False, True, True]


def test_random_weights_are_those_of_a_new_model(tmp_path: Path) -> None:
    """The file can be loaded, and its weights are as large as torch's own."""
    flux_shaped.write_model(tmp_path / "flux", SMALL, torch.device("cpu"))
    pipeline = gpu.Pipeline(inspect(tmp_path / "flux"), torch.device("cpu"), backend="eager")
    weight = pipeline._pipeline.transformer.context_embedder.weight.float()
    assert weight.std() == pytest.approx((3 * SMALL.text_dim) ** -0.5, rel=0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_diffusers_own_pipeline_samples_without_encoders(tmp_path: Path) -> None:
    """From a conditioning to a latent, in any size, eager and compiled."""
    flux_shaped.write_model(tmp_path / "flux", SMALL, torch.device("cpu"))
    info = inspect(tmp_path / "flux")
    pipeline = gpu.Pipeline(info, torch.device("cpu"), text_tokens=4, steps=2, backend="eager")
    assert pipeline.step_ms(64, 96) > 0
    assert pipeline.step_ms(64, 96, compiled=True) > 0
    assert gpu.first_and_later(lambda: pipeline.step_ms(32, 32))[1] > 0
