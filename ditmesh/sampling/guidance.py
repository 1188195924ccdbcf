"""Denoisers around denoisers: classifier-free guidance and noise masks.

evaluate (the model) -> GuidedDenoiser -> InpaintDenoiser -> the sampler
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ditmesh.errors import InvalidRequest, InvalidTensor
from ditmesh.sampling.noise import check_seed
from ditmesh.sampling.process import NoiseProcess
from ditmesh.sampling.solver import Denoiser

C = TypeVar("C")

Evaluate = Callable[[Tensor, Tensor, Sequence[C]], Sequence[Tensor]]
"""`(x, sigma, branches) -> denoised per branch`: one model evaluation per conditioning."""


class GuidedDenoiser(Generic[C]):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

    negative + cfg * (positive - negative); at cfg 1 the negative branch is
    not evaluated. What a conditioning is, only `evaluate` knows.

    Raises:
        InvalidRequest: cfg is not finite, or there is no negative where it counts.
    """

    def __init__(self, evaluate: Evaluate[C], positive: C, negative: C | None, cfg: float) -> None:
        if not math.isfinite(cfg):
            raise InvalidRequest(f"cfg is {cfg}; it must be finite", field="cfg")
        self._evaluate = evaluate
        self._cfg = cfg
        if math.isclose(cfg, 1.0):
            self.branches: tuple[C, ...] = (positive,)
        elif negative is None:
            raise InvalidRequest(
                f"cfg is {cfg}; other than at 1 it needs a negative conditioning", field="negative"
            )
        else:
            self.branches = (positive, negative)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Guided denoised prediction, fp32 [B, C, ...]."""
        denoised = self._evaluate(x, sigma, self.branches)
        if len(denoised) == 1:
            return denoised[0]
        positive, negative = denoised
        return negative + (positive - negative) * self._cfg


class InpaintDenoiser:
    """Keeps the latent where the mask is 0 and samples where it is 1.

    Outside the mask the model sees `latent_image` at the present noise level,
    and its prediction there is replaced by `latent_image`. All tensors are
    fp32 [B, C, ...] in model space; `noise` is `inpaint_noise`'s.
    """

    def __init__(
        self,
        denoise: Denoiser,
        process: NoiseProcess,
        *,
        mask: Tensor,
        noise: Tensor,
        latent_image: Tensor,
    ) -> None:
        if not mask.shape == noise.shape == latent_image.shape:
            raise InvalidTensor(
                f"mask {list(mask.shape)}, noise {list(noise.shape)} and latent "
                f"{list(latent_image.shape)} must have one shape",
                field="noise_mask",
            )
        self._denoise = denoise
        self._process = process
        self._mask = mask
        self._noise = noise
        self._latent_image = latent_image

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoised prediction inside the mask, `latent_image` outside."""
        keep = 1.0 - self._mask
        noised = self._process.noise_scaling(sigma, self._noise, self._latent_image)
        denoised = self._denoise(x * self._mask + noised * keep, sigma)
        return denoised * self._mask + self._latent_image * keep


def inpaint_noise(sampler: str, noise: Tensor, seed: int) -> Tensor:
    """The noise that `InpaintDenoiser` adds to what it keeps, like `noise` [B, C, ...].

    It is the job's initial noise (zeros where none was added), but for ddim,
    which draws its own, from the seed after the job's.
    """
    if sampler != "ddim":
        return noise
    check_seed(seed)
    generator = torch.Generator().manual_seed((seed + 1) % 2**64)
    return torch.randn(noise.shape, generator=generator).to(noise)


def prepare_mask(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """A noise mask, resized and repeated to the latent's `shape` [B, C, (T,) H, W], fp32.

    `mask` is [h, w] or has any leading dimensions that flatten to the batch,
    1 where to sample. For a latent with time they flatten to frames instead,
    unless the mask is [B, 1, t, h, w] itself. Resizing is linear.

    Raises:
        InvalidTensor: fewer than two dimensions, no values, or a latent that is
            neither an image nor a video.
    """
    if mask.ndim < 2 or mask.numel() == 0:
        raise InvalidTensor(
            f"the noise mask is {list(mask.shape)}; it must be [(B, 1,) h, w]", field="noise_mask"
        )
    if len(shape) not in (4, 5):
        raise InvalidTensor(f"noise masks do not fit a latent {list(shape)}", field="noise_mask")
    mask = mask.to(torch.float32)
    size = tuple(mask.shape[-2:])
    if len(shape) == 4:
        mask = mask.reshape(-1, 1, *size)
    elif mask.ndim < 5:
        mask = mask.reshape(1, 1, -1, *size)
    mode = "bilinear" if len(shape) == 4 else "trilinear"
    mask = torch.nn.functional.interpolate(mask, size=tuple(shape[2:]), mode=mode)
    return _repeated(_repeated(mask, shape[1], dim=1), shape[0], dim=0)


def _repeated(tensor: Tensor, length: int, *, dim: int) -> Tensor:
    """Repeated along `dim` and cut to `length`."""
    index = torch.arange(length, device=tensor.device) % tensor.shape[dim]
    return tensor.index_select(dim, index)
