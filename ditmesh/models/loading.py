"""Weights from safetensors straight into a module, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ditmesh.errors import DamagedModel
from ditmesh.models import fp8
from ditmesh.models.checkpoint import Checkpoint, open_checkpoint
from ditmesh.models.flux_checkpoint import FluxConfig, Source, diffusers_shapes
from ditmesh.models.info import ModelInfo
from ditmesh.models.registry import family


def load(
    info: ModelInfo,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    transformer_class: type[nn.Module] | None = None,
    fp8_weights: bool = False,
) -> nn.Module:
    """The transformer of `info` on `device`, in `dtype`, in eval mode and without gradients.

    Memory peaks at the weights plus one tensor. `transformer_class` takes diffusers' arguments
    and has its parameters; without it, the family's class for one process is built. With
    `fp8_weights` the linear layers of its blocks are kept in eight bits and computed in `dtype`.

    Raises:
        DamagedModel: the files are not, or no longer, what `inspect` saw.
    """
    cls = transformer_class or family(info.family).transformer_class
    checkpoint = open_checkpoint(info.path)
    if checkpoint.config != info.config:
        raise DamagedModel(f"{info.path}: the model has changed since it was inspected")
    with torch.device("meta"):
        module = cls(**diffusers_arguments(info.config))
    if fp8_weights:
        fp8.keep_blocks(module, dtype)
    try:
        _fill(module, checkpoint, torch.device(device), dtype)
    except (OSError, SafetensorError) as error:
        raise DamagedModel(f"{info.path}: reading the weights failed: {error}") from error
    return module.eval().requires_grad_(False)


def reload(module: nn.Module, info: ModelInfo, names: Iterable[str]) -> None:
    """Read some parameters of a loaded module again, by their diffusers names, into their place.

    Raises:
        DamagedModel: the files are no longer what `inspect` saw.
    """
    with torch.no_grad():
        for name, value in originals(module, info, names):
            layer = fp8_layer(module, name)
            if layer is None:
                module.get_parameter(name).copy_(value)
            else:
                layer.store(value)


def originals(
    module: nn.Module, info: ModelInfo, names: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """Some parameters as the model's files have them, one at a time, on the module's device.

    In the dtype that the module computes with, whatever it keeps them in.

    Raises:
        DamagedModel: the files are no longer what `inspect` saw.
    """
    checkpoint = open_checkpoint(info.path)
    if checkpoint.config != info.config:
        raise DamagedModel(f"{info.path}: the model has changed since it was loaded")
    try:
        with _files(checkpoint) as files:
            for name in names:
                layer = fp8_layer(module, name)
                parameter = module.get_parameter(name)
                dtype = parameter.dtype if layer is None else layer.scale.dtype
                value = torch.empty_like(parameter, dtype=dtype)
                _read(value, checkpoint.sources[name], checkpoint, files)
                yield name, value
    except (OSError, SafetensorError) as error:
        raise DamagedModel(f"{info.path}: reading the weights failed: {error}") from error


def fp8_layer(module: nn.Module, name: str) -> fp8.Fp8Linear | None:
    """The layer that keeps the parameter of that name in eight bits, if one does."""
    owner, _, leaf = name.rpartition(".")
    layer = module.get_submodule(owner)
    return layer if isinstance(layer, fp8.Fp8Linear) and leaf == "weight" else None


def diffusers_arguments(config: FluxConfig) -> dict[str, Any]:
    """The keyword arguments of diffusers' `FluxTransformer2DModel`."""
    return {
        "patch_size": 1,
        "in_channels": config.token_channels,
        "num_layers": config.num_layers,
        "num_single_layers": config.num_single_layers,
        "attention_head_dim": config.head_dim,
        "num_attention_heads": config.num_heads,
        "joint_attention_dim": config.text_dim,
        "pooled_projection_dim": config.pooled_dim,
        "guidance_embeds": config.guidance_embeds,
        "axes_dims_rope": config.axes_dims,
    }


def _fill(
    module: nn.Module, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> None:
    shapes = diffusers_shapes(checkpoint.config)
    wanted = module.state_dict().keys()
    if wanted != shapes.keys():
        odd = sorted(wanted ^ shapes.keys())
        raise DamagedModel(f"{type(module).__name__} and the weights differ in {odd[0]!r}")
    with _files(checkpoint) as files:
        for name, shape in shapes.items():
            value = torch.empty(shape, dtype=dtype, device=device)
            _read(value, checkpoint.sources[name], checkpoint, files)
            layer = fp8_layer(module, name)
            if layer is not None:
                layer.store(value)
            else:
                owner, _, leaf = name.rpartition(".")
                setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))


@contextmanager
def _files(checkpoint: Checkpoint) -> Iterator[Mapping[Path, Any]]:
    with ExitStack() as stack:
        yield {
            path: stack.enter_context(safe_open(path, framework="pt"))
            for path in {tensor.file for tensor in checkpoint.used}
        }


def _read(value: Tensor, source: Source, checkpoint: Checkpoint, files: Mapping[Path, Any]) -> None:
    row = 0
    for key, start, stop in source.parts:
        stored = files[checkpoint.tensors[key].file].get_slice(key)[start:stop]
        value[row : row + stop - start].copy_(stored)
        row += stop - start
