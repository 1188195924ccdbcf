"""An ordinary MODEL is recognised by its weights, never by a guess."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clients.comfyui_node.fingerprint import PREFIX, config_of, model_fingerprint
from ditmesh.models.info import inspect

from .fakes import Patcher

CHECKPOINT = Path(__file__).parents[2] / "golden" / "tiny_flux_bfl.safetensors"


class Base:
    """ComfyUI's model around the transformer."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights

    def state_dict(self) -> dict[str, torch.Tensor]:
        """As torch has it, with what else the model holds."""
        named = {PREFIX + name: value for name, value in self.weights.items()}
        return {**named, "model_sampling.sigmas": torch.ones(3)}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """As the file holds them."""
    return load_file(CHECKPOINT)


def patcher(weights: dict[str, torch.Tensor], **changes: Any) -> Patcher:
    return Patcher(model=Base(weights), **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_in_full_precision_has_the_clusters_fingerprint(
    weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    """What the cluster computes from its file, ComfyUI computes from memory."""
    cast = {name: value.to(dtype) for name, value in weights.items()}
    assert model_fingerprint(patcher(cast)) == inspect(CHECKPOINT).fingerprint


def test_another_weight_is_another_model(weights: dict[str, torch.Tensor]) -> None:
    """A fine-tune that changes one sampled element is not recognised."""
    name = "single_blocks.0.linear1.weight"
    changed = {**weights, name: weights[name].clone()}
    changed[name][0, 0] += 0.125
    assert model_fingerprint(patcher(changed)) != inspect(CHECKPOINT).fingerprint


def test_a_merged_lora_does_not_change_the_model(weights: dict[str, torch.Tensor]) -> None:
    """ComfyUI merges into its weights and keeps the originals aside; those count."""
    name = "single_blocks.0.linear1.weight"
    merged = {**weights, name: weights[name] + 1}
    aside = {PREFIX + name: SimpleNamespace(weight=weights[name])}
    assert model_fingerprint(patcher(merged, backup=aside)) == inspect(CHECKPOINT).fingerprint


def test_quantised_weights_are_not_the_same_model(weights: dict[str, torch.Tensor]) -> None:
    """Their pictures differ, so they have no fingerprint."""
    name = "img_in.weight"
    quantised = {**weights, name: weights[name].to(torch.float8_e4m3fn)}
    assert model_fingerprint(patcher(quantised)) == ""


def test_another_architecture_is_not_recognised(weights: dict[str, torch.Tensor]) -> None:
    """With a weight more, a weight less, or none of Flux's at all."""
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    assert config_of(shapes) is not None
    assert config_of({**shapes, "extra.weight": (1,)}) is None
    assert config_of({k: v for k, v in shapes.items() if k != "img_in.bias"}) is None
    assert config_of({"input_blocks.0.weight": (4, 4)}) is None
