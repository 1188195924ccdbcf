"""Tiny Flux models on disk, in both layouts, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.tiny_flux import CONFIG, SINGLE_FILE


@pytest.fixture(scope="session")
def diffusers_model() -> FluxTransformer2DModel:
    """A random Flux as diffusers builds it, fp32."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(**CONFIG).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def pipeline_folder(tmp_path: Path, diffusers_model: FluxTransformer2DModel) -> Path:
    """A pipeline folder with `transformer/`, as `FluxPipeline.save_pretrained` lays it out."""
    folder = tmp_path / "models" / "portraits"
    diffusers_model.save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    return folder


@pytest.fixture
def rewrite(tmp_path: Path) -> Callable[..., Path]:
    """Writes the golden single file again, its tensors changed by a function."""

    def write(change: Callable[[dict[str, Tensor]], None], name: str = "changed") -> Path:
        tensors = load_file(SINGLE_FILE)
        change(tensors)
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        return path

    return write
