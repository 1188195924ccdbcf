"""Jobs and conditioning from safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ditmesh.cli.exit_codes import UsageError
from ditmesh.cli.tensor_files import read_tensors
from ditmesh.client import FLUX, Conditioning, JobOptions
from ditmesh.tensors import WireTensor


@dataclass(frozen=True)
class GoldenCase:
    """A run of ComfyUI's KSampler: the same job, and the latent that came of it there."""

    options: JobOptions
    expected: npt.NDArray[np.float32]
    """[B, C, H, W], in the autoencoder's space."""

    def difference(self, latent: npt.NDArray[np.float32]) -> float:
        """How far a result, in model space, is from ComfyUI's at most."""
        return float(np.abs(FLUX.from_model_space(latent) - self.expected).max())


def read_golden(path: Path, model: str) -> GoldenCase:
    """A job from a golden case of Flux.

    Noise and sigmas are not taken from the file: the cluster makes them from seed and schedule.
    Raises DamagedModel for a file that cannot be read, UsageError for one that holds no case.
    """
    tensors, arguments = read_tensors(path)
    try:
        options: JobOptions = {
            "model": model,
            "positive": conditioning(tensors, "positive", arguments["guidance"]),
            "negative": conditioning(tensors, "negative", arguments["guidance"]),
            "latent": FLUX.to_model_space(tensors["latent_image"].numpy()),
            "sampler": arguments["sampler"],
            "scheduler": arguments["scheduler"],
            "steps": arguments["steps"],
            "cfg": arguments["cfg"],
            "denoise": arguments["denoise"],
            "seed": arguments["seed"],
        }
        expected = tensors["latent"].numpy().astype(np.float32)
    except KeyError as error:
        raise UsageError(f"{path} is no golden case: it lacks {error}") from error
    return GoldenCase(options, expected)


def read_conditioning(
    path: Path, guidance: float | None
) -> tuple[Conditioning, Conditioning | None]:
    """Positive and negative conditioning from the tensors of a file.

    positive [1, T, D] is needed; negative, pooled_positive and pooled_negative [1, P] are taken
    where they are. `guidance` goes before the file's metadata of that name. Raises DamagedModel
    or UsageError.
    """
    tensors, metadata = read_tensors(path)
    if "positive" not in tensors:
        raise UsageError(
            f"{path} holds no tensor named positive, but: {', '.join(sorted(tensors))}"
        )
    scale = _guidance(metadata) if guidance is None else guidance
    positive = conditioning(tensors, "positive", scale)
    return positive, conditioning(tensors, "negative", scale) if "negative" in tensors else None


def conditioning(
    tensors: Mapping[str, WireTensor], branch: str, guidance: float | None
) -> Conditioning:
    """One branch. Raises KeyError when its text is not there."""
    return Conditioning(tensors[branch], tensors.get(f"pooled_{branch}"), guidance)


def _guidance(metadata: Mapping[str, Any]) -> float | None:
    found = metadata.get("guidance")
    return float(found) if isinstance(found, (int, float)) else None
