"""The computed autoencoder gives back a portrait's pixels."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from training.portraits.autoencoder import SCALE, build_autoencoder, fit_color_map
from training.portraits.dataset import Portraits


def pixels(pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
    """128x128 pictures [N, 3, 128, 128] in [-1, 1]."""
    large = torch.from_numpy(pictures.repeat(8, axis=1).repeat(8, axis=2))
    return large.permute(0, 3, 1, 2).float() / 127.5 - 1


def test_latents_have_unit_variance(portraits: Portraits) -> None:
    """Every channel of a model-space latent is as strong as the noise."""
    latents = fit_color_map(portraits.pictures).encode(portraits.pictures)
    assert latents.shape == (64, 16, 16, 16)
    assert latents.mean(axis=(0, 2, 3)) == pytest.approx(0, abs=1e-4)
    assert latents.std(axis=(0, 2, 3)) == pytest.approx(1, abs=1e-3)


def test_the_encoder_gives_the_latents_that_training_uses(portraits: Portraits) -> None:
    """scaling_factor brings the autoencoder's latents to model space."""
    colors = fit_color_map(portraits.pictures)
    autoencoder = build_autoencoder(colors)
    assert autoencoder.config.scaling_factor == SCALE
    with torch.no_grad():
        latents = autoencoder.encode(pixels(portraits.pictures)).latents * SCALE
    expected = torch.from_numpy(colors.encode(portraits.pictures))
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)


def test_a_decoded_portrait_is_off_by_less_than_a_hundredth_of_a_step(
    portraits: Portraits,
) -> None:
    """Error in 8-bit steps, over every pixel."""
    autoencoder = build_autoencoder(fit_color_map(portraits.pictures))
    original = pixels(portraits.pictures)
    with torch.no_grad():
        decoded = autoencoder.decode(autoencoder.encode(original).latents).sample
    assert (decoded - original).abs().max().item() * 127.5 < 0.01
