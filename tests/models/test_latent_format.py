"""Latents between an autoencoder's space, the model's, and a preview."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from ditmesh.errors import InvalidTensor
from ditmesh.models.latents import FLUX
from tests.models.tiny_flux import GOLDEN


@given(seed=st.integers(0, 2**32 - 1))
def test_model_space_and_back(seed: int) -> None:
    """The two maps are inverses, in fp32, and keep the dtype."""
    latent = np.random.default_rng(seed).normal(size=(1, 16, 2, 2)).astype(np.float32)
    there = FLUX.to_model_space(latent)
    assert there.dtype == np.float32
    assert np.allclose(there, (latent - 0.1159) * 0.3611, atol=1e-6)
    assert np.allclose(FLUX.from_model_space(there), latent, atol=1e-5)


def test_an_empty_latent_is_not_shifted() -> None:
    """ComfyUI's rule: all zeros stay all zeros; a single other value shifts everything."""
    empty = np.zeros((2, 16, 4, 4), np.float32)
    assert not FLUX.to_model_space(empty).any()
    empty[1, 3, 2, 1] = 1.0
    assert FLUX.to_model_space(empty).all()


def test_channels_are_fitted_as_comfyui_does() -> None:
    """Zeros of another channel count are widened; values of another count are an error."""
    widened = FLUX.fit_channels(np.zeros((2, 4, 6, 8), np.float32))
    assert widened.shape == (2, 16, 6, 8)
    assert widened.dtype == np.float32
    right = np.ones((1, 16, 2, 2), np.float32)
    assert FLUX.fit_channels(right) is right
    with pytest.raises(InvalidTensor, match="4 channels; the model takes 16") as caught:
        FLUX.fit_channels(np.ones((1, 4, 2, 2), np.float32), field="job.latent")
    assert caught.value.field == "job.latent"
    with pytest.raises(InvalidTensor, match="3 dimensions"):
        FLUX.fit_channels(np.zeros((16, 2, 2), np.float32))


def test_preview_is_a_picture() -> None:
    """A preview has a pixel for each latent cell, uses the whole range and never wraps around."""
    case = load_file(GOLDEN / "flux_euler_simple_n8_cfg1_d1_b1_16x24.safetensors")
    latent = FLUX.to_model_space(case["latent"])[0]
    picture = FLUX.preview_rgb(latent)
    assert picture.shape == (16, 24, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10
    assert FLUX.preview_rgb(latent * 1e6).max() == 255
    assert FLUX.preview_rgb(latent * 0).tolist() == [[[123, 118, 116]] * 24] * 16
