"""The autoencoder, in closed form: one latent cell is one cell of the picture.

A portrait is a 16x16 grid of flat 8x8-pixel cells and ``AutoencoderTiny`` shrinks by 8, so that a
latent cell needs to hold one colour. Its weights are therefore computed, not learned: the encoder
averages each cell and maps the colour to 16 channels, the decoder maps it back and repeats it.

    z = sqrt(16/3) Q W (rgb - mean)

W whitens the colours of the training pictures, so that hue counts as much as brightness. Q is
three columns of a Hadamard matrix, orthonormal and of equal weight in every row, which spreads a
colour over the 16 channels at unit variance a channel.
The latents of the autoencoder itself are z / SCALE: its decoder begins with tanh(x / 3) * 3, which
is the identity to 1e-6 on values that small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderTiny
from torch import nn

LATENT_CHANNELS = 16
SCALE = 256.0

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ColorMap:
    """The affine map from rgb in [0, 1] to the 16 channels of a model-space latent."""

    mean: Array
    """[3]"""
    to_latent: Array
    """[16, 3]"""
    to_rgb: Array
    """[3, 16]"""

    def encode(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Pictures uint8 [N, 16, 16, 3] to model-space latents float32 [N, 16, 16, 16] (NCHW)."""
        rgb = pictures / 255 - self.mean
        return np.moveaxis(rgb @ self.to_latent.T, -1, 1).astype(np.float32)


def fit_color_map(pictures: npt.NDArray[np.uint8]) -> ColorMap:
    """Whitens the colours of pictures uint8 [N, 16, 16, 3] and spreads them over the channels."""
    rgb = pictures.reshape(-1, 3).astype(np.float64) / 255
    mean = rgb.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(rgb - mean, rowvar=False))
    whiten = vectors @ np.diag(values**-0.5) @ vectors.T
    rows = np.arange(LATENT_CHANNELS)
    spread = np.stack([1 - 2.0 * (rows >> bit & 1) for bit in range(3)], axis=1)
    spread /= LATENT_CHANNELS**0.5
    gain = (LATENT_CHANNELS / 3) ** 0.5
    return ColorMap(
        mean=mean,
        to_latent=gain * spread @ whiten,
        to_rgb=np.linalg.inv(whiten) @ spread.T / gain,
    )


def build_autoencoder(colors: ColorMap) -> AutoencoderTiny:
    """An ``AutoencoderTiny`` (factor 8, 16 latent channels) with the weights of ``colors``."""
    model = AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(3, 3, 3, 3),
        decoder_block_out_channels=(3, 3, 3, 3),
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=(0, 0, 0, 0),
        scaling_factor=SCALE,
        shift_factor=0.0,
    )
    to_latent = torch.from_numpy(colors.to_latent / SCALE)
    to_rgb = torch.from_numpy(colors.to_rgb * SCALE)
    mean = torch.from_numpy(colors.mean)
    identity = torch.eye(3, dtype=torch.float64)
    encoder = [layer for layer in model.encoder.layers if isinstance(layer, nn.Conv2d)]
    decoder = [layer for layer in model.decoder.layers if isinstance(layer, nn.Conv2d)]
    _set(encoder[0], identity)
    for layer in encoder[1:-1]:
        _set(layer, identity / 4, taps=(1, 2))
    _set(encoder[-1], to_latent, bias=-to_latent @ mean)
    _set(decoder[0], to_rgb, bias=mean)
    for layer in decoder[1:]:
        _set(layer, identity)
    return model.eval()


@torch.no_grad()
def _set(
    layer: nn.Conv2d,
    matrix: torch.Tensor,
    bias: torch.Tensor | None = None,
    taps: tuple[int, ...] = (1,),
) -> None:
    """Makes a 3x3 convolution apply ``matrix`` [out, in] at the given rows and columns."""
    layer.weight.zero_()
    for row in taps:
        for column in taps:
            layer.weight[:, :, row, column] = matrix.to(layer.weight.dtype)
    if layer.bias is not None:
        layer.bias.zero_()
        if bias is not None:
            layer.bias.copy_(bias)
