"""Latent formats: from an autoencoder's latent space to the model's, and to a quick preview.

Clients hold latents as their autoencoder makes them; the transformer was trained on shifted and
scaled ones ("model space"), and only those travel on the wire. numpy only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ditmesh.errors import DamagedModel, InvalidTensor

Array = npt.NDArray[Any]

PREVIEW_FILE = "latent_preview.json"
"""In a model folder: the `rgb_factors` and `rgb_bias` of an autoencoder that is not Flux's."""


@dataclass(frozen=True)
class LatentFormat:
    """One autoencoder's latent space. Latents are [B,C,H,W], one value per 8x8 pixels.

    `rgb_factors` (C rows of red, green, blue) and `rgb_bias` map a model-space latent linearly to
    an image with values in -1..1; they were fitted by the ComfyUI project.
    """

    name: str
    channels: int
    scale: float
    shift: float
    rgb_factors: tuple[tuple[float, float, float], ...]
    rgb_bias: tuple[float, float, float]

    def to_model_space(self, latent_BCHW: Array) -> Array:
        """`(latent - shift) * scale`; an all-zero (empty) latent stays all zero, as in ComfyUI."""
        if not latent_BCHW.any():
            return latent_BCHW
        return (latent_BCHW - self.shift) * self.scale

    def from_model_space(self, latent_BCHW: Array) -> Array:
        """`latent / scale + shift`, the inverse for any latent that is not all zero."""
        return latent_BCHW / self.scale + self.shift

    def fit_channels(self, latent_BCHW: Array, *, field: str = "latent") -> Array:
        """The latent with this format's channel count.

        An all-zero latent of another count becomes one of the right count, as in ComfyUI.

        Raises:
            InvalidTensor: the latent is not [B,C,H,W], or holds values in a wrong channel count.
        """
        if latent_BCHW.ndim != 4:
            raise InvalidTensor(
                f"{field} has {latent_BCHW.ndim} dimensions, [batch,channels,height,width] needed",
                field=field,
            )
        if latent_BCHW.shape[1] == self.channels:
            return latent_BCHW
        if latent_BCHW.any():
            raise InvalidTensor(
                f"{field} has {latent_BCHW.shape[1]} channels; the model takes {self.channels}",
                field=field,
            )
        batch, _, height, width = latent_BCHW.shape
        return np.zeros((batch, self.channels, height, width), latent_BCHW.dtype)

    def preview_rgb(self, latent_CHW: Array) -> npt.NDArray[np.uint8]:
        """A small picture, uint8 [H,W,3], of one model-space latent; no autoencoder needed."""
        factors = np.asarray(self.rgb_factors, np.float32)
        latent_HWC = np.moveaxis(np.asarray(latent_CHW, np.float32), 0, -1)
        image = latent_HWC @ factors + np.asarray(self.rgb_bias, np.float32)
        rgb: npt.NDArray[np.uint8] = (np.clip((image + 1) / 2, 0, 1) * 255).astype(np.uint8)
        return rgb


FLUX = LatentFormat(
    name="flux",
    channels=16,
    scale=0.3611,
    shift=0.1159,
    rgb_factors=(
        (-0.0346, 0.0244, 0.0681),
        (0.0034, 0.0210, 0.0687),
        (0.0275, -0.0668, -0.0433),
        (-0.0174, 0.0160, 0.0617),
        (0.0859, 0.0721, 0.0329),
        (0.0004, 0.0383, 0.0115),
        (0.0405, 0.0861, 0.0915),
        (-0.0236, -0.0185, -0.0259),
        (-0.0245, 0.0250, 0.1180),
        (0.1008, 0.0755, -0.0421),
        (-0.0515, 0.0201, 0.0011),
        (0.0428, -0.0012, -0.0036),
        (0.0817, 0.0765, 0.0749),
        (-0.1264, -0.0522, -0.1103),
        (-0.0280, -0.0881, -0.0499),
        (-0.1262, -0.0982, -0.0778),
    ),
    rgb_bias=(-0.0329, -0.0718, -0.0851),
)


def read_latent_format(folder: Path, channels: int) -> LatentFormat:
    """The latent format of a pipeline folder: Flux's, unless its files say otherwise.

    `vae/config.json` gives scale and shift (diffusers' `scaling_factor` and `shift_factor`), and
    `latent_preview.json`, if there is one, how to preview. For another channel count than Flux's
    and no preview file, the first three channels stand for red, green and blue.

    Raises:
        DamagedModel: one of the files is not what it should be.
    """
    found = FLUX if channels == FLUX.channels else _plain_format(channels)
    vae = folder / "vae" / "config.json"
    if vae.is_file():
        values = _numbers(vae, scaling_factor=found.scale, shift_factor=found.shift)
        found = replace(found, scale=values["scaling_factor"], shift=values["shift_factor"])
    preview = folder / PREVIEW_FILE
    return _with_preview(found, preview) if preview.is_file() else found


def _plain_format(channels: int) -> LatentFormat:
    rows = tuple(
        (float(channel == 0), float(channel == 1), float(channel == 2))
        for channel in range(channels)
    )
    return LatentFormat("plain", channels, 1.0, 0.0, rows, (0.0, 0.0, 0.0))


def _numbers(path: Path, **defaults: float) -> dict[str, float]:
    try:
        stored = json.loads(path.read_bytes())
        given = {name: stored.get(name) for name in defaults}
        return {
            name: defaults[name] if value is None else float(value) for name, value in given.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DamagedModel(f"{path}: {', '.join(defaults)} cannot be read: {error}") from error


def _with_preview(found: LatentFormat, path: Path) -> LatentFormat:
    try:
        stored = json.loads(path.read_bytes())
        factors = np.asarray(stored["rgb_factors"], np.float64)
        bias = np.asarray(stored["rgb_bias"], np.float64)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedModel(f"{path}: rgb_factors or rgb_bias cannot be read: {error}") from error
    if factors.shape != (found.channels, 3) or bias.shape != (3,):
        raise DamagedModel(
            f"{path}: rgb_factors is {list(factors.shape)} and rgb_bias {list(bias.shape)}; "
            f"[{found.channels}, 3] and [3] are needed"
        )
    rows = tuple((float(red), float(green), float(blue)) for red, green, blue in factors)
    red, green, blue = (float(value) for value in bias)
    return replace(found, rgb_factors=rows, rgb_bias=(red, green, blue))
