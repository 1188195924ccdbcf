"""Linear layers whose weights are kept in eight bits: half of bf16's memory, computed in bf16.

A row of a weight is float8_e4m3fn times a power of two. Such a scale moves the row into the middle
of the format's range and rounds nothing itself: only the three bits of mantissa are lost, at most
1/16 of a value, and what already is e4m3 in a file stays as it is. diffusers' layerwise casting
has no scale, writes every weight back after use, and casts modules in a way that a compiler cannot
trace; hence these few lines.

e4m3: four bits of exponent, three of mantissa (Micikevicius et al. 2022, arXiv:2209.05433).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

STORAGE = torch.float8_e4m3fn
LARGEST = torch.finfo(STORAGE).max
_LOWEST_EXPONENT = -6
_MANTISSA_BITS = 3


class Fp8Linear(nn.Module):
    """A linear layer with `weight` [rows, columns] in eight bits and `scale` [rows].

    It computes as if the weight were `weight * scale`, in the dtype of `scale` and `bias`.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        bias: bool,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(rows, columns, dtype=STORAGE, device=device), requires_grad=False
        )
        self.scale: Tensor
        # Not of the state dict: it holds what the model's files hold, by the same names.
        self.register_buffer(
            "scale", torch.empty(rows, dtype=dtype, device=device), persistent=False
        )
        self.bias = (
            nn.Parameter(torch.empty(rows, dtype=dtype, device=device), requires_grad=False)
            if bias
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """`x @ (weight * scale).T + bias`; a power of two commutes with every rounding."""
        product = functional.linear(x, self.weight.to(x.dtype))
        if self.bias is None:
            return product * self.scale
        return torch.addcmul(self.bias, product, self.scale)

    @torch.no_grad()
    def store(self, value: Tensor, *, dither: bool = False) -> None:
        """Round `value` [rows, columns] into the weight, in its place if it has memory already.

        To the nearest; with `dither`, up or down by chance in proportion, always by the same
        chance: a small change of a value that is representable would vanish otherwise.
        """
        scale = row_scales(value)
        scaled = value / scale.to(value.dtype).unsqueeze(1)
        rounded = (dithered(scaled.float()) if dither else scaled).to(STORAGE)
        if self.weight.is_meta:
            self.weight = nn.Parameter(rounded, requires_grad=False)
            self.scale = scale.to(self.scale.dtype)
        else:
            self.weight.copy_(rounded)
            self.scale.copy_(scale)

    def value(self) -> Tensor:
        """The weight that it computes with, fp32 [rows, columns]."""
        return self.weight.float() * self.scale.float().unsqueeze(1)


def row_scales(value: Tensor) -> Tensor:
    """The least power of two for each row that keeps it within e4m3's range, fp32 [rows]."""
    peaks = value.float().abs().amax(dim=1)
    mantissa, exponent = torch.frexp(peaks / LARGEST)  # mantissa in [0.5, 1)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    scales = torch.ldexp(torch.ones_like(peaks), exponent)
    scales = torch.where(peaks > 0, scales, torch.ones_like(scales))
    # The format has no infinity: a row that is not finite becomes NaN, and does not pass for sound.
    return torch.where(peaks.isfinite(), scales, torch.full_like(scales, torch.nan))


def dithered(scaled: Tensor) -> Tensor:
    """Each value on one of the two neighbours of e4m3 around it, the nearer one more often.

    The chance is a hash of the value's place: equal on every rank and device.
    """
    _, exponent = torch.frexp(scaled)
    exponent = (exponent - 1).clamp(min=_LOWEST_EXPONENT) - _MANTISSA_BITS
    unit = torch.ldexp(torch.ones_like(scaled), exponent)
    return torch.floor(scaled / unit + _chances(scaled)) * unit


def _chances(like: Tensor) -> Tensor:
    """Numbers in [0, 1), fp32, in the shape of `like`.

    Mixing as in MurmurHash3's finaliser, on 32 bits held in 64.
    """
    bits = torch.arange(like.numel(), device=like.device)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = ((bits ^ (bits >> shift)) * factor) & 0xFFFFFFFF
    bits = bits ^ (bits >> 16)
    return (bits >> 8).to(torch.float32).reshape(like.shape) / 2**24


def keep_blocks(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace the linear layers of a transformer's repeated blocks, by far most of its weights.

    Embedders, norms and the last projection stay as they are. On the meta device, weights come
    later; elsewhere they are rounded, one at a time. `dtype` is the transformer's.
    """
    for block in _blocks(module):
        for owner in list(block.modules()):
            for name, child in list(owner.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(owner, name, _converted(child, dtype))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    kinds = cast("list[str]", module._repeated_blocks)  # as diffusers names them
    return (part for part in module.modules() if type(part).__name__ in kinds)


def _converted(linear: nn.Linear, dtype: torch.dtype) -> Fp8Linear:
    made = Fp8Linear(
        linear.out_features,
        linear.in_features,
        bias=linear.bias is not None,
        device="meta",
        dtype=dtype,
    )
    if not linear.weight.is_meta:
        made.store(linear.weight.to(dtype))
        made.bias = linear.bias
    return made.train(linear.training)
