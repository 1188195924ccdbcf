"""Pictures of a result: decoded where the model can, else a preview of the latent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ditmesh.cli.png import encode_png, enlarged
from ditmesh.client import Client
from ditmesh.client.cluster import ModelCard


def write_pictures(
    out: Path, client: Client, card: ModelCard, latent: npt.NDArray[np.float32]
) -> list[str]:
    """Write a PNG file for each picture of a model-space latent; lines that say what was written.

    Without a pipeline the files show a linear map of the latent to colours. Raises the client's
    errors, and OSError when a file cannot be written.
    """
    if card.has_pipeline:
        files, what = client.decode_png(card.name, latent), "the decoded picture"
    elif not card.latent_format.rgb_factors:
        return [f"no picture: {card.name} has no decoder here, nor colours for a preview"]
    else:
        previews = (card.latent_format.preview_rgb(item) for item in latent)
        files = [encode_png(enlarged(preview, card.vae_factor)) for preview in previews]
        what = f"a linear preview of the latent: {card.name} has no decoder here"
    lines = []
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, data in zip(numbered(out, len(files)), files, strict=True):
        path.write_bytes(data)
        lines.append(f"wrote {path}, {what}")
    return lines


def numbered(out: Path, count: int) -> list[Path]:
    """The files of a batch: the name as it is for one picture, name-1, name-2 for several."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{i + 1}{out.suffix}") for i in range(count)]
