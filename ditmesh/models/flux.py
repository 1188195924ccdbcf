"""The Flux.1 family: rectified flow, 2x2 latent patches as tokens, distilled guidance.

Shapes: B batch, C channels, H and W latent rows and columns, N = H*W/4 image tokens, T text
tokens, D text width, P pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from ditmesh.errors import InvalidRequest, InvalidTensor
from ditmesh.models import latents
from ditmesh.models.family import Conditioning, Inputs, LatentLayout
from ditmesh.models.flux_checkpoint import PATCH_SIZE
from ditmesh.models.flux_transformer import FluxTransformer
from ditmesh.sampling import Flow, NoiseProcess

DEFAULT_GUIDANCE = 3.5
_TWICE_AS_WIDE = {2: torch.int32, 4: torch.int64, 8: torch.complex128}
"""By the bytes of a value, a type for two of them; patches are two columns wide."""
_SIZES_KEPT = 16
"""Sizes whose positions are remembered: they are the same in every step."""
POSITION_AXES = 3
"""A token's position is (0, row, column); text tokens are all at the origin."""


@dataclass(frozen=True)
class PatchLayout:
    """Latents as tokens [B,N,4C]."""

    shape: tuple[int, int, int, int]

    def arrange(self, x_BCHW: Tensor) -> Tensor:
        """See `LatentLayout.arrange`."""
        return pack(x_BCHW)

    def restore(self, arranged: Tensor) -> Tensor:
        """See `LatentLayout.restore`."""
        _, channels, height, width = self.shape
        return unpack(arranged, channels, height, width)


class Flux:
    """Adapter of Flux.1. Velocity `v = noise - latent`, so `denoised = x - sigma * v`."""

    name = "flux"
    latent_format = latents.FLUX
    size_multiple = PATCH_SIZE
    default_shift = 1.15
    default_guidance: float | None = DEFAULT_GUIDANCE
    transformer_class: type[nn.Module] = FluxTransformer

    def process(self, shift: float | None = None) -> NoiseProcess:
        """Rectified flow under Flux's exponential time shift. See `Family.process`.

        Without a shift it is schnell's, the same curve with the shorter table of levels that
        ComfyUI has for it.
        """
        if shift == 0.0:
            return Flow.discrete(1.0, multiplier=1.0)
        return Flow.flux(self.default_shift if shift is None else shift)

    def layout(self, shape: Sequence[int]) -> PatchLayout:
        """Patches as tokens. See `Family.layout`."""
        if len(shape) != 4:
            raise InvalidTensor(f"x is {list(shape)}, not [B,C,H,W]", field="x")
        batch, channels, height, width = shape
        if height % PATCH_SIZE or width % PATCH_SIZE or not height or not width:
            raise InvalidTensor(
                f"x is {height}x{width}; rows and columns must be multiples of {PATCH_SIZE}",
                field="x",
            )
        return PatchLayout((batch, channels, height, width))

    def inputs(self, transformer: nn.Module, layout: LatentLayout, cond: Conditioning) -> Inputs:
        """Embeddings, positions and guidance. See `Family.inputs`."""
        module = cast(FluxTransformer, transformer)
        batch, channels, height, width = layout.shape
        wanted = module.x_embedder.in_features // PATCH_SIZE**2
        if channels != wanted:
            raise InvalidTensor(f"x has {channels} channels; the model takes {wanted}", field="x")
        if cond.extra:
            names = ", ".join(sorted(cond.extra))
            raise InvalidRequest(f"Flux takes no extra tensors, got {names}", field="extra")
        dtype, device = module.x_embedder.weight.dtype, module.x_embedder.weight.device
        text_BTD = _expand("text", cond.text.to(device, dtype), batch, 3)
        return {
            "encoder_hidden_states": text_BTD,
            "pooled_projections": _pooled(module, cond, batch, device, dtype),
            "guidance": _guidance(module, cond, batch, device),
            "img_ids": image_positions(height, width, device),
            "txt_ids": _text_positions(text_BTD.shape[1], device),
        }

    def forward(
        self, transformer: nn.Module, arranged: Tensor, sigma_B: Tensor, inputs: Inputs
    ) -> Tensor:
        """Velocity [B,N,4C]. See `Family.forward`."""
        output: Tensor
        (output,) = transformer(hidden_states=arranged, timestep=sigma_B, **inputs)
        return output

    def denoised(self, arranged: Tensor, sigma_B: Tensor, output: Tensor) -> Tensor:
        """`x - sigma * velocity` in fp32."""
        sigma_B11 = sigma_B.reshape(-1, 1, 1)
        x, velocity = arranged.to(torch.float32), output.to(torch.float32)
        # New memory is slow on a CPU; a cast has brought some that nobody else has.
        into = None if velocity is output else velocity
        return torch.addcmul(x, sigma_B11, velocity, value=-1, out=into)


def pack(x_BCHW: Tensor) -> Tensor:
    """Latent to tokens [B, H*W/4, 4C]: rows first, and in a token channel, row, column."""
    batch, _, height, width = x_BCHW.shape
    rows, columns = height // PATCH_SIZE, width // PATCH_SIZE
    pairs = _paired(x_BCHW.contiguous()).reshape(batch, -1, rows, PATCH_SIZE, columns)
    # First whole rows, then each row of patches for itself: at once takes a CPU twice as long.
    by_row = _moved(pairs, (0, 2, 1, 3, 4)).view(batch, rows, -1, columns)
    moved = _moved(by_row, (0, 1, 3, 2))
    return moved.view(batch, rows * columns, -1).view(x_BCHW.dtype)


def unpack(tokens_BNK: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Tokens back to a latent [B,C,H,W]; undoes `pack`."""
    rows, columns = height // PATCH_SIZE, width // PATCH_SIZE
    pairs = _paired(tokens_BNK.contiguous()).reshape(-1, rows, columns, channels, PATCH_SIZE)
    moved = _moved(pairs, (0, 3, 1, 4, 2))
    return moved.view(-1, channels, height, columns).view(tokens_BNK.dtype)


def _paired(values: Tensor) -> Tensor:
    """Neighbours in the last dimension as one element, for they stay neighbours: moving whole
    patches' rows takes a CPU a fraction of the time that single values take.
    """
    return values.view(_TWICE_AS_WIDE[values.element_size()])


def _moved(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """A permutation in memory of its own, with strides that say so even where a size is 1."""
    return values.permute(dims).clone(memory_format=torch.contiguous_format)


@lru_cache(maxsize=_SIZES_KEPT)
def image_positions(height: int, width: int, device: torch.device | str) -> Tensor:
    """Positions (0, row, column) of a latent's tokens, fp32 [H*W/4, 3]; not to be written to."""
    rows = torch.arange(height // PATCH_SIZE, dtype=torch.float32, device=device)
    columns = torch.arange(width // PATCH_SIZE, dtype=torch.float32, device=device)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((torch.zeros_like(row), row, column), dim=-1).reshape(-1, POSITION_AXES)


@lru_cache(maxsize=_SIZES_KEPT)
def _text_positions(tokens: int, device: torch.device | str) -> Tensor:
    return torch.zeros(tokens, POSITION_AXES, device=device)


def _expand(field: str, tensor: Tensor, batch: int, dimensions: int) -> Tensor:
    if tensor.dim() != dimensions or tensor.shape[0] not in (1, batch):
        raise InvalidTensor(
            f"{field} is {list(tensor.shape)}; it needs {dimensions} dimensions and a batch of "
            f"1 or {batch}",
            field=field,
        )
    return tensor.expand(batch, *tensor.shape[1:])


def _pooled(
    module: FluxTransformer,
    cond: Conditioning,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    if cond.pooled is None:
        width = module.time_text_embed.text_embedder.linear_1.in_features
        return torch.zeros(batch, width, device=device, dtype=dtype)
    return _expand("pooled", cond.pooled.to(device, dtype), batch, 2)


def _guidance(
    module: FluxTransformer, cond: Conditioning, batch: int, device: torch.device
) -> Tensor | None:
    """Guidance [B], or None for a model without the embedding, which has no use for it."""
    if not hasattr(module.time_text_embed, "guidance_embedder"):
        return None
    value = DEFAULT_GUIDANCE if cond.guidance is None else cond.guidance
    guidance = torch.as_tensor(value, dtype=torch.float32, device=device).reshape(-1)
    return _expand("guidance", guidance, batch, 1)
