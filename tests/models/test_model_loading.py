"""Weights in the module: the right ones, in the right places, in either layout."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditmesh.errors import DamagedModel
from ditmesh.models.flux_checkpoint import FluxConfig, diffusers_shapes, single_file_sources
from ditmesh.models.info import inspect
from ditmesh.models.loading import diffusers_arguments, load
from tests.models.tiny_flux import SINGLE_FILE


def test_diffusers_folder_gives_the_saved_weights(
    pipeline_folder: Path, diffusers_model: FluxTransformer2DModel
) -> None:
    """Every parameter equals the one that was saved, frozen and in eval mode."""
    module = load(inspect(pipeline_folder), device="cpu", dtype=torch.float32)
    saved = diffusers_model.state_dict()
    loaded = module.state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("guidance", [True, False])
def test_single_file_names_are_the_table_that_diffusers_has(tmp_path: Path, guidance: bool) -> None:
    """The layout's table names each parameter of diffusers' module once, with its shape."""
    config = FluxConfig(16, 2, 3, 4, 32, 24, 12, guidance, (4, 14, 14))
    with torch.device("meta"):
        module = FluxTransformer2DModel(**diffusers_arguments(config))
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert diffusers_shapes(config) == shapes
    assert single_file_sources(config).keys() == shapes.keys()


def test_every_row_of_a_single_file_is_used_once() -> None:
    """The fused matrices are taken apart without a gap or an overlap."""
    config = inspect(SINGLE_FILE).config
    tensors = load_file(SINGLE_FILE)
    used = {name: torch.zeros(len(tensor), dtype=torch.int64) for name, tensor in tensors.items()}
    for source in single_file_sources(config).values():
        for name, start, stop in source.parts:
            used[name][start:stop] += 1
    assert all(bool((count == 1).all()) for count in used.values())


def test_dtype_of_choice(tmp_path: Path) -> None:
    """Stored bf16 becomes fp32 without a change of value, and fp8 becomes bf16."""
    module = load(inspect(SINGLE_FILE), device="cpu", dtype=torch.float32)
    stored = load_file(SINGLE_FILE)
    assert torch.equal(module.x_embedder.weight, stored["img_in.weight"].float())
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in stored.items()}
    save_file(small, tmp_path / "fp8.safetensors")
    module = load(inspect(tmp_path / "fp8.safetensors"), device="cpu", dtype=torch.bfloat16)
    assert torch.equal(module.x_embedder.weight, small["img_in.weight"].bfloat16())


def test_a_model_that_changed_after_inspection(
    rewrite: Callable[..., Path],
) -> None:
    """Weights that no longer fit what was inspected are refused, not half loaded."""
    path = rewrite(lambda tensors: None)
    info = inspect(path)
    with pytest.raises(DamagedModel, match="has changed"):
        load(
            dataclasses.replace(info, config=dataclasses.replace(info.config, text_dim=65)),
            device="cpu",
            dtype=torch.float32,
        )
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(DamagedModel, match="truncated"):
        load(info, device="cpu", dtype=torch.float32)


def test_a_class_that_is_no_flux() -> None:
    """A transformer class with other parameters is refused with the first that differs."""

    class Odd(nn.Module):
        def __init__(self, **config: object) -> None:
            super().__init__()
            self.only = nn.Linear(2, 2)

    with pytest.raises(DamagedModel, match="Odd and the weights differ in"):
        load(inspect(SINGLE_FILE), device="cpu", dtype=torch.float32, transformer_class=Odd)


def test_weights_are_not_held_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored tensors are read one by one: when one is copied, those before it are gone."""
    read: list[weakref.ref[Tensor]] = []
    copy = Tensor.copy_

    def counting(self: Tensor, source: Tensor) -> Tensor:
        if source.dtype == torch.bfloat16:
            assert not [earlier for earlier in read if earlier() is not None]
            read.append(weakref.ref(source))
        return copy(self, source)

    monkeypatch.setattr(Tensor, "copy_", counting)
    module = load(inspect(SINGLE_FILE), device="cpu", dtype=torch.float32)
    assert len(read) == len(list(module.parameters())) + 2  # the two halves of the last modulation
