"""The parts of a pipeline folder beside its transformer: are they all there, and whole?

Reads headers and JSON only, so that a broken download is told at the start and not by the first
prompt.
"""

from __future__ import annotations

from pathlib import Path

from ditmesh.errors import DamagedModel
from ditmesh.models.checkpoint import read_json, weight_files
from ditmesh.models.safetensors_file import read_header

INDEX = "model_index.json"

_WITH_WEIGHTS = frozenset({"vae", "text_encoder", "text_encoder_2"})
_TOKENIZERS = frozenset({"tokenizer", "tokenizer_2"})
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
"""Files of which a tokenizer needs one."""


def check_pipeline_files(folder: Path) -> None:
    """Check text encoders, tokenizers and autoencoder; a folder without an index has none.

    Raises:
        DamagedModel: a part that the index lists is missing, truncated or not what it should be.
            Names the file.
    """
    index = folder / INDEX
    if not index.is_file():
        return
    for name, kind in read_json(index).items():
        listed = isinstance(kind, list) and bool(kind) and kind[0] is not None
        if listed and name in _WITH_WEIGHTS | _TOKENIZERS:
            _check_part(index, folder / name)


def _check_part(index: Path, part: Path) -> None:
    if not part.is_dir():
        raise DamagedModel(
            f"{part}: no such folder, though {index.name} lists it; complete the model, or remove "
            f"{index.name} to serve the transformer alone"
        )
    if part.name in _WITH_WEIGHTS:
        read_json(part / "config.json")
        for file in weight_files(part):
            read_header(file)
        return
    found = [part / name for name in _VOCABULARIES if (part / name).is_file()]
    if not found:
        raise DamagedModel(f"{part}: no {', '.join(_VOCABULARIES[:-1])} or {_VOCABULARIES[-1]}")
    for file in sorted({*found, *part.glob("*.json")}):
        if file.suffix == ".json":
            read_json(file)
        elif file.stat().st_size == 0:
            raise DamagedModel(f"{file}: empty")
